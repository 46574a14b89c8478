"""Next-token cross-entropy: its definition, weights and padding, the z-loss, and the distributions it is a loss of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.objectives.clm import CLM, next_token_inputs
from kleiber.types.batch import Batch


def model(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(64, depth=1, width=32, context=16, **options)


def text(rows: int = 3, time: int = 17) -> torch.Tensor:
    return torch.randint(0, 64, (rows, time), generator=torch.Generator().manual_seed(0))


def each_loss(net: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    logits = net.head(net(Batch(tokens[:, :-1])).hidden)
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def test_the_loss_is_the_sum_of_the_cross_entropies_of_the_targets() -> None:
    net, tokens = model(), text()
    loss = CLM()(net, Batch(tokens))
    assert loss.total.item() == pytest.approx(each_loss(net, tokens).sum().item(), rel=1e-5)
    assert loss.tokens.item() == tokens[:, 1:].numel() and loss.metrics["ce"].item() == pytest.approx(loss.total.item())


def test_the_targets_are_counted_without_a_forward_pass() -> None:
    net, tokens = model(), text()
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    real = torch.arange(17) < torch.tensor([[17], [9], [4]])
    for batch in (Batch(tokens), Batch(tokens, weights=weights), Batch(tokens, real=real, weights=weights)):
        assert CLM().targets(net, batch) == CLM()(net, batch).tokens


def test_a_weight_counts_at_the_target_and_padding_is_no_target() -> None:
    net, tokens = model(), text()
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    loss = CLM()(net, Batch(tokens, weights=weights))
    expected = (each_loss(net, tokens) * weights[:, 1:]).sum().item()
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.tokens.item() == pytest.approx(weights[:, 1:].sum().item())
    real = torch.arange(17) < torch.tensor([[17], [9], [2]])
    assert CLM()(net, Batch(tokens, real)).tokens.item() == 16 + 8 + 1


def test_the_z_loss_is_trained_and_left_out_of_the_metric() -> None:
    net, batch = model(), Batch(text())
    plain, regularized = CLM()(net, batch), CLM(z_loss=0.1)(net, batch)
    log_normalizer = net.head(net(next_token_inputs(batch)).hidden).logsumexp(-1)
    added = 0.1 * log_normalizer.square().sum().item()
    assert (regularized.total - plain.total).item() == pytest.approx(added, rel=1e-3)
    assert regularized.metrics["ce"].item() == pytest.approx(plain.metrics["ce"].item(), rel=1e-6)


def test_the_predictions_are_the_distributions_of_the_loss() -> None:
    net, tokens = model(), text()
    weights = torch.ones(tokens.shape)
    weights[:, :5] = 0
    batch = Batch(tokens, weights=weights)
    predictions = CLM().predictions(net, batch)
    logits = predictions.head(predictions.hidden)
    each = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    assert (each * predictions.weights).sum().item() == pytest.approx(CLM()(net, batch).total.item(), rel=1e-5)


def test_the_auxiliary_loss_of_experts_is_part_of_the_trained_loss_alone() -> None:
    net = model(mlp=lambda site: MoE(site, num_experts=4, k=2))
    loss = CLM()(net, Batch(text()))
    assert (loss.total - loss.metrics["ce"]).item() == pytest.approx(loss.metrics["loss"].item(), rel=1e-3)
    assert loss.metrics["load/0"].sum().item() == 2 * text()[:, 1:].numel()


def test_the_auxiliary_loss_per_target_is_the_mean_per_token_however_few_the_targets() -> None:
    net = model(mlp=lambda site: MoE(site, num_experts=4, k=2))
    weights = torch.zeros(text().shape)
    weights[:, -2:] = 1
    whole, marked = CLM()(net, Batch(text())), CLM()(net, Batch(text(), weights=weights))
    assert marked.tokens.item() == 6
    assert (marked.metrics["loss"] / 6).item() == pytest.approx((whole.metrics["loss"] / whole.tokens).item())
    assert torch.equal(marked.metrics["load/0"], whole.metrics["load/0"])


def test_inputs_leave_out_the_last_token_of_every_field() -> None:
    tokens = text()
    segments, real = torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool)
    inputs = next_token_inputs(Batch(tokens, real=real, segments=segments, samples=torch.arange(3)))
    assert torch.equal(inputs.tokens, tokens[:, :-1]) and inputs.samples is not None
    assert inputs.real is not None and inputs.segments is not None
    assert inputs.real.shape == inputs.segments.shape == inputs.tokens.shape


def test_bidirectional_models_and_short_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="objective=clm"):
        CLM().check(model(causal=False))
    with pytest.raises(ValueError, match="2 tokens"):
        CLM()(model(), Batch(text(time=1)))
