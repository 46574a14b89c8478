"""Equal logits of a Transformer and its Hugging Face twin, converted in both directions, over all options."""

from functools import partial

import pytest
import torch

from kleiber.models.hf_twin import from_hf, to_hf
from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.mlp import GELU, SwiGLU
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.mup import MuP, StandardParametrization
from kleiber.nn.routers.topk import Switch
from kleiber.nn.window import WindowAttention
from kleiber.types.batch import Batch

MLPS = {
    "dense": SwiGLU,
    "top 2": partial(interleaved_moe, num_experts=4, k=2),
    "top 3": partial(interleaved_moe, num_experts=4, k=3),
    "every 2": partial(interleaved_moe, num_experts=4, every=2),
    "switch": partial(interleaved_moe, num_experts=4, k=1, router=Switch),
}
TWINS = {(False, False): "Llama", (True, False): "Qwen3", (False, True): "Mixtral", (True, True): "Qwen3Moe"}


def build(**options) -> Transformer:
    """Random weights, gains away from 1, logits of order 1; no multiplier is 1 at this width and depth under MuP."""
    torch.manual_seed(0)
    model = Transformer(50, **{"depth": 3, "width": 64, "context": 16, "num_heads": 2} | options)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif isinstance(model.parametrization, StandardParametrization) or parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def both_ways(model: Transformer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    ids = torch.randint(50, (2, 12))
    twin = to_hf(model)
    back = from_hf(twin)
    ours, again = (m.head(m(Batch(ids)).hidden) for m in (model, back))
    return ours, twin(ids).logits, again, type(twin).__name__


@pytest.mark.slow
@pytest.mark.parametrize("parametrization", [MuP(), StandardParametrization()], ids=["mup", "standard"])
@pytest.mark.parametrize("mlp", ["dense", "top 2", "top 3"])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv", [1, 2])
def test_logits_agree_both_ways(kv, tied, qk_norm, mlp, parametrization):
    model = build(num_kv_heads=kv, tied=tied, qk_norm=qk_norm, mlp=MLPS[mlp], parametrization=parametrization)
    ours, twin, again, name = both_ways(model)
    assert name == TWINS[qk_norm, mlp != "dense"] + "ForCausalLM" and float(twin.std()) > 0.1
    torch.testing.assert_close(ours, twin, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, twin, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mlp", ["every 2", "switch"])
def test_dense_layers_between_and_raw_probabilities_have_a_twin_with_qk_norm(mlp):
    ours, twin, again, name = both_ways(build(mlp=MLPS[mlp]))
    assert name == "Qwen3MoeForCausalLM"
    torch.testing.assert_close(ours, twin, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, twin, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="qk_norm"):
        to_hf(build(mlp=MLPS[mlp], qk_norm=False))


def test_a_twin_that_is_saved_and_loaded_gives_the_same_logits(tmp_path):
    from transformers import AutoModelForCausalLM

    twin, ids = to_hf(build(mlp=MLPS["top 2"]), eos=0), torch.randint(50, (1, 9))
    twin.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, twin(ids).logits)
    assert loaded.config.eos_token_id == 0 and loaded.config.bos_token_id is None


def test_exporting_leaves_the_model_and_the_random_numbers_alone():
    model = build()
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.random.get_rng_state()
    to_hf(model)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert torch.equal(state, torch.random.get_rng_state())


REFUSED = {
    "Window": {"attention": partial(WindowAttention, window=4)},
    "GELU": {"mlp": GELU},
    "norm=post": {"norm": "post"},
    "norm_type=layernorm": {"norm_type": "layernorm"},
    "positions=none": {"attention": partial(FullAttention, positions="none")},
    "positions=alibi": {"positions": "alibi"},
    "positions=learned": {"positions": "learned"},
    "attention.soft_cap=30.0": {"attention": partial(FullAttention, soft_cap=30.0)},
    "value_residual": {"attention": partial(FullAttention, value_residual=True)},
    "causal": {"causal": False},
    "soft_cap": {"soft_cap": 30.0},
    "shared": {"mlp": partial(interleaved_moe, num_experts=4, num_shared=1)},
}


@pytest.mark.parametrize("part", REFUSED)
def test_a_model_without_a_twin_is_refused_by_name(part):
    with pytest.raises(ValueError, match=part):
        to_hf(build(**REFUSED[part]))


def test_another_architecture_is_refused_by_name():
    twin = to_hf(build())
    twin.config.attention_bias = True
    with pytest.raises(ValueError, match="attention_bias=True"):
        from_hf(twin)
    twin.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="'gpt2'"):
        from_hf(twin)
