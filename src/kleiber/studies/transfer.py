"""The study `transfer`: fine-tuning of pre-trained models on labelled tasks compared with training from scratch.

Scores are paired within seeds, and every claim has an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.contrast import verdict
from kleiber.studies.compare.decision import as_row, from_row, gaps_by_seed, paired_difference
from kleiber.studies.compare.frontier import best_settings
from kleiber.studies.compare.rows import SCRATCH, Rows
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json, Row, Share

GROUP = ["task", "kind", "start", "share"]  # what the seeds of a mean have in common
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

    against  kinds that are compared with others from the same text, such as {mlm: bert, clm: [gpt2, llama]}: ours -
             theirs
    kind, start, task, share  of a cell: set by the design
    """

    against: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    kind: str | None = None
    start: str | None = None
    task: str | None = None
    share: Share | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares fine-tuning of pre-trained models with training from scratch on every task."""
        tried = score_rows(runs)
        rows = tuned_scores(tried)
        differences = self.differences(rows)
        gaps = [row for row in differences if row["against"] == SCRATCH]
        arms = [key for key, _ in rows[rows["start"] != SCRATCH].groupby(["kind", "start", "task"])]
        data = [row for arm in arms for row in transferred(rows, *arm)]
        tables = {
            "Pre-trained less from nothing": gaps,
            "Against other architectures": [row for row in differences if row["against"] != SCRATCH],
            "Effective data transferred": [factor_row(row) for row in data], "Scores": scores(rows),
            "Tuning": tuning(tried) if len(tried) > len(rows) else [],
        }  # fmt: skip
        return Findings(
            headline(gaps, self.level),
            [*(score_verdict(row) for row in differences if row["lo"] is not None), *cautions(rows, data)],
            {title: table for title, table in tables.items() if table},
            figures(rows, gaps, data),
            methods=METHODS.format(level=self.level),
        )

    def rivals(self, kind: str) -> Sequence[str]:
        """The kinds that a kind is compared with."""
        rivals = self.against.get(kind, ())
        return [rivals] if isinstance(rivals, str) else rivals

    def differences(self, rows: Rows) -> list[Json]:
        """Every kind on every text, task and share less the same kind from nothing, and less the kind of `against`."""
        arms = {key: dict(zip(part["seed"], part["score"], strict=True)) for key, part in rows.groupby(GROUP)}
        table = []
        for (task, kind, start, share), ours in arms.items():
            others = {SCRATCH: arms.get((task, kind, SCRATCH, share))}
            others |= {rival: arms.get((task, rival, start, share)) for rival in self.rivals(kind)}
            for against, theirs in others.items() if start != SCRATCH else ():
                if theirs is not None:
                    better = sum(gap > 0 for gap in gaps_by_seed(ours, theirs))
                    numbers = as_row(paired_difference(ours, theirs, self.level, "in score"))
                    names = {"task": task, "kind": kind, "start": start, "share": share, "against": against}
                    table.append({**names, **numbers, "better on": better})
        return table


def pretrained_arm(run: Run) -> tuple[str, str] | None:
    """Kind and text of a pre-training run of the design `pretraining`; None for any other run."""
    labels = run.config.get("study") or {}
    if labels.get("task") is not None or labels.get("kind") is None:
        return None
    return labels["kind"], labels["start"]


def score_verdict(row: Row) -> Json:
    """Whether the first of a pair scores better."""
    labels = "" if row["share"] == 1 else f" with {100 * row['share']:g} % of the labels"
    than = "the same model from nothing" if row["against"] == SCRATCH else row["against"]
    text = f"on {row['task']}{labels} {row['kind']} from {row['start']} scores above {than}"
    code = "_".join([*(row[key] for key in ("kind", "start", "against", "task")), f"{row['share']:g}"])
    return verdict(code, text, from_row(row))


def score_rows(runs: Sequence[Run]) -> Rows:
    """A row for each finished fine-tune: kind, start, task, share, seed, lr, metric, score, loss, tokens (labelled
    tokens), params, seconds. Raises ValueError where there is none."""
    table = []
    for run in runs:
        config = run.config
        labels = config.get("study") or {}
        if run.status != "finished" or labels.get("task") is None or not run.stage.get("tasks"):
            continue  # a run that is planned alone has no score
        stage, (name, *_) = run.stage, run.stage["tasks"]
        metric = main_metric(run)
        score = stage["metrics"][f"val/{name}/{metric}"]
        if metric == "rmse":  # scores rise with what is learned, here as everywhere in this study
            metric, score = f"-{metric}", -score
        table.append(
            {
                **{key: labels[key] for key in ("kind", "start", "task")}, "share": float(labels["share"]),
                "seed": config["seed"], "lr": stage["lr"], "metric": metric, "score": score,
                "loss": stage["metrics"][f"val/{name}/loss"],
                "tokens": stage["data"]["tokens"], "params": stage["params"]["total"],
                "outside": stage["params"]["non_embedding"], "seconds": stage["seconds"],
            }
        )  # fmt: skip
    if not table:
        raise ValueError("no finished run of any task: this study needs the cells of its own design")
    return pd.DataFrame(table).sort_values(["task", "kind", "start", "share", "seed", "lr"], ignore_index=True)


def main_metric(run: Run) -> str:
    """The metric by which the task of a fine-tune is scored."""
    usual = ("micro_f1", "accuracy", "pearson")  # of several classes, of one, of a quantity: data.metric=null
    metrics, task = run.stage["metrics"], run.stage["tasks"][0]
    return run.config["data"].get("metric") or next(name for name in usual if f"val/{task}/{name}" in metrics)


def tuned_scores(tried: Rows) -> Rows:
    """The rows at the learning rate of each kind, start, task and share; a rate that only some seeds have was for
    tuning."""
    return tried.merge(best_settings(tried, GROUP, ["lr"], "score", higher=True), on=[*GROUP, "lr"])


def tuned_rates(runs: Sequence[Run], share: float) -> dict[tuple[str, str, str], float]:
    """The rate with the best score at the first seed, by kind, start and task; ties go to the least loss."""
    try:
        rows = score_rows(runs)
    except ValueError:
        return {}
    tried = rows[(rows["seed"] == 0) & (rows["share"] == share)]
    ranked = tried.sort_values(["score", "loss"], ascending=[False, True])
    best = ranked.drop_duplicates(["kind", "start", "task"]).to_dict("records")
    return {(row["kind"], row["start"], row["task"]): float(row["lr"]) for row in best}


def equivalent_labels(curve: Mapping[float, float], score: float) -> float:
    """The amount of labelled data with which training from scratch reaches `score`.

    curve  score by amount of data; its running maximum is interpolated log-linearly

    Returns inf above the curve and 0 below it.
    """
    data = np.array(sorted(curve))
    reached = np.maximum.accumulate([curve[amount] for amount in data])
    if score > reached[-1]:
        return math.inf
    if score < reached[0]:
        return 0.0
    right = int(np.argmax(reached >= score))
    if right == 0:
        return float(data[0])
    low, high = reached[right - 1], reached[right]
    at = (score - low) / (high - low)
    return float(math.exp(math.log(data[right - 1]) * (1 - at) + math.log(data[right]) * at))


def transferred(rows: Rows, kind: str, start: str, task: str) -> list[Json]:
    """Effective data transferred, in labelled tokens, at each share of the labels.

    This is the amount that training from scratch needs for the same score, less the amount used. `factor` is (used +
    transferred) / used: the median over seeds with their least and most; inf where all labels are not enough, 0 where
    the score is below that of the smallest share. Hernandez et al. 2021, arXiv:2102.01293, section 1.1.
    """
    part = rows[(rows["kind"] == kind) & (rows["task"] == task)]
    new, ours = part[part["start"] == SCRATCH], part[part["start"] == start]
    curves = {seed: dict(zip(part["tokens"], part["score"], strict=True)) for seed, part in new.groupby("seed")}
    table = []
    for share, part in ours.groupby("share"):
        pairs = [
            (equivalent_labels(curves[seed], score) / tokens, tokens)
            for seed, score, tokens in zip(part["seed"], part["score"], part["tokens"], strict=True)
            if len(curves.get(seed, ())) > 1
        ]
        if pairs:
            factors = sorted(factor for factor, _ in pairs)
            labelled = float(np.mean([tokens for _, tokens in pairs]))
            middle = factors[(len(factors) - 1) // 2]
            table.append(
                {
                    "kind": kind, "start": start, "task": task, "share": share, "labelled tokens": labelled,
                    "transferred": (middle - 1) * labelled, "factor": middle, "least": factors[0], "most": factors[-1],
                    "seeds": len(pairs),
                }
            )  # fmt: skip
    return table


def cautions(rows: Rows, data: Sequence[Row]) -> list[dict[str, str]]:
    """Warnings about few seeds and about transferred data without an upper bound."""
    seeds = int(rows.groupby(GROUP)["seed"].nunique().min())
    unbounded = any(math.isinf(row["most"]) for row in data)
    few = {"code": "few_seeds", "level": "warn", "text": f"{seeds} seeds, and 3 are needed for an interval"}
    text = "from nothing the score of some pre-trained models was not reached with any share of the labels: there the "
    censored = {"code": "censored", "level": "note", "text": f"{text}data transferred has no upper bound"}
    return [few] * (seeds < 3) + [censored] * unbounded


def headline(gaps: Sequence[Row], level: float) -> str:
    """The gap of each task, at the most labels, of the kind and text that gains most there."""
    ranked = sorted((row for row in gaps if row["value"] is not None), key=lambda row: (row["share"], row["value"]))
    best = {row["task"]: row for row in ranked}
    if not best:
        return "Nothing can be compared: no task was trained from a base and from nothing alike."
    texts = [f"{task} {from_row(row).text()} ({row['kind']} from {row['start']})" for task, row in sorted(best.items())]
    return f"Score gained by pre-training, the best start of each task, {level:.0%} intervals: {'; '.join(texts)}."


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
    from kleiber.studies.compare.chart_forms import estimates

    charts: Figures = {}
    names = sorted(set(rows["kind"] + " from " + rows["start"]), key=lambda name: (not name.endswith(SCRATCH), name))
    most = max((row["share"] for row in gaps), default=1.0)
    entries = [
        {"panel": row["task"], "series": f"{row['kind']} from {row['start']}", **row}
        for row in gaps
        if row["share"] == most and row["value"] is not None
    ]
    if entries:
        x_title, title = "score above the same model from nothing", "Score gained by pre-training"
        charts["gaps"] = lambda: estimates(entries, names, x_title, title, zero=True)
    if rows["share"].nunique() > 1:
        charts["labels"] = lambda: drawing.scores_by_labels(rows, names)
    if any(math.isfinite(row["factor"]) and row["factor"] > 0 for row in data):
        charts["transferred"] = lambda: drawing.effective_data(data, names)
    texts = rows.loc[rows["start"] != SCRATCH, "start"]
    if texts.str.partition("/")[2].nunique() > 1:
        charts["texts"] = lambda: drawing.scores_by_text(rows)
    return charts
