"""The study `transfer`: fine-tuning of pre-trained models on labelled tasks compared with training from scratch.

Scores are paired within seeds, and every claim has an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import SCRATCH, Rows
from kleiber.studies.compare.task_rows import (
    at_tuned_rate,
    paired_scores,
    score_rows,
    scores_by_seed,
    transferred,
)
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json, Row, Share

METHODS = (
    "Each seed has base runs of its own, one for each kind of model and text; every task is fine-tuned from them, and "
    "from nothing by the same model, tokenizer, data order and number of steps. Learning rates were tuned for each "
    "kind, start and task at the first seed and all labels (of a kind's texts at the first one) by the validation "
    "score that is reported, which favors no side but makes every score a little too good. Gaps are paired by seed, "
    "intervals Student's at {level:.0%}. Effective data transferred: the labelled tokens with which training from "
    "nothing would have reached the same score, by its curve over the share of the labels, less those that were given "
    "(Hernandez et al. 2021, arXiv:2102.01293)."
)


@dataclass(frozen=True)
class Transfer(IntervalStudy):
    """How to read it.

    against  kinds that are compared with others from the same text, such as {mlm: bert}: ours - theirs
    kind, start, task, share  of a cell: set by the design
    """

    against: Mapping[str, str] = field(default_factory=dict)
    kind: str | None = None
    start: str | None = None
    task: str | None = None
    share: Share | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares fine-tuning of pre-trained models with training from scratch on every task."""
        tried = score_rows(runs)
        rows = at_tuned_rate(tried)
        gaps, rivals = self.gaps(rows), self.rivals(rows)
        arms = [key for key, _ in rows[rows["start"] != SCRATCH].groupby(["kind", "start", "task"])]
        data = [row for arm in arms for row in transferred(rows, *arm)]
        tables: Json = {"Pre-trained less from nothing": gaps}
        tables |= {"Against other architectures": rivals} if rivals else {}
        tables |= {"Effective data transferred": [factor_row(row) for row in data]} if data else {}
        tables["Scores"] = scores(rows)
        tables |= {"Tuning": tuning(tried)} if len(tried) > len(rows) else {}
        return Findings(
            headline(gaps, self.level),
            [*verdicts(gaps, self.level), *verdicts(rivals, self.level), *cautions(rows, data)],
            tables,
            figures(rows, gaps, data),
            methods=METHODS.format(level=self.level),
        )

    def gaps(self, rows: Rows) -> list[Json]:
        """Every kind on every text, task and share less the same kind from nothing."""
        table = []
        for (task, kind, start, share), _ in rows[rows["start"] != SCRATCH].groupby(["task", "kind", "start", "share"]):
            same = {"task": task, "kind": kind, "share": share}
            new = scores_by_seed(rows, start=SCRATCH, **same)
            if new:
                ours = scores_by_seed(rows, start=start, **same)
                table.append({**same, "start": start, "against": SCRATCH, **paired_scores(ours, new, self.level)})
        return table

    def rivals(self, rows: Rows) -> list[Json]:
        """One kind less another from the same text, task and share."""
        table = []
        for kind, other in self.against.items():
            mine = rows[(rows["kind"] == kind) & (rows["start"] != SCRATCH)]
            for (task, start, share), _ in mine.groupby(["task", "start", "share"]):
                same = {"task": task, "start": start, "share": share}
                theirs = scores_by_seed(rows, kind=other, **same)
                if theirs:
                    ours = scores_by_seed(rows, kind=kind, **same)
                    table.append({**same, "kind": kind, "against": other, **paired_scores(ours, theirs, self.level)})
        return table


def spread(row: Row) -> str:
    if row["lo"] is None:
        return "no seed in common" if row["gap"] is None else f"{row['gap']:+.4f} (no interval: {row['seeds']} seed)"
    return f"{row['gap']:+.4f} [{row['lo']:+.4f}, {row['hi']:+.4f}]"


def verdicts(gaps: Sequence[Row], level: float) -> list[Json]:
    """Whether the first of a pair scores better, for each pair that has an interval."""
    results = []
    for row in gaps:
        if row["lo"] is None:
            continue
        outcome = "holds" if row["lo"] > 0 else "does not hold" if row["hi"] < 0 else "undecided"
        labels = "" if row["share"] == 1 else f" with {100 * row['share']:g} % of the labels"
        than = "the same model from nothing" if row["against"] == SCRATCH else row["against"]
        ours = f"{row['kind']} from {row['start']}"
        text = f"{outcome}: on {row['task']}{labels} {ours} scores above {than}, by {spread(row)}"
        code = "_".join([*(row[key] for key in ("kind", "start", "against", "task")), f"{row['share']:g}"])
        verdict = {"code": code, "level": "note", "text": f"{text} ({level:.0%}, {row['seeds']} seeds)"}
        holds = {"holds": True, "does not hold": False, "undecided": None}[outcome]
        results.append({**verdict, "value": row["gap"], "lo": row["lo"], "hi": row["hi"], "holds": holds})
    return results


def cautions(rows: Rows, data: Sequence[Row]) -> list[dict[str, str]]:
    """Warnings about few seeds and about transferred data without an upper bound."""
    warnings = []
    seeds = int(rows.groupby(["kind", "start", "task", "share"])["seed"].nunique().min())
    if seeds < 3:
        warnings.append(
            {"code": "few_seeds", "level": "warn", "text": f"{seeds} seeds, and 3 are needed for an interval"}
        )
    if any(math.isinf(row["most"]) for row in data):
        text = "from nothing the score of some pre-trained models was not reached with any share of the labels: there "
        warnings.append({"code": "censored", "level": "note", "text": text + "the data transferred has no upper bound"})
    return warnings


def headline(gaps: Sequence[Row], level: float) -> str:
    """The gap of each task, at the most labels, of the kind and text that gains most there."""
    best: dict[str, Row] = {}
    for row in gaps:
        at = best.get(row["task"])
        if row["gap"] is not None and (at is None or (row["share"], row["gap"]) > (at["share"], at["gap"])):
            best[row["task"]] = row
    if not best:
        return "Nothing can be compared: no task was trained from a base and from nothing alike."
    sentences = [f"{task} {spread(row)} ({row['kind']} from {row['start']})" for task, row in best.items()]
    return (
        f"Score gained by pre-training, the best start of each task, {level:.0%} intervals over seeds: "
        f"{'; '.join(sentences)}."
    )


def scores(rows: Rows) -> list[Json]:
    """A row for each kind, start, task and share: the mean score over seeds."""
    keys = ["task", "kind", "start", "share", "metric", "lr"]
    table = rows.groupby(keys, as_index=False).agg(
        seeds=("seed", "nunique"), score=("score", "mean"), sd=("score", "std"), loss=("loss", "mean"),
        params=("params", "median"), outside=("outside", "median"), seconds=("seconds", "mean"),
    )  # fmt: skip
    return table.rename(columns={"outside": "outside embeddings"}).to_dict("records")


def tuning(tried: Rows) -> list[Json]:
    first = tried[(tried["seed"] == 0) & (tried["share"] == tried["share"].max())]
    return first[["task", "kind", "start", "lr", "score", "loss"]].to_dict("records")


def factor_row(row: Row) -> Json:
    """A line of the table, with words where a number has no bound."""

    def bounded(value: float) -> str:
        return "more than all labels" if math.isinf(value) else f"{value:.3g}"

    kept = {key: row[key] for key in ("task", "kind", "start", "share", "labelled tokens", "seeds")}
    moved = "no bound" if math.isinf(row["transferred"]) else f"{row['transferred']:.3g}"
    ends = {"least of seeds": bounded(row["least"]), "most": bounded(row["most"])}
    return kept | {"transferred tokens": moved, "times the labels": bounded(row["factor"]), **ends}


def figures(rows: Rows, gaps: Sequence[Row], data: Sequence[Row]) -> Figures:
    """The figures that the runs allow, by name."""
    from kleiber.studies.compare import figures as drawing

    charts: Figures = {}
    if any(row["gap"] is not None for row in gaps):
        charts["gaps"] = lambda: drawing.score_gains(gaps)
    if rows["share"].nunique() > 1:
        charts["labels"] = lambda: drawing.scores_by_labels(rows)
    if any(math.isfinite(row["factor"]) and row["factor"] > 0 for row in data):
        charts["transferred"] = lambda: drawing.effective_data(data)
    texts = rows.loc[rows["start"] != SCRATCH, "start"]
    if texts.str.partition("/")[2].nunique() > 1:
        charts["texts"] = lambda: drawing.scores_by_text(rows)
    return charts
