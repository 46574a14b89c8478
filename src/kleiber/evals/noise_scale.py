"""The gradient noise scale: how many tokens a batch may have before a larger one adds little to a step.

The gradient of a batch of B tokens has the squared norm |G|^2 + tr(S) / B on average, where G is the gradient of the
expected loss and S the covariance of the gradient of a token. Two batch sizes give both terms, and tr(S) / |G|^2 is the
noise scale (McCandlish et al. 2018, arXiv:1812.06162, Appendix A.1), an estimate of the critical batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float

from kleiber.evals.evaluation import LEVEL, RESAMPLES, Evaluation, Results, Score, Scores, Subject
from kleiber.types import Count
from kleiber.types.access import DataPath
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective
from kleiber.types.model import Model


class NoiseScale(Evaluation):
    """The gradient noise scale of a model on held-out text, in tokens.

    The samples are drawn at random. Each group gives the squared norm of the gradient of a small batch, as a mean over
    its batches, and that of the whole group, a large batch.

    data     names or paths of data sets; null: those of the command or of the run
    groups   number of groups, over which the interval is taken
    batches  number of small batches in a group
    rows     samples in a small batch
    """

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
        noise_scale     in tokens, with an interval over groups; left out likewise, and its upper bound is None where
                        some resamples do not tell the gradient from its noise
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
    """Returns the noise scale and the norm of the gradient, with percentile intervals over resampled groups.

    small    mean squared norm of the gradients of the small batches of each group
    large    squared norm of the gradient of each whole group
    tokens   of a small batch, on average
    batches  number of small batches in a group
    """
    draws = np.random.default_rng(0).integers(len(small), size=(RESAMPLES, len(small)))
    index = np.concatenate([np.arange(len(small))[None], draws])
    a, b = small[index].mean(1), large[index].mean(1)
    signal = (batches * b - a) / (batches - 1)
    noise = tokens * batches * (a - b) / (batches - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(signal > 0, noise / signal, np.inf)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]

    def root(squares: Float[np.ndarray, "_"]) -> Score:
        value, lo, hi = np.sqrt(np.maximum([squares[0], *np.quantile(squares[1:], ends)], 0)).tolist()
        return Score(value, lo, hi, len(small))

    if not np.isfinite(scale[0]):
        return {"gradient_noise": root(noise)}
    lo, hi = np.quantile(scale[1:], ends, method="nearest").tolist()
    scores = {"noise_scale": Score(float(scale[0]), lo, hi if np.isfinite(hi) else None, len(small))}
    return scores | {"gradient_norm": root(signal), "gradient_noise": root(noise)}


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
