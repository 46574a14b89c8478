"""Measures of `study=rl_forgetting`: what a policy forgot when it reached a held-out score, at its best learning rate.

A run is read as a path: its evaluations during training, with straight lines between them. Where the path first reaches
a score, its forgetting, divergence and cost are read off. So arms are compared at one score, whatever their last step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kleiber.records import Run
from kleiber.studies import Rows, arm_name
from kleiber.types import Json

SCORE, OLD, KL = "eval/reward/*/mean", "eval/perplexity/*/loss", "eval/divergence/*/kl"
SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # at which arms are compared
FORWARD = 1 / 3  # FLOPs of reading a token over those of training on it


class Point(NamedTuple):
    """A run after a step: its held-out score, its forgetting in nats per token, its divergence and its FLOPs."""

    score: float
    forgetting: float
    kl: float
    flops: float
    step: float


def matched_forgetting(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table with the path of each run, and each arm at each score that it reaches.

    on_path, on_path_kl  forgetting and divergence at each `step` of a run, by `arm` and `rate`
    matched, matched_kl, matched_flops  of an arm and a seed at a `score`: forgetting, divergence and FLOPs where the
                 run at the best rate first reaches the score. Rates are compared by their mean forgetting there over
                 seeds, and only those with the most seeds, all of which reach the score
    best_rate    of an arm at a score
    rank         of each seed: Spearman's correlation of forgetting and divergence over all evaluations of all arms
    """
    paths = [(run, path_of(run)) for run in runs if run.finished and arm_name(run)]
    rows = [row for run, path in paths for row in path_rows(run, path)]
    rows += [row for score in SCORES for row in rows_at(paths, score)]
    for seed in sorted({run.config["seed"] for run, _ in paths}):
        points = [point for run, path in paths if run.config["seed"] == seed for point in path[1:]]
        evaluations: Rows = pd.DataFrame(points, columns=Point._fields)
        rank = evaluations["forgetting"].corr(evaluations["kl"], "spearman")
        rows.append({"run": "", "seed": seed, "measure": "rank", "metric": "", "value": rank})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def path_of(run: Run) -> list[Point]:
    """Returns the evaluations of a run, from the start on; FLOPs are those of training and of writing answers."""
    stage = run.stage
    curve = [{"step": 0, **stage["start_metrics"]}, *stage["curve"]]
    points, start = [], np.nan
    for row in curve:
        values = [value_of(row, pattern) for pattern in (SCORE, OLD, KL)]
        if None in values:
            continue
        score, old, kl = map(float, values)  # type: ignore[arg-type]
        start = old if not points else start
        flops = stage["flops"]["executed"] * row["step"] / stage["steps"] + written_flops(run)
        points.append(Point(score, old - start, kl, flops, row["step"]))
    return points


def value_of(row: Json, pattern: str) -> float | None:
    """Returns the first metric of a row whose name has a pattern."""
    begin, end = pattern.split("*")
    return next((value for name, value in row.items() if name.startswith(begin) and name.endswith(end)), None)


def written_flops(run: Run) -> float:
    """Returns the FLOPs of the answers that the data of a run was made of, before training; 0 for other data."""
    data, stage = run.config["data"], run.stage
    written = data.get("prompts", 0) * data.get("samples", 0)
    sides = 2 if "Pairs" in data["_target_"] else 1
    of_sample = stage["flops"]["model"] / stage["samples"] / sides
    return written * of_sample * FORWARD


def path_rows(run: Run, path: Sequence[Point]) -> Iterator[Json]:
    """Yields the rows of the evaluations of a run."""
    place = {"run": run.name, "seed": run.config["seed"], "arm": arm_name(run), "rate": run.config["optimizer"]["lr"]}
    for point in path[1:]:
        for measure, value in (("on_path", point.forgetting), ("on_path_kl", point.kl)):
            yield {**place, "step": point.step, "measure": measure, "metric": "", "value": value}


def rows_at(paths: Sequence[tuple[Run, Sequence[Point]]], score: float) -> Iterator[Json]:
    """Yields the rows of each arm at a score."""
    reached: dict[str, dict[float, dict[int, Point | None]]] = {}
    for run, path in paths:
        rates = reached.setdefault(str(arm_name(run)), {})
        rates.setdefault(float(run.config["optimizer"]["lr"]), {})[run.config["seed"]] = point_at(path, score)
    for arm, rates in reached.items():
        most = max(map(len, rates.values()))
        means = {
            rate: np.mean([point.forgetting for point in seeds.values() if point])
            for rate, seeds in rates.items()
            if len(seeds) == most and None not in seeds.values()
        }
        if not means:
            continue
        best = min(means, key=lambda rate: float(means[rate]))
        place = {"run": "", "arm": arm, "score": score, "metric": ""}
        for seed, point in rates[best].items():
            assert point is not None, "every seed of the best rate reaches the score"
            values = {"matched": point.forgetting, "matched_kl": point.kl, "matched_flops": point.flops}
            for measure, value in {**values, "best_rate": best}.items():
                yield {**place, "seed": seed, "measure": measure, "value": value}


def point_at(path: Sequence[Point], score: float) -> Point | None:
    """Returns the point where a path first reaches a score, None where it does not."""
    for before, after in itertools.pairwise(path):
        if before.score < score <= after.score:
            share = (score - before.score) / (after.score - before.score)
            return Point(*(x + share * (y - x) for x, y in zip(before, after, strict=True)))
    return None
