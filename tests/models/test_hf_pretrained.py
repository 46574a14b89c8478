"""Weights that are NaN or infinite are refused with their file and key, wherever a Hugging Face folder is read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kleiber.adapters.lora import LoRA
from kleiber.config.errors import ConfigError
from kleiber.models.generation import left_padded
from kleiber.models.hf import HFModel
from kleiber.models.hf_config import hf_model_node
from kleiber.models.hf_pretrained import check_finite, read_folder
from kleiber.models.hf_twin import load_hf, to_hf
from kleiber.models.transformer import Transformer
from kleiber.nn.mup import StandardParametrization
from kleiber.types.batch import Batch

VOCAB = 32
KEY = "model.layers.1.mlp.down_proj.weight"


def small() -> Transformer:
    options = {"depth": 2, "width": 32, "context": 16, "num_heads": 2, "qk_norm": False}
    return Transformer(VOCAB, **options, parametrization=StandardParametrization())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    to_hf(small()).save_pretrained(tmp_path)
    return tmp_path


def spoil(folder: Path, value: float, key: str = KEY) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    state[key].view(-1)[5] = value
    save_file(state, file, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_and_only_read_if_allowed(value: float, folder: Path) -> None:
    spoil(folder, value)
    for read in (read_folder, lambda path: load_hf(small(), path), lambda path: HFModel(VOCAB, str(path), context=16)):
        with pytest.raises(ConfigError, match=f"model.safetensors: the weight {KEY} "):
            read(folder)
    assert not read_folder(folder, allow_nonfinite=True).get_parameter(KEY).isfinite().all()
    wrapped = HFModel(VOCAB, str(folder), context=16, allow_nonfinite=True)
    assert sum(int((~weight.isfinite()).sum()) for weight in wrapped.parameters()) == 1
    load_hf(small(), folder, allow_nonfinite=True)


def test_the_shard_with_the_weight_is_named(folder: Path) -> None:
    model = to_hf(small())
    model.save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    shard = next(file for file in folder.glob("*.safetensors") if KEY in load_file(file))
    state = load_file(shard)
    state[KEY][0, 0] = float("nan")
    save_file(state, shard, {"format": "pt"})
    with pytest.raises(ConfigError, match=shard.name):
        read_folder(folder)


def test_large_weights_are_finite_though_their_sum_is_not(folder: Path) -> None:
    model = torch.nn.Linear(64, 64)
    torch.nn.init.constant_(model.weight, 3e38)
    assert not model.weight.sum().isfinite()
    check_finite(model, folder)


def test_a_weight_that_overflows_in_the_precision_of_the_model_is_named(folder: Path) -> None:
    spoil(folder, 1e30)
    read_folder(folder)
    with pytest.raises(ConfigError, match=f"{folder}: the weight {KEY} "):
        read_folder(folder, torch.float16)


def test_damaged_weights_are_named(folder: Path) -> None:
    assert hf_model_node(folder)["depth"] == 2
    for content in (b"", b"cut off", (folder / "model.safetensors").read_bytes()[:-100]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=str(folder)):
            read_folder(folder)
        with pytest.raises(ValueError, match=str(folder)):
            HFModel(VOCAB, str(folder), context=16)


HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": HEADS | {"hidden_size": 32, "num_hidden_layers": 2},
    "lfm2": HEADS | {"hidden_size": 32, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": HEADS | LINEAR | EXPERTS | {"head_dim": 16, "shared_expert_intermediate_size": 16,
        "hidden_size": 32, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
}  # fmt: skip


def test_layers_that_replace_attention_are_its_part_and_their_taps_are_vectors() -> None:
    for path, layer in (("lfm2", "conv"), ("qwen3_next", "linear_attn")):
        model = HFModel(VOCAB, path, "random", SIZES[path], context=16)
        adapted = LoRA(targets=["attention"]).matrices(model)
        assert {name.split(".")[4] for name in adapted} == {layer, "self_attn"}
        assert not any(model.get_parameter(name).ndim == 3 for name in adapted)


@pytest.mark.parametrize("path", SIZES)
@torch.no_grad()
def test_selected_rows_of_a_cache_continue_as_the_whole_rows_do(path: str) -> None:
    """With learned and rotary positions, and states of fixed size, from prompts that are padded on the left."""
    torch.manual_seed(0)
    model = HFModel(VOCAB, path, "random", SIZES[path], context=16).eval()
    prompts, endings, rows = [[5, 6, 7], [8]], [[1, 2], [3, 4], [9, 10]], [0, 1, 1]
    ids, real = left_padded(prompts)
    caches = model.new_caches(3)
    model(Batch(ids, real=real), caches)
    selected = caches.select(torch.tensor(rows), 5)
    found = model(Batch(torch.tensor(endings)), selected).hidden
    for row, ending, hidden in zip(rows, endings, found, strict=True):
        whole = model(Batch(torch.tensor([prompts[row] + ending]))).hidden[0, -2:]
        assert torch.allclose(hidden, whole, atol=1e-5)
    assert len(caches) == 3  # the selection is a copy
    assert all(len(tensor) == 2 for tensor in caches.tensors()) and len(caches.tensors()) >= 3
