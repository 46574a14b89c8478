"""The divergence from the old model is 0 where nothing has moved, and the textbook's number elsewhere."""

import numpy as np
import pytest
import torch

from kleiber.objectives.clm import CLM
from kleiber.retention.lwf import LwF
from kleiber.types.contracts import Task

from .toys import NEW, OLD, TASKS, Labels, learned, padded_batch, penalty_of, step_gradient, train


@pytest.mark.parametrize("source", ["new", "real"])
def test_it_is_zero_at_the_first_step_and_so_is_its_gradient(source):
    net, method = learned(), LwF(2.0, source=source)
    method.begin_stage(net, TASKS, 0)
    method.data(NEW, TASKS, CLM())
    found = penalty_of(method, net, NEW.gather(np.arange(8)))
    assert found.value.item() == 0.0
    found.value.backward()
    assert max(p.grad.abs().max().item() for p in net.parameters() if p.grad is not None) < 1e-7


def test_it_is_strength_times_the_mean_divergence():
    net, method = learned(), LwF(2.0, temperature=1.5)
    method.begin_stage(net, TASKS, 0)
    method.data(NEW, TASKS, CLM())
    old = learned()
    train(net, NEW, 10)
    batch = NEW.gather(np.arange(8))
    found = penalty_of(method, net, batch, 3)
    with torch.no_grad():
        before, after = ((m.head(CLM().predictions(m, batch).hidden) / 1.5).log_softmax(-1) for m in (old, net))
        exact = 1.5**2 * (before.exp() * (before - after)).sum(-1).mean()
    assert found.value.item() == pytest.approx(2 * exact.item(), rel=1e-4) and exact > 0.01
    assert found.metrics["lwf"].item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("rows", [4, 1])
def test_the_penalty_of_a_step_does_not_depend_on_its_micro_batches(rows):
    """The stage has a target per row, and the earlier task one per token."""
    net, method = learned(), LwF(2.0)
    method.begin_stage(net, TASKS, 0)
    method.data(NEW, TASKS, Labels())
    train(net, NEW, 3)
    whole, means = step_gradient(net, Labels(), padded_batch(), 8, [method])
    split, split_means = step_gradient(net, Labels(), padded_batch(), rows, [method])
    assert torch.allclose(split, whole, atol=1e-5 * whole.abs().max().item())
    assert split_means["retention/lwf"].item() == pytest.approx(means["retention/lwf"].item(), rel=1e-4)
    without, _ = step_gradient(net, Labels(), padded_batch(), 8, [])
    assert not torch.allclose(without, whole, atol=1e-3 * whole.abs().max().item())


def test_the_old_model_stays_what_it_was():
    net, method = learned(), LwF()
    method.begin_stage(net, TASKS, 0)
    method.data(NEW, TASKS, CLM())
    train(net, NEW, 5, [method])
    for name, value in learned().state_dict().items():
        assert torch.equal(method.memory["old"][name], value)
    assert list(method.parameters()) == []


def test_an_objective_without_predictions_is_refused():
    class Preferences(CLM):
        has_predictions = False

    method = LwF()
    tasks = [Task("old", Preferences(), OLD, OLD)]
    method.begin_stage(learned(), tasks, 0)
    with pytest.raises(ValueError, match=r"objective=Preferences.* old "):
        method.data(NEW, tasks, CLM())
    with pytest.raises(ValueError, match="earlier task"):
        LwF().data(NEW, [], CLM())
