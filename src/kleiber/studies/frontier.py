"""Pareto frontiers of two losses, and methods compared where they have learned equally much.

A method that learns less forgets less, so its forgetting at one learning rate says nothing. Here every method is read
off its own frontier at one target loss. The noise of seeds is pooled over all settings, since each has only a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.outcomes import PLAIN
from kleiber.studies.student import reach

CELL = ["method", "setting", "lr", "tokens"]


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: means over seeds, sd of F and target, the number n of seeds, and whether it is on its method's
    frontier ("best").
    """
    found = rows.groupby(CELL, as_index=False, dropna=False).agg(
        n=("seed", "size"), F=("F", "mean"), F_sd=("F", "std"), peak=("peak", "mean"),
        relative=("relative", "mean"), target=("target", "mean"),
        target_sd=("target", "std"), target_tokens=("target_tokens", "mean"), seconds=("seconds", "mean"),
        memory=("memory", "mean"), steps=("steps", "mean"), replayed=("replayed", "mean"),
    )  # fmt: skip
    found["best"] = False
    for _, one in found.groupby("method"):
        found.loc[one.index[nondominated(one["target"].to_numpy(), one["F"].to_numpy())], "best"] = True
    return found


def nondominated(x: NDArray, y: NDArray) -> NDArray[np.intp]:
    """Positions of the points that no other beats in both, by increasing x."""
    found, least = [], np.inf
    for i in np.lexsort((y, x)):
        if y[i] < least:
            found.append(i)
            least = y[i]
    return np.array(found, dtype=np.intp)


def read_off(x: NDArray, y: NDArray, at: float) -> float:
    """y of the frontier at x = `at`: between two points by a straight line, nan where no point has so little x."""
    order = nondominated(x, y)
    xs, ys = x[order], y[order]
    return float("nan") if not len(xs) or at < xs[0] else float(np.interp(at, xs, ys))


@dataclass(frozen=True)
class Noise:
    """Seed sd, pooled over settings that have replicates, and its degrees of freedom."""

    sd: float
    df: int

    def half_width(self, level: float, terms: float) -> float:
        """Of the interval of a sum whose variance is `terms` times that of one run; infinite without replicates."""
        return float(reach(self.df, level) * self.sd * np.sqrt(terms)) if self.df else float("inf")


def pooled(groups: Sequence[NDArray]) -> Noise:
    """sqrt(sum of squares within groups / (rows - groups))."""
    kept = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in kept)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in kept)
    return Noise(float(np.sqrt(squares / df)) if df else float("nan"), df)


def seed_noise(rows: pd.DataFrame, column: str) -> Noise:
    return pooled([one[column].to_numpy() for _, one in rows.groupby(CELL, dropna=False)])


@dataclass(frozen=True)
class Matched:
    """Forgetting of a method at one target loss: mean over the seeds that reach it, with an interval."""

    method: str
    F: float
    lo: float
    hi: float
    reached: int
    seeds: int


def reference(rows: pd.DataFrame, tolerance: float) -> float:
    """The target loss at which methods are compared: (1 + tolerance) times the least mean of plain fine-tuning.

    Without plain runs ValueError: nothing says how well the target can be learned.
    """
    plain = rows[rows["method"] == PLAIN]
    if not len(plain):
        raise ValueError(f"no run with method {PLAIN!r}: plain fine-tuning says how well the target can be learned")
    return (1 + tolerance) * float(pd.Series(averaged(pd.DataFrame(plain))["target"]).min())


def matched(rows: pd.DataFrame, at: float, level: float) -> list[Matched]:
    """Every method at the same target loss, the least forgetful first; those that do not reach it come last."""
    values: dict[str, NDArray] = {}
    seeds: dict[str, int] = {}
    for name, one in rows.groupby("method"):
        by_seed = [read_off(s["target"].to_numpy(), s["F"].to_numpy(), at) for _, s in one.groupby("seed")]
        found = np.array(by_seed)
        values[str(name)], seeds[str(name)] = found[np.isfinite(found)], len(found)
    noise = pooled(list(values.values()))
    made = []
    for name, found in values.items():
        mean = float(found.mean()) if len(found) else float("nan")
        half = noise.half_width(level, 1 / len(found)) if len(found) else float("nan")
        made.append(Matched(name, mean, mean - half, mean + half, len(found), seeds[name]))
    return sorted(made, key=lambda one: (not one.reached, one.F))


def chosen(points: pd.DataFrame, at: float) -> pd.DataFrame:
    """One setting a method, for tables and trajectories: the least forgetful that learns well enough, else the best
    learner."""
    found = []
    for _, one in points.groupby("method"):
        enough = pd.DataFrame(one[one["target"] <= at])
        found.append(enough.loc[enough["F"].idxmin()] if len(enough) else one.loc[one["target"].idxmin()])
    return pd.DataFrame(found).sort_values("F", ignore_index=True)
