"""Rounded weights: levels per output channel, losses of a rounded model, and a model that is as before afterwards."""

import pytest
import torch
from evals.routing.moe_text import moe_subject
from evals.small_models import tiny

from kleiber.evals.perplexity import Perplexity
from kleiber.evals.quantized import Quantized, round_to_nearest, rounded_matrices


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("shape", [(5, 40), (3, 40, 5)])
def test_each_output_channel_has_its_levels(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6).reshape(
        (5, 1) if len(shape) == 2 else (1, 1, 5)
    )
    rounded = round_to_nearest(weight, bits)
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((rounded - weight).abs() <= step / 2 + 1e-6).all()
    assert rounded.div(step).round().sub(rounded.div(step)).abs().max() < 1e-4
    assert rounded.abs().amax(1) == pytest.approx(weight.abs().amax(1))


def test_a_channel_of_zeros_stays_zero():
    assert round_to_nearest(torch.zeros(3, 4), 4).equal(torch.zeros(3, 4))


@pytest.mark.parametrize("kind", ["plain", "moe", "lstm"])
def test_only_matrices_in_blocks_change_and_all_are_restored(kind):
    model = tiny(kind)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    roles = model.roles()
    with rounded_matrices(model, 3):
        changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert changed and all(roles[name].kind == "hidden" for name in changed)
    assert {name for name in before if roles[name].kind == "hidden" and before[name].ndim > 1} == changed
    with pytest.raises(RuntimeError, match="stop"), rounded_matrices(model, 3):
        raise RuntimeError("stop")
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())


def test_losses_of_rounded_models_have_intervals_and_differences():
    subject = moe_subject()
    plain = Perplexity().evaluate(subject).scores
    scores = Quantized(bits=[2, 16]).evaluate(subject).scores
    assert set(scores) == {"low", "high"}
    for domain, row in scores.items():
        loss = plain[domain]["loss"].value
        assert set(row) == {"loss_2", "added_2", "loss_16", "added_16"}
        assert row["loss_16"].value == pytest.approx(loss, abs=1e-3) != row["loss_2"].value
        assert row["added_2"].value == pytest.approx(row["loss_2"].value - loss, abs=1e-6)
        assert row["loss_2"].lo < row["loss_2"].value < row["loss_2"].hi and row["loss_2"].n == plain[domain]["loss"].n


def test_bits_are_those_of_the_config():
    assert Quantized().bits == [8, 6, 4, 3]
