"""Loss of a model whose matrices are rounded to few bits, without training it further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Interval, MinLen
from jaxtyping import Float
from torch import Tensor

from kleiber.evals.evaluation import Evaluation, Results, Scores, Subject
from kleiber.evals.text_loss import resampled_score, text_losses
from kleiber.records.progress import activity
from kleiber.types.access import DataPath
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics

INPUTS = 1  # the axis of the inputs, of matrices (outputs, inputs) as of stacks of experts (experts, inputs, outputs)
Bits = Annotated[int, Interval(ge=2, le=16)]


class Quantized(Evaluation):
    """Loss in nats per target token after rounding the matrices inside blocks to each number of bits.

    Weights are rounded to the nearest of 2^bits - 1 levels, symmetric around 0, with a scale for each output channel
    (round-to-nearest). Embeddings, output layer, routers, gains and biases keep their precision, and so do activations.

    data  names or paths of data sets; null: those of the command or of the run
    bits  numbers of bits
    """

    metrics: ClassVar[Metrics] = {
        "loss_{bits}": Metric("loss with {bits}-bit weights", "lower", "nats per token"),
        "added_{bits}": Metric("loss added by {bits}-bit weights", "lower", "nats per token"),
    }

    def __init__(
        self, data: Sequence[DataPath] | None = None, bits: Annotated[Sequence[Bits], MinLen(1)] = (8, 6, 4, 3)
    ) -> None:
        self.data, self.bits = data, list(bits)

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each data set, with intervals from resampling its samples.

        loss_<bits>   in nats per target token
        added_<bits>  the same less the loss of the model as it is, resampled in pairs
        """
        return Results({domain: self._scores(subject, domain) for domain in subject.domains})

    def _scores(self, subject: Subject, domain: str) -> Scores:
        with activity(f"scoring {domain}", 1 + len(self.bits), "precisions") as work:
            plain, targets, samples = _means(subject, domain)
            scores: Scores = {}
            for bits in work.track(self.bits):
                with rounded_matrices(subject.model, bits):
                    means, _, _ = _means(subject, domain)
                scores[f"loss_{bits}"] = resampled_score(means, targets, samples)
                scores[f"added_{bits}"] = resampled_score(means - plain, targets, samples)
        return scores


def _means(subject: Subject, domain: str) -> tuple[Float[np.ndarray, "_"], int, int]:
    """Returns the mean loss of a data set, then those of resamples; the numbers of targets and of samples."""
    batches, objective = subject.batches(domain, subject.tokens), subject.objective_of(domain)
    losses = text_losses(subject.model, objective, batches, subject.device)
    return losses.means(), losses.num_targets, len(losses.nats)


@contextmanager
def rounded_matrices(model: Model, bits: int) -> Iterator[None]:
    """Rounds the matrices of the role `hidden` inside the context; they are bit for bit as before after it."""
    roles = model.roles()
    matrices = [
        parameter for name, parameter in model.named_parameters() if roles[name].kind == "hidden" and parameter.ndim > 1
    ]
    originals = [parameter.detach().clone() for parameter in matrices]
    try:
        with torch.no_grad():
            for parameter in matrices:
                parameter.copy_(round_to_nearest(parameter, bits))
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(matrices, originals, strict=True):
                parameter.copy_(original)


def round_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """Rounds a matrix, or a stack of them, to the nearest of 2^bits - 1 multiples of a scale of each output channel."""
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(INPUTS, keepdim=True) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-levels, levels) * scale
