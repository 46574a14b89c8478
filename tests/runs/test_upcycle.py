"""An upcycled mixture computes what its dense model does, for every router that allows it; others are refused."""

from functools import partial

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.mlp import GELU
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.patterns import layer_pattern
from kleiber.nn.routers.hash import Hash, Random
from kleiber.nn.routers.sigmoid import GroupLimited, LossFree, Sigmoid
from kleiber.nn.routers.sinkhorn import Sinkhorn  # fmt: skip
from kleiber.nn.routers.topk import Noisy, Switch, TopK
from kleiber.nn.window import WindowAttention
from kleiber.runs.upcycle import check_settings, upcycle
from kleiber.types.batch import Batch

HIDDEN = 96
SIZES = {"depth": 3, "width": 32, "context": 16, "num_heads": 2}


def dense() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(50, **SIZES)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def mixture(**options) -> Transformer:
    torch.manual_seed(1)
    return Transformer(50, **SIZES, mlp=partial(interleaved_moe, **{"num_experts": 4, "hidden": HIDDEN} | options))


def logits(model: Transformer) -> torch.Tensor:
    torch.manual_seed(2)
    return model.head(model(Batch(torch.arange(24).view(2, 12))).hidden)


@pytest.mark.parametrize("router", [TopK, Noisy, Sigmoid, LossFree, partial(GroupLimited, groups=2), Hash, Random])
@pytest.mark.parametrize("every", [1, 2])
def test_at_step_0_it_is_the_dense_model(router, every):
    old, new = dense(), mixture(router=router, every=every)
    assert not torch.allclose(logits(new), logits(old), atol=1e-2)
    upcycle(old.state_dict(), new)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("option", ["noise", "reset"])
def test_noise_and_reset_tell_experts_apart_and_change_the_function_a_little(option):
    old, new = dense(), mixture()
    upcycle(old.state_dict(), new, **{option: 0.1})
    experts = new.blocks[0].mlp.experts
    assert not torch.equal(experts.gate_up[0], experts.gate_up[1])
    with torch.no_grad():
        change = (experts.gate_up[0] - old.blocks[0].mlp.gate_up.weight.T) / old.blocks[0].mlp.gate_up.weight.std()
    moved = float((change != 0).any(0).double().mean())
    assert moved == (1.0 if option == "noise" else pytest.approx(0.1, abs=0.01))
    assert float(change.std()) == pytest.approx(0.1 if option == "noise" else (0.2) ** 0.5, rel=0.2)
    assert (logits(new) - logits(old)).abs().max().item() > 1e-4


@pytest.mark.parametrize(
    "new, key",
    [
        (partial(mixture, router=Switch), "topk"), (partial(mixture, router=Sinkhorn), "topk"),
        (partial(mixture, num_shared=1), "num_shared=0"), (partial(mixture, hidden=48), "hidden=96"),
        (partial(mixture, capacity_factor=1.25), "capacity_factor"), (partial(mixture, granularity=2), "granularity=1"),
        (dense, "model=moe"),
    ],
)  # fmt: skip
def test_what_would_be_another_function_is_refused_and_nothing_is_changed(new, key):
    model = new()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=key):
        upcycle(Transformer(50, **SIZES).state_dict(), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_dense_model_is_refused():
    with pytest.raises(ValueError, match="embedding"):
        upcycle(Transformer(60, **SIZES).state_dict(), mixture())
    with pytest.raises(ValueError, match="swiglu"):
        upcycle(Transformer(50, **SIZES, mlp=GELU).state_dict(), mixture())
    with pytest.raises(ValueError, match="noise"):
        upcycle(dense().state_dict(), mixture(), noise=-1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_that_is_tied_in_one_of_the_two_models_is_refused(tied):
    old, new = (Transformer(50, **SIZES, tied=value) for value in (tied, not tied))
    with pytest.raises(ValueError, match=f"set model.tied={tied}"):
        check_settings(old, new)


@pytest.mark.parametrize(
    ("window", "key"),
    [({"window": 5}, "window=4"), ({"soft_cap": 2.0}, "soft_cap=null"), ({"num_heads": 4}, "heads=2")],
)
def test_another_setting_of_one_layer_of_a_pattern_is_refused(window, key):
    pattern = [
        partial(layer_pattern, window=partial(WindowAttention, **{"window": 4, "qk_norm": False} | options))
        for options in ({}, window)
    ]
    old, other = (Transformer(50, depth=2, width=32, context=16, attention=kind) for kind in pattern)
    check_settings(old, old)
    with pytest.raises(ValueError, match=f"set model.*{key}"):
        check_settings(old, other)
