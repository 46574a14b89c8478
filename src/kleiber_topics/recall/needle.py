"""The evaluation `needle`: whether a model finds one pair of a key and a value, by depth and length of the haystack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from annotated_types import MinLen
from jaxtyping import Float

from kleiber.data import DataSet
from kleiber.evals import Evaluation, Results, Subject, mean_score, proportion_score
from kleiber.nn import log_probs
from kleiber.types import Batch, Context, Count, DataPath, Json, Metric, Metrics, Model, Scores, Share
from kleiber_topics.recall.recall import RecallRows

if TYPE_CHECKING:
    from altair import TopLevelMixin

    from kleiber.charts import Chart, Rows

PLACE = "datum.value == 0 ? 'start' : datum.value == 1 ? 'end' : format(datum.value, '.0%')"  # names of depths
Cell = tuple[int, float]  # length of the haystack in tokens, depth of the needle


class Needle(Evaluation):
    """Recall of the value of a needle in haystacks of `data=recall` with `data.distractors` (see `RecallRows.needles`).

    accuracy  share of the rows in which the most probable token after the key is the value of the needle
    loss      -log p(value), in nats

    Both are told for each cell, as `length<L>/depth<D>/accuracy`, for each length over all depths, as
    `length<L>/accuracy`, and over all cells, as `accuracy`. Intervals are over rows.

    lengths  of the haystacks, in tokens; null: those of the training rows
    depths   places of the needle in it, from 0 (the first tokens) to 1 (the last ones)
    rows     scored rows for each length and depth
    data     names or paths of other data; null: that of the run or of the command
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "accuracy": Metric("accuracy", "higher"),
        "loss": Metric("loss", "lower", "nats per answer"),
        "length{length}/accuracy": Metric("accuracy at length {length}", "higher"),
        "length{length}/loss": Metric("loss at length {length}", "lower", "nats per answer"),
        "length{length}/depth{depth}/accuracy": Metric("accuracy at length {length} and depth {depth}", "higher"),
        "length{length}/depth{depth}/loss": Metric(
            "loss at length {length} and depth {depth}", "lower", "nats per answer"
        ),
    }
    reads = "rows with haystacks, of data=recall with data.distractors"

    def __init__(
        self,
        lengths: Annotated[Sequence[Context], MinLen(1)] | None = None,
        depths: Annotated[Sequence[Share], MinLen(1)] = (0.0, 0.25, 0.5, 0.75, 1.0),
        rows: Count = 128,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.lengths, self.depths, self.rows, self.data = lengths, tuple(depths), rows, data

    def accepts(self, data: DataSet) -> bool:
        """Whether the data are rows with haystacks."""
        samples = data.samples()
        return isinstance(samples, RecallRows) and bool(samples.lengths)

    def evaluate(self, subject: Subject) -> Results:
        """Scores each cell. Raises ValueError for a haystack that does not fit its pairs, or the context."""
        scores: dict[str, Scores] = {}
        details: Json = {}
        for data in subject.data:
            samples = data.samples()
            if not isinstance(samples, RecallRows) or not samples.lengths:
                raise ValueError(f"evals.needle reads data=recall with data.distractors, and {data.name} is none")
            cells = self.score_cells(subject.model, samples, subject.rows, subject.device)
            scores[data.name] = cell_scores(cells)
            details[data.name] = [
                {"length": length, "depth": depth, "accuracy": float(correct.mean()), "loss": float(losses.mean())}
                for (length, depth), (correct, losses) in cells.items()
            ]
        return Results(scores, details)

    def score_cells(
        self, model: Model, samples: RecallRows, batch_rows: int, device: torch.device | str
    ) -> dict[Cell, tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]]:
        """Whether each row is answered right (0 or 1), and its loss in nats, for each length and depth."""
        lengths = samples.lengths if self.lengths is None else [2 * (length // 2) for length in self.lengths]
        least = 2 * samples.pairs
        for length in lengths:
            if not least <= length <= model.context - 1:
                raise ValueError(
                    f"evals.needle.lengths={length} must be >= {least}, so that {samples.pairs} pairs fit, and <= "
                    f"{model.context - 1}, so that a key fits into the context too"
                )
        cells = {}
        for length in lengths:
            for depth in self.depths:
                parts = [
                    answer(model, samples.needles(length, depth, index).to(device))
                    for index in np.array_split(np.arange(self.rows), -(-self.rows // batch_rows))
                ]
                correct, losses = (np.concatenate(each) for each in zip(*parts, strict=True))
                cells[length, depth] = (correct, losses)
        return cells

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """A heat map of the accuracy over depth and length, with a panel for each data set."""
        import pandas as pd

        rows = pd.DataFrame(
            [{"panel": data, **cell} for data, cells in results["details"].items() for cell in cells]
        ).rename(columns={"accuracy": "value"})
        return {"needle": heat_maps(rows, "Recall of a needle, by its depth and the length of the haystack")}


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def answer(model: Model, batch: Batch) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """Whether the most probable last token is the row's, as 0 or 1, and its loss in nats."""
    hidden, target = model(Batch(batch.tokens[:, :-1])).hidden[:, -1], batch.tokens[:, -1]
    correct = model.head(hidden).argmax(-1) == target
    losses = -log_probs(hidden, model.head, target)
    return correct.double().cpu().numpy(), losses.double().cpu().numpy()


def cell_scores(
    cells: Mapping[Cell, tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]],
) -> Scores:
    """Means over rows of each cell, of each length and of all cells; rows of several cells are averaged first."""
    groups: dict[str, list[Cell]] = {"": [*cells]}
    for length, depth in cells:
        groups.setdefault(f"length{length}/", []).append((length, depth))
        groups[f"length{length}/depth{depth:g}/"] = [(length, depth)]
    return {
        f"{prefix}{metric}": score(np.mean([cells[cell][which] for cell in members], axis=0))
        for which, (metric, score) in enumerate((("accuracy", proportion_score), ("loss", mean_score)))
        for prefix, members in groups.items()
    }


def heat_maps(rows: Rows, title: str, subtitle: str = "", columns: int = 2) -> Chart:
    """Returns a panel for each value of `panel`, in order of appearance, with the accuracy written into each cell.

    rows  panel, length (tokens), depth (0 to 1) and value (0 to 1)
    """
    import altair as alt

    from kleiber.charts import heat_map

    x = alt.X("length:O", title="haystack (tokens)", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    y = alt.Y("depth:O", title="place of the needle", axis=alt.Axis(labelExpr=PLACE, domain=False, ticks=False))
    legend = alt.Legend(title="accuracy", format=".0%", values=[0, 0.5, 1])
    return heat_map(
        rows, x, y, legend, title, subtitle, domain=(0, 1), style=".0%", panel="panel", columns=columns,
        tips=["panel:N", "length:O", "depth:O", alt.Tooltip("value:Q", title="accuracy", format=".1%")],
    )  # fmt: skip
