"""Distances are 0 at the start, and elsewhere what the definition says."""

import numpy as np
import pytest
import torch
from retention.toys import NEW, OLD, learned, train

from kleiber.data.batches import evaluation_batches
from kleiber.evals.drift import distance, divergence
from kleiber.objectives.clm import CLM
from kleiber.types.contracts import Objective

CPU = torch.device("cpu")


def test_nothing_has_moved_at_the_start():
    net = learned()
    assert distance(learned(), net) == {"l2": 0.0, "relative": 0.0}
    sums = divergence(learned(), net, CLM(), evaluation_batches(OLD, 64), CPU)
    assert sums.means()["kl"].item() == 0.0


def test_they_are_the_textbooks_after_training():
    start, net = learned(), learned()
    train(net, NEW, 10)
    kl = divergence(start, net, CLM(), evaluation_batches(OLD, 64), CPU).means()["kl"].item()
    batch = OLD.gather(np.arange(len(OLD)))
    with torch.no_grad():
        before, after = (m.head(CLM().predictions(m, batch).hidden).log_softmax(-1) for m in (start, net))
    assert kl == pytest.approx((before.exp() * (before - after)).sum(-1).mean().item(), rel=1e-4) and kl > 0.01
    assert kl == pytest.approx(divergence(start, net, CLM(), evaluation_batches(OLD, 7), CPU).means()["kl"].item())
    moved = [(a - b).flatten() for a, b in zip(net.parameters(), start.parameters(), strict=True)]
    assert distance(start, net)["l2"] == pytest.approx(torch.cat(moved).norm().item(), rel=1e-5)


def test_an_objective_without_a_distribution_is_refused():
    with pytest.raises(ValueError, match="predicts no distribution"):
        divergence(learned(), learned(), Objective(), [], CPU)
