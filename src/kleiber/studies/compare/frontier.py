"""Pareto frontiers of two losses, and methods compared at equal target loss.

A method that learns less forgets less, so forgetting is compared on the frontier of each method at one target loss.
Methods of a seed start from one base run, so differences are within seeds; their noise is pooled over all settings.
Points on the line between two models (WiSE) do not count as replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.compare.rows import PLAIN, Rows
from kleiber.studies.laws.uncertainty import student_quantile

SAME = 1e-3  # most difference in nats between two scores of one model
CELL = ["method", "setting", "lr", "tokens"]


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting: means over seeds, sd of F and target, the number n of seeds.

    "best" is whether the setting is on the frontier of its method.
    """
    table = rows.groupby(CELL, as_index=False, dropna=False).agg(
        n=("seed", "size"), F=("F", "mean"), F_sd=("F", "std"), peak=("peak", "mean"),
        relative=("relative", "mean"), target=("target", "mean"),
        target_sd=("target", "std"), target_tokens=("target_tokens", "mean"), seconds=("seconds", "mean"),
        memory=("memory", "mean"), steps=("steps", "mean"), replayed=("replayed", "mean"),
    )  # fmt: skip
    table["best"] = False
    for _, part in table.groupby("method"):
        table.loc[part.index[nondominated(part["target"].to_numpy(), part["F"].to_numpy())], "best"] = True
    return table


def nondominated(x: NDArray, y: NDArray) -> NDArray[np.intp]:
    """Positions of the Pareto-optimal points (least x and y), by increasing x."""
    kept, least = [], np.inf
    for i in np.lexsort((y, x)):
        if y[i] < least:
            kept.append(i)
            least = y[i]
    return np.array(kept, dtype=np.intp)


def read_off(x: NDArray, y: NDArray, at: float) -> float:
    """y of the frontier at x = `at`, interpolated linearly; nan where all points have a larger x."""
    order = nondominated(x, y)
    xs, ys = x[order], y[order]
    return float("nan") if not len(xs) or at < xs[0] else float(np.interp(at, xs, ys))


@dataclass(frozen=True)
class Noise:
    """Standard deviation over seeds, pooled over settings with replicates, and its degrees of freedom."""

    sd: float
    df: int

    def half_width(self, level: float, terms: float) -> float:
        """Half-width of the interval of a sum with `terms` times the variance of one run; inf without replicates."""
        return float(student_quantile(self.df, level) * self.sd * np.sqrt(terms)) if self.df else float("inf")


def pooled(groups: Sequence[NDArray]) -> Noise:
    """The pooled noise within groups: sqrt(sum of squares within groups / (rows - groups))."""
    kept = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in kept)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in kept)
    return Noise(float(np.sqrt(squares / df)) if df else float("nan"), df)


def trained(rows: Rows) -> Rows:
    """The rows of trained models, without the points on the line between two models (WiSE)."""
    return rows[~on_line(rows["method"])]


def on_line(methods: Rows) -> NDArray[np.bool_]:
    return np.array(methods.astype(str).str.contains(r"(?:^|\+)wise$"), dtype=bool)


def seed_noise(rows: pd.DataFrame, column: str) -> Noise:
    """The noise of one run over seeds, including that of its base run."""
    return pooled([part[column].to_numpy() for _, part in trained(rows).groupby(CELL, dropna=False)])


def blocked(table: Rows) -> Noise:
    """The noise of a difference within seeds (randomized blocks): residuals of seeds x settings, main effects removed.

    Missing entries are left out; df = entries - seeds - settings + 1 for a connected table.
    """
    entries = table.stack().dropna()
    if not len(entries):
        return Noise(float("nan"), 0)
    seeds = np.asarray(entries.index.get_level_values(0))[:, None] == table.index.to_numpy()
    codes = pd.MultiIndex.from_tuples([key[1:] for key in entries.index]).factorize()[0]
    design = np.column_stack([seeds, codes[:, None] == np.arange(codes.max() + 1)]).astype(float)
    values = entries.to_numpy(dtype=float)
    solved, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    df = len(values) - int(rank)
    left = float(((values - design @ solved) ** 2).sum())
    return Noise(float(np.sqrt(left / df)) if df else float("nan"), df)


def within_seeds(rows: Rows, column: str) -> Noise:
    """The noise of one run without what all runs of its seed have in common."""
    settings = trained(rows).groupby(CELL, dropna=False).ngroup()
    return blocked(trained(rows).assign(cell=settings).pivot_table(index="seed", columns="cell", values=column))


@dataclass(frozen=True)
class Matched:
    """Forgetting F of a method at one target loss: mean over the `reached` of its `seeds` that reach it, with interval.

    less  F of plain fine-tuning - F of the method, over the `pairs` seeds where both reach the loss
    half  half-width of the interval of `less`, simultaneous over methods (Bonferroni)
    """

    method: str
    F: float
    lo: float
    hi: float
    reached: int
    seeds: int
    less: float = float("nan")
    half: float = float("nan")
    pairs: int = 0


def reference(rows: pd.DataFrame, tolerance: float) -> float:
    """The target loss at which methods are compared: (1 + tolerance) times the least mean of plain fine-tuning.

    Raises ValueError without plain fine-tuning.
    """
    plain = rows[rows["method"] == PLAIN]
    if not len(plain):
        raise ValueError("no run of plain fine-tuning: its best target loss is where methods are compared")
    return (1 + tolerance) * float(pd.Series(averaged(pd.DataFrame(plain))["target"]).min())


def require_common_base(rows: Rows) -> None:
    """Raises ValueError where runs of one method and seed start from bases with different losses on the earlier tasks.

    Their differences would count as noise.
    """
    for (method, seed), part in rows.groupby(["method", "seed"]):
        low, high = float(part["start"].min()), float(part["start"].max())
        if high - low > SAME:
            raise ValueError(
                f"{method} with seed {seed} starts from several bases (loss of the earlier tasks {low:.4f} to "
                f"{high:.4f}); methods are compared on one base, so give every key of design.base a single value"
            )


def matched(rows: Rows, at: float, level: float) -> list[Matched]:
    """Every method at the target loss `at`, by increasing forgetting; methods that do not reach it come last.

    They are ordered by differences within seeds, since a method may reach the loss from some bases only. Raises
    ValueError as `require_common_base`.
    """
    require_common_base(rows)
    table = at_target(rows, at)
    seeds = rows.groupby("method")["seed"].nunique()
    models = table.loc[:, ~on_line(table.columns)]
    spread = pooled([models[name].dropna().to_numpy() for name in models])
    # Methods share bases, so the degrees of freedom of a mean are those of seeds, not of methods x seeds.
    noise = Noise(spread.sd, min(spread.df, max(int(models.count().max()) - 1, 0)))
    others = max(sum(name != PLAIN and table[name].notna().any() for name in table), 1)
    comparisons = []
    for name in map(str, table):
        values = table[name].dropna().to_numpy()
        mean = float(values.mean()) if len(values) else float("nan")
        half = noise.half_width(level, 1 / len(values)) if len(values) else float("nan")
        gaps = (table[PLAIN] - table[name]).dropna() if PLAIN in table else table[name].iloc[:0]
        wide = blocked(models).half_width(1 - (1 - level) / others, 2 / len(gaps)) if len(gaps) else float("nan")
        less = float(gaps.mean()) if len(gaps) else float("nan")
        ends = mean - half, mean + half, len(values), int(seeds[name])
        comparisons.append(Matched(name, mean, *ends, less, wide, len(gaps)))
    plain = next((comparison.F for comparison in comparisons if comparison.method == PLAIN and comparison.reached), 0.0)
    return sorted(
        comparisons,
        key=lambda comparison: (not comparison.reached, plain - comparison.less if comparison.pairs else comparison.F),
    )


def at_target(rows: Rows, at: float) -> Rows:
    """F at the target loss `at`, seeds x methods; nan where a method does not reach it."""
    by_method: dict[tuple[int, str], float] = {
        (seed, method): read_off(part["target"].to_numpy(), part["F"].to_numpy(), at)
        for (seed, method), part in rows.groupby(["seed", "method"])
    }
    return pd.Series(by_method).unstack()


def bounded(points: Rows, at: float) -> list[str]:
    """Methods whose whole frontier has a target loss below `at`, so that their F there is an upper bound."""
    ends = points[points["best"]].groupby("method")["target"].max()
    return [str(method) for method, end in ends.items() if end < at]


def chosen(points: pd.DataFrame, at: float) -> pd.DataFrame:
    """One setting of each method: the least F among those with a target loss <= `at`, else the least target loss."""
    settings = []
    for _, part in points.groupby("method"):
        enough = pd.DataFrame(part[part["target"] <= at])
        settings.append(enough.loc[enough["F"].idxmin()] if len(enough) else part.loc[part["target"].idxmin()])
    return pd.DataFrame(settings).sort_values("F", ignore_index=True)
