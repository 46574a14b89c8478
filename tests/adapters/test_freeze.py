"""Freezing: each selector means what it says, and nothing else changes."""

from functools import partial

import pytest
import torch

from kleiber.adapters.freeze import PARTS, Freeze, parts
from kleiber.models.lstm import LSTM
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe


def build(**options) -> Transformer:
    mlp = partial(interleaved_moe, num_experts=4, num_shared=1)
    return Transformer(23, **{"depth": 3, "width": 32, "context": 16, "tied": False, "mlp": mlp} | options)


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_every_parameter_is_of_the_part_it_is_named_for():
    model = build()
    model.add_head("task", 2)
    of = parts(model)
    assert set(of.values()) == set(PARTS) and list(of) == [n for n, _ in model.named_parameters()]
    assert of["embedding.weight"] == "embedding" and of["head.weight"] == "head" and of["norm.weight"] == "norms"
    assert of["blocks.1.mlp.router.linear.weight"] == "router" and of["blocks.1.mlp.experts.down"] == "experts"
    assert of["blocks.1.mlp.shared.down.weight"] == "mlp" and of["blocks.0.attention.q_norm.weight"] == "norms"
    assert of["blocks.2.attention.out.weight"] == "attention" and of["heads.task.bias"] == "heads"


@pytest.mark.parametrize("selector", [part for part in PARTS if part != "heads"])
def test_a_part_can_be_frozen_or_trained_alone(selector):
    model, of = build(), parts(build())
    Freeze(freeze=[selector]).apply(model, 0)
    assert trained(model) == {name for name, part in of.items() if part != selector}
    model = build()
    Freeze(train=[selector], freeze=[]).apply(model, 0)
    assert trained(model) == {name for name, part in of.items() if part == selector}


def test_layers_are_counted_from_0_and_ranges_hold_both_ends():
    model = build()
    Freeze(freeze=["layers.0-1", "embedding"]).apply(model, 0)
    assert {name.split(".")[1] for name in trained(model) if name.startswith("blocks.")} == {"2"}
    assert "embedding.weight" not in trained(model) and "head.weight" in trained(model)
    model = build()
    Freeze(train=["layers.1"], freeze=["router"]).apply(model, 0)
    assert {name.split(".")[1] for name in trained(model)} == {"1"} and not any("router" in n for n in trained(model))


def test_heads_of_tasks_train_unless_they_are_named_and_merging_frees_all():
    model = build()
    model.add_head("task", 2)
    adapter = Freeze(train=["norms"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapter.apply(model, 0)
    assert {n for n in trained(model) if n.startswith("heads.")} == {"heads.task.weight", "heads.task.bias"}
    Freeze(train=["norms"], freeze=["heads"]).apply(model, 0)
    assert not any(n.startswith("heads.") for n in trained(model))
    adapter.merge(model)
    assert trained(model) == set(before) and all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_recurrence_is_in_place_of_attention():
    assert parts(LSTM(23, width=16, context=8))["blocks.0.lstm.weight_ih_l0"] == "attention"


def test_what_did_not_train_before_does_not_train_now():
    model = build()
    model.add_head("task", 2)
    model.freeze_head()
    Freeze(freeze=["router"]).apply(model, 0)
    assert "head.weight" not in trained(model) and "heads.task.weight" in trained(model)


def test_parts_that_the_model_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"adapter\.freeze="):
        Freeze()
    with pytest.raises(ValueError, match=r"adapter\.freeze: experst.*Did you mean 'experts'"):
        Freeze(freeze=["experst"]).apply(build(), 0)
    with pytest.raises(ValueError, match=r"layers\.7"):
        Freeze(freeze=["layers.7"]).apply(build(), 0)
    with pytest.raises(ValueError, match="tied=true"):
        Freeze(train=["head"]).apply(build(tied=True), 0)
    with pytest.raises(ValueError, match=r"adapter\.train=\['layers\.0'\]"):
        Freeze(train=["layers.0"], freeze=["layers.0-1"]).apply(build(), 0)
    with pytest.raises(ValueError, match=r"embedding.*adapter\.freeze=\[head\]"):
        Freeze(train=["embedding", "norms"], freeze=["embedding", "head"])
