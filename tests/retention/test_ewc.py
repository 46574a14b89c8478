"""The Fisher information is the true one, and the penalty has the minimum that a quadratic says it has."""

import pytest
import torch
from torch import nn

from kleiber.objectives.clm import CLM
from kleiber.retention.ewc import EWC, fisher, raw_fisher
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective, Predictions, Samples, Task
from kleiber.types.model import Model

from .toys import NEW, OLD, TASKS, Language, learned, model, train


class Weights(Model):
    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))


def test_on_a_quadratic_the_minimum_is_the_weighted_mean_of_both_optima():
    """h/2 (w - b)^2 + strength F/2 (w - a)^2 has its least at (h b + strength F a) / (h + strength F)."""
    a, b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 3.0, 0.7])
    h, importance, strength = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 0.0, 2.5]), 1.7
    net, method = Weights([0.0, 0.0, 0.0]), EWC(strength)
    method.memory = {"start": {"weight": a}, "fisher": {"weight": importance}, "tasks": {}}
    for step in range(400):
        net.weight.grad = h * (net.weight.detach() - b)
        told = method.gradients(net, step)
        net.weight.data -= 0.1 * net.weight.grad
    least = (h * b + strength * importance * a) / (h + strength * importance)
    assert net.weight.tolist() == pytest.approx(least.tolist(), abs=1e-5)
    away = least - a
    assert told["ewc"].item() == pytest.approx((strength / 2 * importance * away**2).sum().item(), rel=1e-4)


class Softmax(Model):
    """Softmax regression: rows of a batch's features straight into an output layer."""

    def __init__(self, outcomes, features):
        super().__init__()
        self.head = nn.Linear(features, outcomes, bias=False)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


class Regression(Objective):
    has_predictions = True

    def __call__(self, net, batch):
        raise AssertionError("the Fisher information asks for no data label")

    def predictions(self, net, batch):
        return Predictions(batch.labels, net.head, torch.ones(batch.labels.shape[:-1]))


class Features(Samples):
    """Sequences of three rows of features each, the same few over and over."""

    def __init__(self, features, times):
        self.features, self.times = features, times
        self.num_tokens = self.num_bytes = len(self)

    def __len__(self):
        return len(self.features) * self.times

    def gather(self, index, epoch=0):
        rows = self.features[torch.from_numpy(index % len(self.features))]
        return Batch(torch.zeros(rows.shape[:2], dtype=torch.long), labels=rows)


@pytest.mark.slow
def test_it_equals_the_analytic_one_of_softmax_regression():
    """F_ij = mean over sequences of sum_t p_ti (1 - p_ti) x_tj^2: labels of a sequence are drawn independently."""
    torch.manual_seed(0)
    net, features = Softmax(4, 3), torch.randn(2, 3, 3)
    task = Task("x", Regression(), OLD, Features(features, 800))
    found = raw_fisher(net, task, 1600, seed=0)
    p = net.head(features).softmax(-1)
    exact = torch.einsum("sto,stj->oj", p * (1 - p), features**2) / 2
    assert list(found) == ["head.weight"], "what is not trained has none"
    assert torch.allclose(found["head.weight"], exact, rtol=0.2)


@pytest.mark.slow
def test_it_is_of_single_sequences_and_has_mean_one():
    net = learned()
    few, many = raw_fisher(net, TASKS[0], 20, 0), raw_fisher(net, TASKS[0], 120, 0)
    mean = [sum(f.sum() for f in found.values()).item() for found in (few, many)]
    assert mean[0] == pytest.approx(mean[1], rel=0.3), "the square of a batch's mean gradient would shrink with it"
    values = torch.cat([f.flatten() for f in fisher(net, TASKS[0], 20, 0).values()])
    assert values.mean().item() == pytest.approx(1, rel=1e-5) and bool((values >= 0).all())


def test_the_penalty_is_zero_at_the_start_and_positive_after():
    net = learned()
    method = EWC(1.0, samples=16)
    method.begin_stage(net, TASKS, 0)
    assert train(net, NEW, 1, [method])["ewc"] == 0
    assert train(net, NEW, 2, [method], start=1)["ewc"] > 0


@pytest.mark.slow
def test_online_information_decays_and_knows_each_task_once():
    net, method = learned(), EWC(samples=16, gamma=0.5)
    method.begin_stage(net, TASKS, 0)
    first = method.memory["fisher"]["norm.weight"]
    method.begin_stage(net, TASKS, 0)
    assert torch.equal(method.memory["fisher"]["norm.weight"], first), "no new task, nothing to add or to forget"
    middle = Language(3, 60)
    tasks = [*TASKS, Task("middle", CLM(), middle, middle)]
    method.begin_stage(net, tasks, 0)
    alone = fisher(net, tasks[1], 16, 0)["norm.weight"]
    assert torch.allclose(method.memory["fisher"]["norm.weight"], 0.5 * first + alone)


@pytest.mark.slow
def test_weights_that_were_frozen_before_get_the_information_of_every_earlier_task():
    net, method, middle = learned(), EWC(samples=16), Language(3, 60)
    tasks = [*TASKS, Task("middle", CLM(), middle, middle)]
    net.norm.requires_grad_(False)
    method.begin_stage(net, TASKS, 0)
    before, table = method.memory["fisher"], "embedding.weight"
    assert "norm.weight" not in before
    resumed = EWC(samples=16)
    resumed.load_state_dict(method.state_dict())
    net.norm.requires_grad_(True)
    resumed.begin_stage(net, tasks, 0)
    old, new = fisher(net, tasks[0], 16, 0), fisher(net, tasks[1], 16, 1)
    assert torch.equal(resumed.memory["fisher"]["norm.weight"], old["norm.weight"] + new["norm.weight"])
    assert torch.equal(resumed.memory["fisher"][table], before[table] + new[table])
    again = resumed.memory["fisher"]
    resumed.begin_stage(net, tasks, 0)
    assert all(torch.equal(value, again[name]) for name, value in resumed.memory["fisher"].items())


@pytest.mark.slow
def test_every_task_has_the_weight_one_however_many_are_new_at_once():
    net, samples = learned(), [Language(seed, 20) for seed in (1, 3, 4)]
    tasks = [Task(name, CLM(), text, text) for name, text in zip("abc", samples, strict=True)]
    for stages in ([1, 2, 3], [2, 3], [3]):  # number of earlier tasks of each stage
        method = EWC(samples=4)
        for count in stages:
            method.begin_stage(net, tasks[:count], 0)
        values = torch.cat([f.flatten() for f in method.memory["fisher"].values()])
        assert values.mean().item() == pytest.approx(3, rel=1e-5)


def test_an_objective_that_predicts_no_outcomes_is_refused():
    class Preferences(CLM):
        has_predictions = False

    with pytest.raises(ValueError, match=r"objective=Preferences.* old "):
        EWC().begin_stage(model(), [Task("old", Preferences(), OLD, OLD)], 0)
