"""Tables of the study `transfer`: outcomes by domain, differences between texts, failure modes, effective data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kleiber.config import quantity
from kleiber.records import Run
from kleiber.studies import SCRATCH, Rows, as_row, mean_interval, paired_difference, score_of
from kleiber.types import Json, Row

ALL_TASKS = "all tasks"  # in place of a task: the mean of the scores over the tasks
REFERENCES = ("majority", "tfidf")  # of evals=[reference]
GRID = 400  # shares of the labels at which a learning curve is compared with a score
NEAR = 0.01  # a score at most this much above that of the largest class is no better
OVERFITTED = 0.5  # training loss divided by validation loss below which a run has overfitted


def with_means(rows: Rows) -> Rows:
    """The rows of scores, and the mean over tasks as the task ALL_TASKS for each kind, start, share and seed with all
    tasks."""
    tasks = rows["task"].nunique()
    if tasks < 2:
        return rows
    parts = rows.groupby(["kind", "start", "share", "seed"], as_index=False)
    means = parts.agg(score=("score", "mean"), tasks=("task", "nunique"))
    means = means[means["tasks"] == tasks].drop(columns="tasks").assign(task=ALL_TASKS)
    return rows.merge(means, how="outer") if len(means) else rows


def domain_of(start: str) -> str:
    """The text of a start such as docs/2M, without its size."""
    return start.partition("/")[0]


def size_of(start: str) -> float:
    """The bytes of the text of a start such as docs/2M; 0 of a start without a size."""
    size = start.partition("/")[2]
    return quantity(size) if size else 0.0


def outcomes(gaps: Sequence[Row]) -> list[Json]:
    """In how many cells pre-training helps, hurts or neither, by domain and share of the labels.

    A cell is a task, kind and size of text; its interval decides.
    """
    cells: dict[tuple[str, float], list[Row]] = {}
    for gap in gaps:
        if gap["task"] != ALL_TASKS and gap["lo"] is not None:
            cells.setdefault((domain_of(gap["start"]), gap["share"]), []).append(gap)
    return [
        {
            "domain": domain, "share": share, "cells": len(part), "helps": sum(gap["lo"] > 0 for gap in part),
            "undecided": sum(gap["lo"] <= 0 <= gap["hi"] for gap in part),
            "hurts": sum(gap["hi"] < 0 for gap in part), "mean gain": float(np.mean([gap["value"] for gap in part])),
            "hurts on": ", ".join(f"{gap['task']} ({gap['kind']}, {gap['start']})" for gap in part if gap["hi"] < 0),
        }
        for (domain, share), part in sorted(cells.items())
    ]  # fmt: skip


def harm(table: Sequence[Row], level: float) -> str:
    """The sentence on where pre-training helps and hurts, from `outcomes`; empty without a cell."""
    if not table:
        return ""
    cells, helps, hurts = (sum(row[name] for row in table) for name in ("cells", "helps", "hurts"))
    where = " and ".join(
        f"in {row['hurts']} of the {row['cells']} from {row['domain']} with {row['share']:.0%} of the labels"
        for row in table
        if row["hurts"]
    )
    chance = cells * (1 - level) / 2
    return (
        f" Pre-training helps in {helps} and hurts in {hurts} of {cells} comparisons (of a task, model, text and share "
        f"of the labels){f'; it hurts {where}' if where else ''}. Without any effect, {chance:.1f} of the "
        f"{cells} would help and as many would hurt by chance."
    )


def text_differences(rows: Rows, level: float) -> list[Json]:
    """Differences between texts in the score, by kind and share of the labels; of several tasks in the mean score.

    Domains are compared at the largest size, and with each domain its largest size less every other one.
    """
    task = ALL_TASKS if (rows["task"] == ALL_TASKS).any() else rows["task"].iloc[0]
    part = rows[(rows["task"] == task) & (rows["start"] != SCRATCH)]
    table = []
    for (kind, share), cell in part.groupby(["kind", "share"]):
        arms = {start: dict(zip(arm["seed"], arm["score"], strict=True)) for start, arm in cell.groupby("start")}
        for ours, theirs in text_pairs(list(arms)):
            estimate = paired_difference(arms[ours], arms[theirs], level, "in score")
            if estimate is not None:
                names = {"task": task, "kind": kind, "share": share, "text": ours, "against": theirs}
                table.append({**names, **as_row(estimate)})
    return table


def text_pairs(starts: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of starts that `text_differences` compares."""
    largest = max(map(size_of, starts), default=0.0)
    domains = sorted(start for start in starts if size_of(start) == largest)
    sizes = [
        (text, other)
        for text in domains
        for other in sorted(starts, key=size_of, reverse=True)
        if other != text and domain_of(other) == domain_of(text)
    ]
    return [*itertools.combinations(domains, 2), *sizes]


def failures(rows: Rows, runs: Sequence[Run]) -> list[Json]:
    """What goes wrong by task, share of the labels and start: the share of runs in each failure mode.

    Columns: score and those of the references, means over the runs, and the shares of runs that score at most NEAR
    above the largest class, that score below TF-IDF, and whose last training loss is below OVERFITTED times their
    validation loss. Empty without references.
    """
    references = reference_scores(runs)
    if not references:
        return []
    losses = {run.name: last_training_loss(run) for run in runs if run.name in set(rows["run"])}
    table = []
    for (task, share, start), part in rows.assign(domain=rows["start"].map(domain_of)).groupby(
        ["task", "share", "domain"]
    ):
        keys = [(task, share, seed) for seed in part["seed"]]
        if not all(key in references for key in keys):
            continue
        majority, tfidf = (np.array([references[key][name] for key in keys]) for name in REFERENCES)
        scores, validation = (part[name].to_numpy(dtype=float) for name in ("score", "loss"))
        training = np.array([losses[name] for name in part["run"]])
        table.append(
            {
                "task": task, "share": share, "from": start, "runs": len(part), "score": scores.mean(),
                "score of the largest class": majority.mean(), "score of TF-IDF": tfidf.mean(),
                "no better than the largest class": np.mean(scores <= majority + NEAR),
                "below TF-IDF": np.mean(scores < tfidf), "overfitted": np.mean(training < OVERFITTED * validation),
                "training loss": training.mean(), "validation loss": validation.mean(),
            }
        )  # fmt: skip
    return [{name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}
            for row in table]  # fmt: skip


def main_metric(run: Run) -> str:
    """The metric by which the task of a fine-tune is scored."""
    usual = ("micro_f1", "accuracy", "pearson")  # of several classes, of one, of a quantity: data.metric=null
    metrics, task = run.stage["metrics"], run.stage["tasks"][0]
    return run.config["data"].get("metric") or next(name for name in usual if f"val/{task}/{name}" in metrics)


def rising(run: Run, key: str) -> float:
    """The value of a metric of a run as a score, which rises with what is learned."""
    return -run.metrics[key] if score_of([run], key).better == "lower" else run.metrics[key]


def reference_scores(runs: Sequence[Run]) -> dict[tuple[str, float, int], dict[str, float]]:
    """The main score of each reference by task, share of the labels and seed, of runs with evals=[reference]."""
    scores: dict[tuple[str, float, int], dict[str, float]] = {}
    for run in runs:
        labels = run.config.get("study") or {}
        if not run.finished or labels.get("task") is None or not run.stage.get("tasks"):
            continue
        metric = main_metric(run)
        names = {name: f"eval/reference/{run.stage['tasks'][0]}/{name}/{metric}" for name in REFERENCES}
        if all(name in run.metrics for name in names.values()):
            key = labels["task"], float(labels["share"]), run.config["seed"]
            scores[key] = {reference: rising(run, name) for reference, name in names.items()}
    return scores


def last_training_loss(run: Run) -> float:
    """The loss of the last logged training step; nan if none was logged."""
    logged = [row["train/loss"] for row in run.rows if "train/loss" in row]
    return float(logged[-1]) if logged else math.nan


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


def equivalent_interval(
    curves: Sequence[Mapping[float, float]], scores: Sequence[float], level: float
) -> tuple[float, float] | None:
    """The interval of `equivalent_labels`: the amounts at which the curves do not differ from the scores.

    At each amount on the curve, Student's interval of score - curve, paired by seed, decides; the curve is interpolated
    log-linearly. An end is 0 or inf where the curves end before it. None below two seeds.

    curves, scores  of each seed; all curves have the same amounts
    """
    if len(scores) < 2:
        return None
    amounts = np.array(sorted(curves[0]))
    grid = np.geomspace(amounts[0], amounts[-1], GRID)
    on_grid = [np.interp(np.log(grid), np.log(amounts), [curve[amount] for amount in amounts]) for curve in curves]
    gaps = np.array(scores)[:, None] - np.array(on_grid)
    ends = [mean_interval(column.tolist(), level) for column in gaps.T]
    higher = np.array([lo is not None and lo > 0 for lo, _ in ends])  # the score is that of more labels
    lower = np.array([hi is not None and hi < 0 for _, hi in ends])
    first, last = np.flatnonzero(~higher), np.flatnonzero(~lower)
    least = float(grid[-1]) if not len(first) else 0.0 if first[0] == 0 else float(grid[first[0]])
    most = float(grid[0]) if not len(last) else math.inf if last[-1] == GRID - 1 else float(grid[last[-1]])
    return min(least, most), most


def effective_data(rows: Rows, kind: str, start: str, task: str, level: float) -> list[Json]:
    """Effective data transferred, in labelled tokens, at each share of the labels.

    This is the amount that training from scratch needs for the same score, less the amount used. `factor` is (used +
    transferred) / used, from the means over seeds: inf where all labels are not enough, 0 where the score is below that
    of the smallest share; lo and hi are the ends of `equivalent_interval`. Hernandez et al. 2021, arXiv:2102.01293,
    section 1.1.
    """
    part = rows[(rows["kind"] == kind) & (rows["task"] == task)]
    control, ours = part[part["start"] == SCRATCH], part[part["start"] == start]
    curves = {seed: dict(zip(cell["share"], cell["score"], strict=True)) for seed, cell in control.groupby("seed")}
    table = []
    for share, cell in ours.groupby("share"):
        scores = dict(zip(cell["seed"], cell["score"], strict=True))
        seeds = [seed for seed in scores if len(curves.get(seed, ())) > 1]
        common = sorted(set.intersection(*(set(curves[seed]) for seed in seeds))) if seeds else []
        if len(common) < 2:
            continue
        paired = [{amount: curves[seed][amount] for amount in common} for seed in seeds]
        mean = {amount: float(np.mean([curve[amount] for curve in paired])) for amount in common}
        ends = equivalent_interval(paired, [scores[seed] for seed in seeds], level)
        factor = equivalent_labels(mean, float(np.mean([scores[seed] for seed in seeds]))) / share
        labelled = float(cell["tokens"].mean())
        lo, hi = (None, None) if ends is None else (ends[0] / share, ends[1] / share)
        table.append(
            {
                "kind": kind, "start": start, "task": task, "share": share, "labelled tokens": labelled,
                "transferred": (factor - 1) * labelled, "factor": factor, "lo": lo, "hi": hi,
                "least": common[0] / share, "most": common[-1] / share, "seeds": len(seeds),
            }
        )  # fmt: skip
    return table


def factor_row(row: Row) -> Json:
    """A line of the table of effective data, with words where a number has no bound."""

    def bounded(value: float | None) -> str:
        """A factor, or what is known of it beyond the ends of the learning curve."""
        if value is None:
            return "no interval"
        if value == 0:
            return f"less than {row['least']:.3g}"
        return "more than all labels" if math.isinf(value) else f"{value:.3g}"

    kept = {key: row[key] for key in ("task", "kind", "start", "share", "labelled tokens", "seeds")}
    rounded = float(f"{row['transferred']:.3g}")
    moved = "no bound" if math.isinf(rounded) else f"{rounded:,.0f}"
    if row["factor"] == 0:
        most = float(f"{(row['least'] - 1) * row['labelled tokens']:.3g}")
        moved = f"less than {most:,.0f}"
    ends = {"lower end": bounded(row["lo"]), "upper end": bounded(row["hi"])}
    return kept | {"transferred tokens": moved, "times the labels": bounded(row["factor"]), **ends}
