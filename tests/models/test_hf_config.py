"""Hugging Face folders as kleiber's own Transformer: model node, weights, logits and losses."""

import json
import re
from fnmatch import fnmatch
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from kleiber.config import hub
from kleiber.config.check import check_node
from kleiber.config.errors import ConfigError
from kleiber.config.targets import build
from kleiber.models.hf import HFModel
from kleiber.models.hf_config import (
    DEFAULTS,
    KINDS,
    configuration,
    hf_model_node,
    hf_tokenizer,
    hf_vocab_size,
    model_folder,
)
from kleiber.models.hf_twin import load_hf, to_hf
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.mup import MuP
from kleiber.nn.routers.topk import Switch
from kleiber.objectives.clm import CLM
from kleiber.runs.defaults import default_learning_rate
from kleiber.runs.evaluation_subject import native_model
from kleiber.types.batch import Batch

CASES = {
    "llama": {"qk_norm": False, "num_kv_heads": 1},
    "qwen3": {"tied": False, "rope_theta": 5000.0},
    "mixtral": {"qk_norm": False, "mlp": partial(interleaved_moe, num_experts=4, k=3)},
    "qwen3_moe": {"mlp": partial(interleaved_moe, num_experts=4, k=2, every=2)},
    "qwen3_moe switch": {"mlp": partial(interleaved_moe, num_experts=4, k=1, router=Switch)},
}


def imported(folder, **options) -> Transformer:
    node = hf_model_node(folder, **options)
    check_node("model", node)
    model = build(OmegaConf.create(node), vocab_size=hf_vocab_size(folder))
    load_hf(model, folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_node_and_the_weights_of_a_folder_give_its_logits(case, tmp_path):
    torch.manual_seed(0)
    model = Transformer(50, **{"depth": 4, "width": 64, "context": 16, "num_heads": 2} | CASES[case])
    torch.nn.init.normal_(model.head.weight, std=0.2)
    to_hf(model).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == case.split()[0]
    ids = torch.randint(50, (2, 12))
    ours, again = (m.head(m(Batch(ids)).hidden) for m in (model, imported(tmp_path)))
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=1e-5)
    assert imported(tmp_path, context=8).context == 8


@pytest.mark.slow
def test_stories260k_imported_gives_the_logits_of_transformers_and_its_known_loss(shared):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from kleiber.data.pretrained_tokenizer import load_pretrained

    folder = shared / "data" / "models" / "stories260K"
    model, exact = imported(folder).eval(), imported(folder).double()
    twin = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = load_pretrained(hf_tokenizer(folder))
    assert tokenizer.vocab_size == hf_vocab_size(folder) == 512 and tokenizer.mask == -1
    texts = load_dataset(str(shared / "data" / "tinystories"), "v1-sample", split="validation")["text"][:20]
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[1, *tokenizer.encode(text)][:512]])
        with torch.no_grad():
            loss = CLM()(model, Batch(ids))
            # Logits reach 18, so fp32 rounds at 1e-5; and transformers rounds its angles, more so with time.
            near = exact.head(exact(Batch(ids[:, :64])).hidden), twin(ids[:, :64]).logits
            torch.testing.assert_close(*near, atol=1e-5, rtol=1e-5)
        nats, count = nats + float(loss.total), count + int(loss.tokens)
    assert nats / count == pytest.approx(1.52, abs=0.02)
    assert np.all(np.asarray(tokenizer.encode(texts[0])) < 512)


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama as a folder."""
    torch.manual_seed(0)
    to_hf(Transformer(50, depth=2, width=32, context=16, num_heads=2, qk_norm=False)).save_pretrained(tmp_path)
    return tmp_path


def rewritten(folder, change) -> None:
    """The folder with other weights: `change` gets them by name."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("read", [imported, native_model], ids=["import", "eval"])
def test_weights_that_are_missing_or_have_no_place_are_refused_by_name(read, folder):
    rewritten(folder, lambda state: state.update({"model.layers.1.self_attn.q_proj.bias": torch.ones(32)}))
    with pytest.raises(ValueError, match=rf"{folder} .* model\.layers\.1\.self_attn\.q_proj\.bias"):
        read(folder)
    rewritten(folder, lambda state: state.pop("model.layers.1.self_attn.q_proj.bias"))
    assert read(folder).tied, "the output layer is the table and needs no weights"
    rewritten(folder, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=rf"{folder} .* model\.layers\.1\.mlp\.up_proj\.weight"):
        read(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:3000])
    with pytest.raises(ValueError, match=str(folder)):
        read(folder)


def test_a_folder_in_half_precision_is_scored_in_full(folder):
    rewritten(folder, lambda state: state.update({name: value.bfloat16() for name, value in state.items()}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert {p.dtype for p in native_model(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_does_not_say_is_what_transformers_takes(kind, tmp_path):
    from transformers import CONFIG_MAPPING

    config = {
        "model_type": kind, "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2, "head_dim": 8,
        "intermediate_size": 32, "max_position_embeddings": 8, "num_experts_per_tok": 2, "num_local_experts": 4,
        "moe_intermediate_size": 16,
    }  # fmt: skip
    plain = CONFIG_MAPPING[kind]()
    defaults = plain.to_dict() | plain.rope_parameters
    assert all(DEFAULTS[kind][name] == defaults.get(name) for name in DEFAULTS[kind] if name != "num_key_value_heads")
    for extra in ({}, {"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0}):
        (tmp_path / "config.json").write_text(json.dumps(config | extra))
        node, theirs = hf_model_node(tmp_path), CONFIG_MAPPING[kind].from_dict(config | extra)
        assert node["rope_theta"] == theirs.rope_parameters["rope_theta"]
        assert node["norm_eps"] == theirs.rms_norm_eps and node["num_kv_heads"] == theirs.num_key_value_heads


def test_a_config_without_a_size_or_that_is_none_is_refused_with_file_and_key(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, ask in (("intermediate_size", hf_model_node), ("vocab_size", hf_vocab_size)):
        file.write_text(json.dumps({name: value for name, value in config.items() if name != key}))
        with pytest.raises(ValueError, match=rf"config\.json.* {key}"):
            ask(folder)
        file.write_text(json.dumps(config | {key: "64"}))
        with pytest.raises(ValueError, match=f"{key}='64'"):
            ask(folder)
    for text in ("{bad", "[]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json .*JSON"):
            hf_model_node(folder)


def test_what_our_model_cannot_be_is_refused_with_the_way_out(tmp_path):
    def write(**changes):
        config = {
            "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 9,
            "intermediate_size": 32, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
        }  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config | changes))

    write()
    assert hf_model_node(tmp_path)["rope_theta"] == 10000.0 and hf_model_node(tmp_path)["num_kv_heads"] == 4
    write(rope_theta=500.0)
    assert hf_model_node(tmp_path)["rope_theta"] == 500.0
    for changes, name in (
        ({"model_type": "gpt2"}, "model_type=gpt2"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_parameters"),
        ({"head_dim": 32}, "head_dim"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "mixtral", "sliding_window": 4}, "sliding_window"),
    ):
        write(**changes)
        with pytest.raises(ValueError, match=rf"{name}.*model=hf"):
            hf_model_node(tmp_path)
    write()
    with pytest.raises(ValueError, match=r"model\.context=9 .*8"):
        hf_model_node(tmp_path, context=9)
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        hf_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="parametrization=standard"):
        load_hf(Transformer(9, parametrization=MuP()), tmp_path)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "modernbert"])
def test_depth_cuts_settings_that_have_an_entry_a_layer(kind, tmp_path):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {} if kind == "modernbert" else {"num_key_value_heads": 2, "head_dim": 8}
    HFModel(48, kind, "random", sizes, context=16).inner.save_pretrained(tmp_path)
    for weights in ("pretrained", "random"):
        cut = HFModel(48, str(tmp_path), weights, depth=1, context=16)
        assert len(cut.blocks) == 1 == len(cut.config.layer_types)
        assert cut(Batch(torch.randint(48, (1, 5)))).hidden.shape == (1, 5, 32)


LLAMA = {"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 64, "max_position_embeddings": 16}
ODD = [
    ("model_type", None), ("model_type", ["llama"]), ("vocab_size", "50"), ("vocab_size", -3), ("vocab_size", 1 << 40),
    ("num_hidden_layers", 10**7), ("num_hidden_layers", True), ("num_hidden_layers", 2.5), ("hidden_size", 10**9),
    ("num_attention_heads", -1), ("num_local_experts", 10**9), ("rms_norm_eps", "small"), ("rms_norm_eps", -1.0),
    ("rms_norm_eps", float("nan")), ("rope_theta", float("inf")), ("n_layer", 10**7),
    ("max_position_embeddings", 10**9), ("n_positions", 10**9), ("n_ctx", -1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ODD)
def test_an_impossible_number_in_config_json_is_named_at_once(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {key: value}))
    named = re.escape(f"config.json: {key}={value!r}")
    for read in (hf_model_node, lambda folder: HFModel(50, str(folder), "random", context=16)):
        with pytest.raises(ValueError, match=named):
            read(tmp_path)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "text_config"])
def test_kernels_of_the_hub_are_not_run_because_config_json_names_them(key, tmp_path):
    value = {"_experts_implementation": {"": "evil/kernel"}} if key == "text_config" else "evil/kernel"
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {key: value}))
    for read in (hf_model_node, native_model, lambda folder: HFModel(50, str(folder), "random", context=16)):
        with pytest.raises(ConfigError, match="_implementation=evil/kernel"):
            read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"_attn_implementation": "eager"}))
    assert hf_model_node(tmp_path)["depth"] == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 10**7}, r"model\.config: num_hidden_layers=10000000 .* 10,000"),
        ({"num_hidden_layers": 10_000, "hidden_size": 2**20}, r"10000 layers of width 1048576 needs .* GiB"),
    ],
    ids=str,
)
def test_a_size_on_the_command_line_that_cannot_be_is_refused_before_anything_is_built(sizes, message):
    with pytest.raises(ConfigError, match=message):
        configuration("llama", "random", sizes)


def rate_of(*settings) -> float | None:
    """What a run of this model would learn at, which is asked before the model is built."""
    node = {"_target_": "kleiber.models.HFModel", **dict(zip(("path", "weights", "config"), settings, strict=True))}
    return default_learning_rate({"model": node, "optimizer": {"_target_": "kleiber.optimizers.AdamW"}}, trained=False)


def test_a_config_that_the_architecture_cannot_have_is_refused_in_one_sentence():
    wrong = {"hidden_size": 32, "num_attention_heads": 2}
    for refused in (partial(HFModel, 50), rate_of):
        with pytest.raises(ValueError, match=r"model\.config(.|\n)*d_head"):
            refused("xlnet", "random", wrong)
    rows = HFModel(50, "xlnet", "random", {"d_model": 32, "n_head": 2, "d_head": 16, "n_layer": 1}, context=16)
    assert rows(Batch(torch.zeros(1, 16, dtype=torch.long))).hidden.shape == (1, 16, 32), "positions without end"


@pytest.mark.parametrize("content", ["{}", "[]", '"a"', "[" * 100_000, '{"model_type": "\x00'])
def test_an_odd_config_json_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    for read in (hf_model_node, hf_vocab_size, native_model, lambda folder: HFModel(50, str(folder))):
        with pytest.raises(ValueError, match=r"config\.json"):
            read(tmp_path)


@pytest.mark.parametrize("rope", [[1], {"rope_theta": "x"}, {"rope_theta": float("nan")}, {"rope_theta": -1}])
def test_odd_rotary_settings_are_named(rope, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"rope_parameters": rope}))
    with pytest.raises(ValueError, match="rope_parameters"):
        hf_model_node(tmp_path)


def test_chat_templates_are_downloaded_and_pickles_and_code_are_not(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    patterns: list[str] = []
    monkeypatch.setattr(hub, "local_copy", lambda _: None)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda _, allow_patterns, **__: patterns.extend(allow_patterns) or tmp_path
    )
    assert model_folder("owner/name") == tmp_path
    files = ["chat_template.jinja", "model.safetensors", "pytorch_model.bin", "modeling.py", "tokenizer.json"]
    assert [file for file in files if any(fnmatch(file, pattern) for pattern in patterns)] == [
        "chat_template.jinja", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
