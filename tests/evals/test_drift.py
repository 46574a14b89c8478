"""Distances of models and of expert loads: 0 without a change, and elsewhere what their definitions say."""

import numpy as np
import pytest
import torch
from evals.routing.moe_text import Rows, moe_subject
from retention.toys import NEW, OLD, learned, train

from kleiber.data.batches import evaluation_batches
from kleiber.evals.drift import (
    divergence,
    drift_metrics,
    expert_loads,
    load_shifts,
    merge_copy,
    total_variation,
    untrained_losses,
    weight_distance,
)
from kleiber.evals.task_scores import Runtime
from kleiber.objectives.clm import CLM
from kleiber.types.contracts import Objective, Task
from kleiber.types.model import Model
from kleiber.types.score import values_of

CPU = torch.device("cpu")


@pytest.mark.slow
def test_equal_models_have_no_distance():
    net = learned()
    assert weight_distance(learned(), net) == {"l2": 0.0, "relative": 0.0}
    sums = divergence(learned(), net, CLM(), evaluation_batches(OLD, 64), CPU)
    assert sums.means()["kl"].item() == 0.0


@pytest.mark.slow
def test_distances_after_training_equal_their_definitions():
    start, net = learned(), learned()
    train(net, NEW, 10)
    kl = divergence(start, net, CLM(), evaluation_batches(OLD, 64), CPU).means()["kl"].item()
    batch = OLD.gather(np.arange(len(OLD)))
    with torch.no_grad():
        before, after = (m.head(CLM().predictions(m, batch).hidden).log_softmax(-1) for m in (start, net))
    assert kl == pytest.approx((before.exp() * (before - after)).sum(-1).mean().item(), rel=1e-4) and kl > 0.01
    assert kl == pytest.approx(divergence(start, net, CLM(), evaluation_batches(OLD, 7), CPU).means()["kl"].item())
    moved = [(a - b).flatten() for a, b in zip(net.parameters(), start.parameters(), strict=True)]
    assert weight_distance(start, net)["l2"] == pytest.approx(torch.cat(moved).norm().item(), rel=1e-5)


def test_an_objective_without_a_distribution_is_refused():
    with pytest.raises(ValueError, match="objective=Objective"):
        divergence(learned(), learned(), Objective(), [], CPU)


def test_the_metrics_of_a_dense_model_are_its_weights_and_divergences():
    start, net = learned(), learned()
    train(net, NEW, 3)
    tasks = [Task("old", CLM(), OLD), Task("unscored", Objective(), OLD)]
    metrics = values_of(drift_metrics(start, net, tasks, [Task("new", CLM(), NEW)], 10**9, 16, Runtime()))
    assert set(metrics) == {"drift/weights", "drift/old/kl"}
    assert metrics["drift/weights"] == weight_distance(start, net)["relative"] > 0


def test_the_untrained_loss_is_that_of_the_untrained_model():
    net = learned()
    losses = values_of(untrained_losses(net, [Task("old", CLM(), OLD)], 10**9, 16, Runtime()))
    loss = CLM()(net, OLD.gather(np.arange(len(OLD))))
    assert losses == {"drift/old/untrained": pytest.approx((loss.total / loss.tokens).item(), rel=1e-5)}


def test_a_mixture_without_a_change_has_loads_without_a_shift():
    model = moe_subject().model
    tasks = {name: Task(name, CLM(), Rows(low, low + 15)) for name, low in (("low", 0), ("high", 15))}
    loads = expert_loads(model, tasks["low"], 99, 5, Runtime())
    assert set(loads) == {"0", "1"} and float(loads["0"].sum()) == pytest.approx(1)
    metrics = values_of(drift_metrics(model, model, [tasks["low"]], [tasks["high"]], 99, 5, Runtime()))
    assert metrics["drift/low/load_shift/0"] == metrics["drift/high/load_shift/1"] == 0
    assert metrics["drift/low/load_gap_before/0"] == metrics["drift/low/load_gap_after/0"] > 0


def shares(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_total_variation_is_half_the_sum_of_differences():
    assert total_variation(shares(0.5, 0.5, 0.0), shares(0.5, 0.0, 0.5)) == pytest.approx(0.5)
    assert total_variation(shares(1.0, 0.0), shares(0.0, 1.0)) == 1.0
    assert total_variation(shares(0.3, 0.7), shares(0.3, 0.7)) == 0.0


def test_shifts_compare_before_with_after_and_gaps_earlier_text_with_new():
    before = {"docs": {"0": shares(0.5, 0.5)}, "code": {"0": shares(0.9, 0.1)}, "law": {"0": shares(0.5, 0.5)}}
    after = {"docs": {"0": shares(0.2, 0.8)}, "code": {"0": shares(0.9, 0.1)}, "law": {"0": shares(0.7, 0.3)}}
    shifts = load_shifts(before, after, ["docs"], ["code", "law"])
    assert all(score.label.endswith(f" on {key.split('/')[1]}") for key, score in shifts.items())
    assert values_of(shifts) == pytest.approx({
        "drift/docs/load_shift/0": 0.3, "drift/code/load_shift/0": 0.0, "drift/law/load_shift/0": 0.2,
        "drift/docs/load_gap_before/0": 0.2, "drift/docs/load_gap_after/0": 0.6,
    })  # fmt: skip
    assert set(load_shifts(before, after, ["docs"], [])) == {"drift/docs/load_shift/0"}


def zero_embedding(model: Model) -> None:
    torch.nn.init.zeros_(model.embedding.weight)


def test_merging_leaves_the_model_itself_alone():
    net = learned()
    merged = merge_copy(net, zero_embedding)
    assert merge_copy(net, None) is net
    assert not merged.embedding.weight.any() and net.embedding.weight.any()
