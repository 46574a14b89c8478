"""Loss of a model on held-out data, by domain and by position in the row.

Loss is in nats per target token, and in bits per byte where the objective is the likelihood of a text. Loss by position
is the next-token loss of a causal model, whatever objective it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kleiber.data.token_files import ValidationWindows
from kleiber.evals.evaluation import Evaluation, Results, Score, Scores, Subject
from kleiber.evals.task_scores import BITS_PER_BYTE, bytes_per_target
from kleiber.evals.text_loss import (
    TextLosses,
    resampled_score,
    spread_samples,
    strided_losses,
    text_losses,
    training_parts,
)
from kleiber.records.progress import activity
from kleiber.types import Count, Json
from kleiber.types.access import DataPath
from kleiber.types.contracts import HeldOut, Objective, Samples
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics

if TYPE_CHECKING:
    from altair import TopLevelMixin


class Perplexity(Evaluation):
    """Loss in nats per target token and, for likelihoods of text, bits per byte.

    data    names or paths of data sets; null: those of the command or of the run
    stride  distance of overlapping windows in tokens; every target has at least model.context - stride tokens before
            it. null: windows that do not overlap, in which targets have half a context before them on average
    positions  whether the loss by position is among the scores, and not only in the figure
    """

    metrics: ClassVar[Metrics] = {
        "loss": Metric("loss", "lower", "nats per token"),
        **BITS_PER_BYTE,
        "gap": Metric("training loss minus validation loss", "none", "nats per token"),
        "position/{end}": Metric("loss up to position {end}", "lower", "nats per token"),
    }

    def __init__(
        self, data: Sequence[DataPath] | None = None, stride: Count | None = None, positions: bool = False
    ) -> None:
        self.data, self.stride, self.positions = data, stride, positions

    def check(self, model: Model) -> None:
        """Raises ValueError for a stride that the model cannot have."""
        if self.stride is None:
            return
        if not model.causal:
            raise ValueError(
                f"evals.perplexity.stride={self.stride} needs a causal model, such as model=gpt; this model is "
                "bidirectional"
            )
        if self.stride > model.context:
            raise ValueError(f"evals.perplexity.stride={self.stride} must be <= model.context={model.context}")

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each data set, with intervals from resampling its samples.

        loss           in nats per target token
        bits_per_byte  where it has a meaning
        gap            loss on as many tokens of the training text that the run has read less the validation loss: far
                       below 0 where the model knows it by heart; of the data of a run alone, without `stride`
        position/<t>   with `positions`: of the targets beyond position t/2 up to t, for next-token prediction without
                       `stride`

        The details have the loss by position (see `bin_by_position`) in any case.
        """
        scores: dict[str, Scores] = {}
        positions: dict[str, dict[int, float]] = {}
        parts = {} if self.stride is not None else training_parts(subject)
        for domain in subject.domains:
            held_out, objective = subject.samples(domain, subject.tokens), subject.objective_of(domain)
            losses = self._losses(subject, domain, held_out, objective)
            scores[domain] = {"loss": replace(losses.score(), unit=objective.metrics["loss"].unit)}
            size = bytes_per_target(objective, held_out)
            if size is not None:
                bits, samples = losses.bits_per_byte(size), len(losses.nats)
                scores[domain]["bits_per_byte"] = resampled_score(bits, losses.num_targets, samples)
            if domain in parts and subject[domain].of_run:
                scores[domain]["gap"] = training_gap(subject, parts[domain], objective, losses, f"training of {domain}")
            if self.stride is None and len(losses.counts):
                positions[domain] = bin_by_position(losses.by_position.tolist(), losses.counts.tolist())
            if self.positions:
                by_position = positions.get(domain, {})
                scores[domain] |= {f"position/{end}": Score(loss) for end, loss in by_position.items()}
        return Results(scores, {"positions": positions})

    def _losses(self, subject: Subject, domain: str, held_out: HeldOut, objective: Objective) -> TextLosses:
        sizes = None if bytes_per_target(objective, held_out) is None else subject.tokenizer.token_bytes
        if self.stride is None:
            with activity(f"scoring {domain}", len(held_out), "samples") as work:
                batches = subject.batches_of(held_out)
                return text_losses(subject.model, objective, work.track(batches, len), subject.device, sizes)
        if not isinstance(held_out, ValidationWindows):
            raise ValueError(
                f"evals.perplexity.stride={self.stride} needs text, and {domain} has samples of its own: set it to null"
            )
        with activity(f"scoring {domain} with stride {self.stride}"):
            return strided_losses(subject.model, held_out, self.stride, subject.rows, subject.device, sizes)

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber.evals.item_figures import position_chart

        return position_chart(results["details"].get("positions", {}))


def training_gap(subject: Subject, train: Samples, objective: Objective, losses: TextLosses, label: str) -> Score:
    """Loss on training samples at equal distances, with as many targets as `losses`, less the mean of `losses`."""
    chosen = spread_samples(train, losses.num_targets)
    with activity(f"scoring {label}", len(chosen), "samples") as work:
        starts = range(0, len(chosen), subject.rows)
        batches = (train.gather(chosen[start : start + subject.rows]) for start in starts)
        train_losses = text_losses(subject.model, objective, work.track(batches, len), subject.device)
    ours, theirs = train_losses.means(), losses.means()
    # Resamples of different samples are independent: reversed, they are not paired by number.
    gaps = np.concatenate([ours[:1] - theirs[:1], ours[1:] - theirs[:0:-1]])
    return resampled_score(gaps, losses.num_targets, min(len(train_losses.nats), len(losses.nats)))


def bin_by_position(losses: list[float], counts: list[float]) -> dict[int, float]:
    """Mean loss over positions 1, 2, 3-4, 5-8, ... by the last position of each bin; empty bins are left out."""
    means, start, end = {}, 0, 1
    while start < len(losses):
        weight = sum(counts[start:end])
        if weight > 0:
            means[min(end, len(losses))] = sum(losses[start:end]) / weight
        start, end = end, 2 * end
    return means
