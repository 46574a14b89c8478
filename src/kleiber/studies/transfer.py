"""The study `transfer`: what pre-training gives on tasks with labels, against the same model from nothing.

Scores are paired within seeds. It reads the cells of its own design, and makes no claim without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kleiber.records.catalog import Run
from kleiber.studies.compare.task_rows import (
    SCRATCH,
    Rows,
    at_tuned_rate,
    paired_scores,
    score_rows,
    scores_by_seed,
    transferred,
)
from kleiber.studies.study import Findings, Options, check_level

METHODS = (
    "Each seed has base runs of its own, one for each kind of model and text; every task is fine-tuned from them, and "
    "from nothing by the same model, tokenizer, data order and number of steps. Learning rates were tuned for each "
    "kind, start and task at the first seed and all labels (of a kind's texts at the first one) by the validation "
    "score that is reported, which favours no side but makes every score a little too good. Gaps are paired by seed, "
    "intervals Student's at {level:.0%}. Effective data transferred: the labelled tokens with which training from "
    "nothing would have reached the same score, by its curve over the share of the labels, less those that were given "
    "(Hernandez et al. 2021, arXiv:2102.01293)."
)


@dataclass(frozen=True)
class Transfer(Options):
    """How to read it.

    against  kinds that are compared with others from the same text, such as {mlm: bert}: ours - theirs
    level    of the intervals
    kind, start, task, share  of a cell: set by the design
    """

    against: Mapping[str, str] = field(default_factory=dict)
    level: float = 0.9
    kind: str | None = None
    start: str | None = None
    task: str | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level)

    def analyse(self, runs: Sequence[Run]) -> Findings:
        tried = score_rows(runs)
        rows = at_tuned_rate(tried)
        gaps, rivals = self.gaps(rows), self.rivals(rows)
        arms = [key for key, _ in rows[rows["start"] != SCRATCH].groupby(["kind", "start", "task"])]
        data = [one for arm in arms for one in transferred(rows, *arm)]
        tables: dict[str, Any] = {"Pre-trained less from nothing": gaps}
        tables |= {"Against other architectures": rivals} if rivals else {}
        tables |= {"Effective data transferred": [told_factor(one) for one in data]} if data else {}
        tables["Scores"] = scores(rows)
        tables |= {"Tuning": tuning(tried)} if len(tried) > len(rows) else {}
        return Findings(
            headline(gaps, self.level),
            [*verdicts(gaps, self.level), *verdicts(rivals, self.level), *cautions(rows, data)],
            tables,
            figures(rows, gaps, data),
            methods=METHODS.format(level=self.level),
        )

    def gaps(self, rows: Rows) -> list[dict[str, Any]]:
        """Every kind on every text, task and share less the same kind from nothing."""
        found = []
        for (task, kind, start, share), _ in rows[rows["start"] != SCRATCH].groupby(["task", "kind", "start", "share"]):
            same = {"task": task, "kind": kind, "share": share}
            new = scores_by_seed(rows, start=SCRATCH, **same)
            if new:
                ours = scores_by_seed(rows, start=start, **same)
                found.append({**same, "start": start, "against": SCRATCH, **paired_scores(ours, new, self.level)})
        return found

    def rivals(self, rows: Rows) -> list[dict[str, Any]]:
        """One kind less another from the same text, task and share."""
        found = []
        for kind, other in self.against.items():
            mine = rows[(rows["kind"] == kind) & (rows["start"] != SCRATCH)]
            for (task, start, share), _ in mine.groupby(["task", "start", "share"]):
                same = {"task": task, "start": start, "share": share}
                theirs = scores_by_seed(rows, kind=other, **same)
                if theirs:
                    ours = scores_by_seed(rows, kind=kind, **same)
                    found.append({**same, "kind": kind, "against": other, **paired_scores(ours, theirs, self.level)})
        return found


def spread(one: Mapping[str, Any]) -> str:
    if one["lo"] is None:
        return "no seed in common" if one["gap"] is None else f"{one['gap']:+.4f} (no interval: {one['seeds']} seed)"
    return f"{one['gap']:+.4f} [{one['lo']:+.4f}, {one['hi']:+.4f}]"


def verdicts(gaps: Sequence[Mapping[str, Any]], level: float) -> list[dict[str, Any]]:
    """Whether the first of a pair scores better, for each pair that has an interval."""
    made = []
    for one in gaps:
        if one["lo"] is None:
            continue
        word = "holds" if one["lo"] > 0 else "does not hold" if one["hi"] < 0 else "undecided"
        labels = "" if one["share"] == 1 else f" with {100 * one['share']:g} % of the labels"
        than = "the same model from nothing" if one["against"] == SCRATCH else one["against"]
        ours = f"{one['kind']} from {one['start']}"
        text = f"{word}: on {one['task']}{labels} {ours} scores above {than}, by {spread(one)}"
        code = "_".join([*(one[key] for key in ("kind", "start", "against", "task")), f"{one['share']:g}"])
        told = {"code": code, "level": "note", "text": f"{text} ({level:.0%}, {one['seeds']} seeds)"}
        holds = {"holds": True, "does not hold": False, "undecided": None}[word]
        made.append({**told, "value": one["gap"], "lo": one["lo"], "hi": one["hi"], "holds": holds})
    return made


def cautions(rows: Rows, data: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    made = []
    seeds = int(rows.groupby(["kind", "start", "task", "share"])["seed"].nunique().min())
    if seeds < 3:
        made.append({"code": "few_seeds", "level": "warn", "text": f"{seeds} seeds, and 3 are needed for an interval"})
    if any(math.isinf(one["most"]) for one in data):
        text = "from nothing the score of some pre-trained models was not reached with any share of the labels: there "
        made.append({"code": "censored", "level": "note", "text": text + "the data transferred has no upper bound"})
    return made


def headline(gaps: Sequence[Mapping[str, Any]], level: float) -> str:
    """The gap of each task, at the most labels, of the kind and text that gains most there."""
    best: dict[str, Mapping[str, Any]] = {}
    for one in gaps:
        at = best.get(one["task"])
        if one["gap"] is not None and (at is None or (one["share"], one["gap"]) > (at["share"], at["gap"])):
            best[one["task"]] = one
    if not best:
        return "Nothing can be compared: no task was trained from a base and from nothing alike."
    told = [f"{task} {spread(one)} ({one['kind']} from {one['start']})" for task, one in best.items()]
    return f"Pre-trained less from nothing, the best of each task, {level:.0%} intervals over seeds: {'; '.join(told)}."


def scores(rows: Rows) -> list[dict[str, Any]]:
    keys = ["task", "kind", "start", "share", "metric", "lr"]
    found = rows.groupby(keys, as_index=False).agg(
        seeds=("seed", "nunique"), score=("score", "mean"), sd=("score", "std"), loss=("loss", "mean"),
        params=("params", "median"), outside=("outside", "median"), seconds=("seconds", "mean"),
    )  # fmt: skip
    return found.rename(columns={"outside": "outside embeddings"}).to_dict("records")


def tuning(tried: Rows) -> list[dict[str, Any]]:
    first = tried[(tried["seed"] == 0) & (tried["share"] == tried["share"].max())]
    return first[["task", "kind", "start", "lr", "score", "loss"]].to_dict("records")


def told_factor(one: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table, with words where a number has no bound."""

    def told(value: float) -> str:
        return "more than all labels" if math.isinf(value) else f"{value:.3g}"

    kept = {key: one[key] for key in ("task", "kind", "start", "share", "labelled tokens", "seeds")}
    moved = "no bound" if math.isinf(one["transferred"]) else f"{one['transferred']:.3g}"
    ends = {"least of seeds": told(one["least"]), "most": told(one["most"])}
    return kept | {"transferred tokens": moved, "times the labels": told(one["factor"]), **ends}


def figures(
    rows: Rows, gaps: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, Any]]
) -> dict[str, Callable[[], Any]]:
    from kleiber.studies import transfer_figures as plots

    made: dict[str, Callable[[], Any]] = {}
    if any(one["gap"] is not None for one in gaps):
        made["gaps"] = lambda: plots.gaps(gaps)
    if rows["share"].nunique() > 1:
        made["labels"] = lambda: plots.labels(rows)
    if any(math.isfinite(one["factor"]) and one["factor"] > 0 for one in data):
        made["transferred"] = lambda: plots.factors(data)
    texts = rows.loc[rows["start"] != SCRATCH, "start"]
    if texts.str.partition("/")[2].nunique() > 1:
        made["texts"] = lambda: plots.texts(rows)
    return made
