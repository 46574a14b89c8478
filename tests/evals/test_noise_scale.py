"""The gradient noise scale: planted values are recovered, and small and large batches are what they should be."""

import numpy as np
import pytest
import torch
from evals.small_models import subject_on_rows
from retention.toys import NEW, learned
from torch import nn

from kleiber.evals.noise_scale import NoiseScale, noise_scores, squared_norms
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Objective
from kleiber.types.model import Model

DIM, SIGMA = 30, 2.0


class Mean(Model):
    """The gradient of its loss on x is theta - x: G = theta, and S = SIGMA^2 on each of DIM axes."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((DIM,), 0.5))


class Distance(Objective):
    def __call__(self, model, batch):
        return Loss(0.5 * (model.theta - batch.labels).pow(2).sum(), torch.tensor(float(len(batch))))


def batch_of(rng, rows):
    x = torch.from_numpy(rng.normal(0, SIGMA, (rows, DIM))).float()
    return Batch(torch.zeros(rows, 1, dtype=torch.long), labels=x)


def simulated(rng, groups=12, batches=4, rows=2):
    norms = [squared_norms(Mean(), Distance(), [batch_of(rng, rows) for _ in range(batches)]) for _ in range(groups)]
    small, large, tokens = np.array(norms).T
    assert (tokens == rows).all()
    return noise_scores(small, large, float(rows), batches)


@pytest.mark.slow
def test_a_planted_noise_scale_lies_in_its_interval():
    rng = np.random.default_rng(0)
    truth = DIM * SIGMA**2 / (DIM * 0.5**2)
    scores = [simulated(rng)["noise_scale"] for _ in range(60)]
    assert np.median([score.value for score in scores]) == pytest.approx(truth, rel=0.15)
    assert 0.8 <= np.mean([holds(score, truth) for score in scores]) <= 1.0


def holds(score, truth):
    return score.lo <= truth and (score.hi is None or truth <= score.hi)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [4, 8, 16])
def test_the_interval_of_the_noise_scale_covers_with_few_groups(groups):
    """800 samples of squared norms of small gradients in 30 dimensions and of their mean over 8 of them."""
    rng = np.random.default_rng(groups)
    gradients = 1 / np.sqrt(DIM) + rng.normal(size=(800, groups, 8, DIM)) * np.sqrt(8 / DIM)
    small, large = (gradients**2).sum(3).mean(2), (gradients.mean(2) ** 2).sum(2)
    scores = [noise_scores(a, b, 1.0, 8) for a, b in zip(small, large, strict=True)]
    covered = np.mean([holds(row["noise_scale"], 8.0) for row in scores if "noise_scale" in row])
    assert 0.86 <= covered <= 0.94
    for name, truth in (("gradient_norm", 1.0), ("gradient_noise", np.sqrt(8.0))):
        assert 0.86 <= np.mean([holds(row[name], truth) for row in scores if name in row]) <= 0.94


def test_norms_are_those_of_gradients_of_small_batches_and_of_their_mean():
    rng = np.random.default_rng(1)
    model, batches = Mean(), [batch_of(rng, rows) for rows in (2, 2, 2)]
    grads = torch.stack([model.theta.detach() - batch.labels.mean(0) for batch in batches])
    small, large, tokens = squared_norms(model, Distance(), batches)
    assert small == pytest.approx(grads.pow(2).sum(1).mean().item(), rel=1e-5)
    assert large == pytest.approx(grads.mean(0).pow(2).sum().item(), rel=1e-5)
    assert tokens == 2.0 and model.theta.grad is None


def test_a_gradient_that_is_all_noise_has_no_scale():
    assert noise_scores(np.array([1.0, 1.2]), np.array([0.1, 0.1]), 2.0, 8).keys() == {"gradient_noise"}
    wide = noise_scores(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.11, 0.05, 0.4, 0.1]), 2.0, 8)["noise_scale"]
    assert wide.hi is None and wide.lo < wide.value


def test_every_key_has_an_effect_and_gradients_are_left_alone():
    subject = subject_on_rows(learned(), NEW)

    def measure(**keys):
        return NoiseScale(**{"groups": 4, "batches": 2, "rows": 1, **keys}).evaluate(subject).scores["text"]

    scores = measure()
    assert scores["noise_scale"].n == 4 and scores["noise_scale"].value > 0
    assert measure(groups=5) != scores and measure(batches=3) != scores and measure(rows=2) != scores
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    with pytest.raises(ValueError, match=r"evals\.noise_scale\.groups"):
        measure(groups=10**4)
