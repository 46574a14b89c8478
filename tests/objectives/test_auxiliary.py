"""Auxiliary losses are part of every loss, as means per token that do not depend on the share of targets."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe
from kleiber.objectives.auxiliary import loss_with_auxiliary, real_tokens
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.training.step import share_auxiliary_ratio
from kleiber.types.batch import Batch, Output
from kleiber.types.contracts import Objective

TOKENS = torch.zeros(2, 5, dtype=torch.long)


def output(**auxiliary: torch.Tensor) -> Output:
    return Output(torch.zeros(2, 5, 3), {name.replace("_", "/"): value for name, value in auxiliary.items()})


def test_the_auxiliary_loss_is_trained_and_reported_and_not_part_of_the_metrics_before() -> None:
    total, metrics = torch.tensor(6.0, requires_grad=True), {"ce": torch.tensor(6.0)}
    result = output(loss=torch.tensor(0.5), load_0=torch.ones(4))
    loss = loss_with_auxiliary(total, 3, metrics, result, Batch(TOKENS), marked=False)
    assert loss.total.item() == 6.5 and loss.tokens.item() == 3.0
    assert set(loss.metrics) == {"ce", "loss", "load/0"} and loss.metrics["ce"].item() == 6.0
    assert loss_with_auxiliary(total, torch.tensor(2.0), metrics, output(), Batch(TOKENS)).total is total


def test_sums_are_means_per_token_after_division_by_the_number_of_targets() -> None:
    result = output(loss=torch.tensor(8.0), load_0=torch.ones(4))
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    zero = torch.zeros(())
    for rows, tokens in ((Batch(TOKENS), 10), (Batch(TOKENS, real), 8)):
        loss = loss_with_auxiliary(zero, 2, {}, result, rows)
        assert real_tokens(rows) == tokens and (loss.total / loss.tokens).item() == pytest.approx(8 / tokens)
        assert torch.equal(loss.metrics["load/0"], torch.ones(4))
    step = torch.tensor([0.25, 0.25], dtype=torch.float64)
    assert loss_with_auxiliary(zero, 2, {}, result, Batch(TOKENS), step).total.item() == 2.0


def mixture(causal: bool) -> Transformer:
    torch.manual_seed(0)
    mlp = partial(interleaved_moe, num_experts=4)
    return Transformer(272, depth=1, width=16, context=64, num_heads=2, causal=causal, mlp=mlp).double()


def marked_batch(marked: int, rows: int = 16) -> Batch:
    tokens = torch.randint(0, 256, (rows, 65), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(rows, 65, dtype=torch.float64)
    weights[:, 64 - marked :] = 1
    return Batch(tokens, weights=weights, samples=torch.arange(rows))


OBJECTIVES = [CLM(), MLM(Bytes())]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_balance_loss_per_target_does_not_depend_on_the_share_of_targets(objective: Objective) -> None:
    net = mixture(causal=isinstance(objective, CLM))
    losses = [objective(net, marked_batch(marked)) for marked in (63, 8)]
    balance = [(loss.metrics["balance/0"] / loss.tokens).item() for loss in losses]
    # The model of MLM reads other masks in each case.
    assert losses[0].tokens > 5 * losses[1].tokens and balance[0] == pytest.approx(balance[1], rel=0.05)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_step_does_not_depend_on_the_micro_batches(objective: Objective) -> None:
    net, batch = mixture(causal=isinstance(objective, CLM)), marked_batch(20)
    batch.weights[:9, :60] = 0  # type: ignore[index]
    whole = objective(net, batch)
    parts = [objective(net, part) for part in share_auxiliary_ratio(net, objective, batch.split(3))]
    total = sum(part.total for part in parts)
    torch.testing.assert_close(total, whole.total, rtol=1e-6, atol=0)
