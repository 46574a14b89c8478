"""The gradient noise scale: how many tokens a batch may have before a larger one adds little to a step.

The gradient of a batch of B tokens has the squared norm |G|^2 + tr(S) / B on average, where G is the gradient of the
expected loss and S the covariance of the gradient of a token. Two batch sizes give both terms, and tr(S) / |G|^2 is the
noise scale (McCandlish et al. 2018, arXiv:1812.06162, Appendix A.1), an estimate of the critical batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float
from scipy.special import stdtrit

from kleiber.evals.evaluation import LEVEL, Evaluation, Results, Score, Scores, Subject
from kleiber.types import Count
from kleiber.types.access import DataPath
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics


class NoiseScale(Evaluation):
    """The gradient noise scale of a model on held-out text, in tokens.

    The samples are drawn at random. Each group gives the squared norm of the gradient of a small batch, as a mean over
    its batches, and that of the whole group, a large batch.

    data     names or paths of data sets; null: those of the command or of the run
    groups   number of groups, over which the interval is taken
    batches  number of small batches in a group
    rows     samples in a small batch
    """

    metrics: ClassVar[Metrics] = {
        "noise_scale": Metric("gradient noise scale", "none", "tokens"),
        "gradient_norm": Metric("norm of the gradient", "none"),
        "gradient_noise": Metric("noise of the gradient of a token", "none"),
    }

    def __init__(
        self,
        data: Sequence[DataPath] | None = None,
        groups: Annotated[int, Ge(2)] = 16,
        batches: Annotated[int, Ge(2)] = 8,
        rows: Count = 2,
    ) -> None:
        self.data, self.groups, self.batches, self.rows = data, groups, batches, rows

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each data set. Raises ValueError for one with too few samples.

        gradient_noise  sqrt(tr S), the noise of the gradient of a token
        gradient_norm   |G|, the norm of the gradient of the expected loss per token; left out where it is not told from
                        the noise
        noise_scale     in tokens, with an interval over groups; left out likewise, and its upper bound is None if the
                        interval includes a gradient that is all noise
        """
        return Results({data.name: self.scores(subject, data.name) for data in subject.data})

    def scores(self, subject: Subject, domain: str) -> Scores:
        """Scores of one data set."""
        samples, needed = subject.samples(domain, subject.tokens), self.groups * self.batches * self.rows
        if len(samples) < needed:
            raise ValueError(
                f"evals.noise_scale needs {needed} samples (groups={self.groups} x batches={self.batches} x "
                f"rows={self.rows}), and {domain} has {len(samples)}: lower evals.noise_scale.groups or take more text"
            )
        order = np.random.default_rng(0).permutation(len(samples))[:needed].reshape(self.groups, self.batches, -1)
        objective = subject.objective_of(domain)
        norms, tokens = [], []
        for group in order:
            batches = [samples.gather(np.sort(rows)).to(subject.device) for rows in group]
            small, large, count = squared_norms(subject.model, objective, batches)
            norms.append((small, large))
            tokens.append(count)
        small, large = np.array(norms).T
        return noise_scores(small, large, float(np.mean(tokens)), self.batches)


def noise_scores(small: Float[np.ndarray, "_"], large: Float[np.ndarray, "_"], tokens: float, batches: int) -> Scores:
    """Returns the noise scale and the norm of the gradient, with intervals by Student's t over groups.

    The noise scale falls with the ratio of the mean squares `large` and `small`, whose logarithm is close to normal:
    its ends are those of the interval of this logarithm. Resampled groups would cover .75 instead of .9 with 4 groups.

    small    mean squared norm of the gradients of the small batches of each group
    large    squared norm of the gradient of each whole group
    tokens   of a small batch, on average
    batches  number of small batches in a group
    """
    signal = (batches * large - small) / (batches - 1)
    noise = tokens * batches * (small - large) / (batches - 1)
    if not signal.mean() > 0:
        return {"gradient_noise": _root(noise)}
    ratio = float(large.mean() / small.mean())
    half = _half_width(large / large.mean() - small / small.mean())
    value, lo, hi = (_noise_scale(ratio * math.exp(shift), tokens, batches) for shift in (0.0, half, -half))
    scale = Score(value, lo, hi if math.isfinite(hi) else None, len(small))
    return {"noise_scale": scale, "gradient_norm": _root(signal), "gradient_noise": _root(noise)}


def _noise_scale(ratio: float, tokens: float, batches: int) -> float:
    """Returns the noise scale of a ratio of squared norms, large to small; infinity if it is that of noise alone."""
    return tokens * batches * max(1 - ratio, 0.0) / (batches * ratio - 1) if batches * ratio > 1 else math.inf


def _half_width(values: Float[np.ndarray, "_"]) -> float:
    """Returns half of the interval of the mean of a value of each group."""
    return float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(len(values)))


def _root(squares: Float[np.ndarray, "_"]) -> Score:
    """Returns the root of the mean of a square of each group, with its interval."""
    mean, half = float(squares.mean()), _half_width(squares)
    value, lo, hi = (math.sqrt(max(square, 0.0)) for square in (mean, mean - half, mean + half))
    return Score(value, lo, hi, len(squares))


@torch.compiler.set_stance("force_eager")  # only training is compiled
def squared_norms(model: Model, objective: Objective, batches: Sequence[Batch]) -> tuple[float, float, float]:
    """Returns the mean squared norm of the gradients of batches, that of their mean, and the mean tokens of a batch.

    Gradients are those of the loss per token; the model's own `.grad` is left alone.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    small, tokens = 0.0, 0.0
    for batch in batches:
        with torch.enable_grad():
            loss = objective(model, batch)
            grads = torch.autograd.grad(loss.total / loss.tokens, parameters, allow_unused=True)
        tokens += float(loss.tokens) / len(batches)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad / len(batches)
                small += float(grad.double().pow(2).sum()) / len(batches)
    return small, float(sum(total.double().pow(2).sum() for total in sums)), tokens
