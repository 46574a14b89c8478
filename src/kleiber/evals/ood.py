"""Loss out of distribution: how much more bits a byte of other text costs than one of the run's own validation data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kleiber.data.evaluation_sets import DataSet
from kleiber.evals.evaluation import Evaluation, Results, Scores, Subject
from kleiber.evals.task_scores import BITS_PER_BYTE, bytes_per_target
from kleiber.evals.text_loss import TextLosses, resampled_score, text_losses
from kleiber.records.progress import activity
from kleiber.types import Json
from kleiber.types.access import DataPath
from kleiber.types.score import Metric, Metrics

if TYPE_CHECKING:
    from altair import TopLevelMixin

TOKENS = 65_536  # targets of each data set, by default


class OOD(Evaluation):
    """Gap of each data set: its bits per byte less those of the data that the model was trained on.

    data       names or paths of data sets; null: those of the command
    in_domain  name of the one among them that the others are compared with; null: the validation data of the run, the
               mean over its domains
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        **BITS_PER_BYTE,
        "gap": Metric("gap to the training distribution", "lower", "bits per byte"),
    }

    def __init__(self, data: Sequence[DataPath] | None = None, in_domain: str | None = None) -> None:
        self.data, self.in_domain = data, in_domain

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each data set.

        bits_per_byte  loss in bits per byte
        gap            the same less that of the in-domain data; not for this data itself

        Intervals resample the samples of both. Raises ValueError where the in-domain data is not known.
        """
        inside = self._inside(subject)
        names = {data.name for data in inside}
        if names >= set(subject.domains):
            raise ValueError(
                f"--evals ood needs data beside {', '.join(sorted(names))}, the in-domain data: name it with --data or "
                "evals.ood.data=[...]"
            )
        by_name = {data.name: data for data in (*subject.data, *inside)}
        means = {name: self._bits(subject, data) for name, data in by_name.items()}
        losses = {name: values for name, (values, _) in means.items()}
        reference = np.mean([losses[name] for name in names], axis=0)
        scores: dict[str, Scores] = {}
        for name, (values, domain_losses) in means.items():
            sizes = domain_losses.num_targets, len(domain_losses.nats)
            scores[name] = {"bits_per_byte": resampled_score(values, *sizes)}
            if name not in names:
                # Resamples of different samples are independent: reversed, they are not paired by number.
                gaps = np.concatenate([values[:1] - reference[:1], values[1:] - reference[:0:-1]])
                scores[name]["gap"] = resampled_score(gaps, *sizes)
        return Results(scores, {"in_domain": sorted(names)})

    def _inside(self, subject: Subject) -> list[DataSet]:
        if self.in_domain is None:
            if not subject.validation:
                raise ValueError(
                    "--evals ood compares data with the validation data of a run, and this model has none: set "
                    "evals.ood.in_domain to the name of the one data set of --data that it was trained on"
                )
            return list(subject.validation)
        inside = [data for data in subject.data if data.name == self.in_domain]
        if not inside:
            names = ", ".join(subject.domains)
            raise ValueError(f"evals.ood.in_domain={self.in_domain} must be one of the data sets {names}")
        return inside

    def _bits(self, subject: Subject, data: DataSet) -> tuple[np.ndarray, TextLosses]:
        """Bits per byte of a data set and of its resamples, and the losses."""
        held_out = data.samples().first(subject.tokens or TOKENS)
        objective = subject.objective if data.of_run else subject.language
        size = bytes_per_target(objective, held_out)
        if size is None:
            raise ValueError(f"--evals ood needs text, and {data.name} has no loss per byte under this objective")
        with activity(f"scoring {data.name}", len(held_out), "samples") as work:
            batches = subject.batches_of(held_out)
            sizes = subject.tokenizer.token_bytes
            losses = text_losses(subject.model, objective, work.track(batches, len), subject.device, sizes)
        return losses.bits_per_byte(size), losses

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber.evals.item_figures import gap_chart

        return gap_chart(results["scores"])
