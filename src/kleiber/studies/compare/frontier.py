"""What an arm would have reached in a given training time, from the times and losses of its own budgets.

Pareto frontiers of two losses, and methods compared where they have learned equally much.

A method that learns less forgets less, so its forgetting at one learning rate says nothing. Here every method is read
off its own frontier at one target loss. Methods of a seed go on from one base run, so they are compared within seeds;
the noise that is left is pooled over all settings, since each has only a few. It refuses to count points of a line
between two models (WiSE) as replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.compare.arms import Arm
from kleiber.studies.compare.intervals import Rows, reach
from kleiber.studies.compare.rows import PLAIN


def spent(arm: Arm) -> float:
    return arm.facts["train_s"]


def loss_after(seconds: float, budgets: Sequence[Arm]) -> Mapping[int, float] | None:
    """Loss by seed after `seconds` of training, linear in the log of time between two of `budgets`, one arm at several
    numbers of tokens; None where `seconds` lies outside them."""
    ladder = sorted(budgets, key=spent)
    below = [arm for arm in ladder if spent(arm) <= seconds]
    above = [arm for arm in ladder if spent(arm) >= seconds]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    begin, end = math.log(spent(low)), math.log(spent(high))
    share = (math.log(seconds) - begin) / (end - begin) if end > begin else 0.0
    both = set(low.at_best) & set(high.at_best)
    return {seed: (1 - share) * low.at_best[seed] + share * high.at_best[seed] for seed in both}


SAME = 1e-3  # nats between two scores of one model; ranks and precisions differ by less
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


def trained(rows: Rows) -> Rows:
    """The rows of trained models: points of a line come from the same runs and have no noise of their own."""
    return rows[~on_line(rows["method"])]


def on_line(methods: Rows) -> NDArray[np.bool_]:
    return np.array(methods.astype(str).str.contains(r"(?:^|\+)wise$"), dtype=bool)


def seed_noise(rows: pd.DataFrame, column: str) -> Noise:
    """Of one run, its base run's share included."""
    return pooled([one[column].to_numpy() for _, one in trained(rows).groupby(CELL, dropna=False)])


def blocked(table: Rows) -> Noise:
    """What is left of seeds x settings after a level of each seed and of each setting: the noise of a difference within
    seeds (randomised blocks). Missing entries are left out; df = entries - seeds - settings + 1 where they connect.
    """
    told = table.stack().dropna()
    if not len(told):
        return Noise(float("nan"), 0)
    seeds = np.asarray(told.index.get_level_values(0))[:, None] == table.index.to_numpy()
    codes = pd.MultiIndex.from_tuples([key[1:] for key in told.index]).factorize()[0]
    design = np.column_stack([seeds, codes[:, None] == np.arange(codes.max() + 1)]).astype(float)
    values = told.to_numpy(dtype=float)
    solved, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    df = len(values) - int(rank)
    left = float(((values - design @ solved) ** 2).sum())
    return Noise(float(np.sqrt(left / df)) if df else float("nan"), df)


def within_seeds(rows: Rows, column: str) -> Noise:
    """Of one run, less what all runs of its seed have in common."""
    settings = trained(rows).groupby(CELL, dropna=False).ngroup()
    return blocked(trained(rows).assign(cell=settings).pivot_table(index="seed", columns="cell", values=column))


@dataclass(frozen=True)
class Matched:
    """Forgetting of a method at one target loss: mean over the seeds that reach it, with an interval.

    less  F of plain fine-tuning less that of the method, over the `pairs` seeds where both reach the loss; `half` is of
          its interval, simultaneous over the methods (Bonferroni)
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

    Without plain runs ValueError: nothing says how well the target can be learned.
    """
    plain = rows[rows["method"] == PLAIN]
    if not len(plain):
        raise ValueError(f"no run with method {PLAIN!r}: plain fine-tuning says how well the target can be learned")
    return (1 + tolerance) * float(pd.Series(averaged(pd.DataFrame(plain))["target"]).min())


def one_base(rows: Rows) -> None:
    """ValueError where runs of one method and seed went on from bases that differ in their loss of the earlier tasks.

    They would pass for settings of one comparison, and their spread for noise.
    """
    for (method, seed), one in rows.groupby(["method", "seed"]):
        low, high = float(one["start"].min()), float(one["start"].max())
        if high - low > SAME:
            raise ValueError(
                f"{method} with seed {seed} goes on from several bases (loss of the earlier tasks {low:.4f} to "
                f"{high:.4f}): methods are compared on one, so give every key of design.base one value"
            )


def matched(rows: Rows, at: float, level: float) -> list[Matched]:
    """Every method at the same target loss, the least forgetful first; those that do not reach it come last.

    The order is that of the differences within seeds, since a method that reaches the loss from some bases only has a
    mean over those. ValueError as `one_base`.
    """
    one_base(rows)
    table = at_target(rows, at)
    seeds = rows.groupby("method")["seed"].nunique()
    models = table.loc[:, ~on_line(table.columns)]
    spread = pooled([models[name].dropna().to_numpy() for name in models])
    # Bases are common to all methods, so a mean is known by as many of them as there are seeds, not by methods x seeds.
    noise = Noise(spread.sd, min(spread.df, max(int(models.count().max()) - 1, 0)))
    others = max(sum(name != PLAIN and table[name].notna().any() for name in table), 1)
    made = []
    for name in map(str, table):
        found = table[name].dropna().to_numpy()
        mean = float(found.mean()) if len(found) else float("nan")
        half = noise.half_width(level, 1 / len(found)) if len(found) else float("nan")
        gaps = (table[PLAIN] - table[name]).dropna() if PLAIN in table else table[name].iloc[:0]
        wide = blocked(models).half_width(1 - (1 - level) / others, 2 / len(gaps)) if len(gaps) else float("nan")
        less = float(gaps.mean()) if len(gaps) else float("nan")
        ends = mean - half, mean + half, len(found), int(seeds[name])
        made.append(Matched(name, mean, *ends, less, wide, len(gaps)))
    plain = next((one.F for one in made if one.method == PLAIN and one.reached), 0.0)
    return sorted(made, key=lambda one: (not one.reached, plain - one.less if one.pairs else one.F))


def at_target(rows: Rows, at: float) -> Rows:
    """F at one target loss, seeds x methods; nan where a method does not reach it."""
    found: dict[tuple[Any, Any], float] = {
        (seed, method): read_off(one["target"].to_numpy(), one["F"].to_numpy(), at)
        for (seed, method), one in rows.groupby(["seed", "method"])
    }
    return pd.Series(found).unstack()


def bounded(points: Rows, at: float) -> list[str]:
    """Methods whose whole frontier has learned more than `at`: their F there is at most what is read off, which is that
    of their point nearest to it. A point that another beats says nothing of that."""
    ends = points[points["best"]].groupby("method")["target"].max()
    return [str(method) for method, end in ends.items() if end < at]


def chosen(points: pd.DataFrame, at: float) -> pd.DataFrame:
    """One setting a method, for tables and trajectories: the least forgetful that learns well enough, else the best
    learner."""
    found = []
    for _, one in points.groupby("method"):
        enough = pd.DataFrame(one[one["target"] <= at])
        found.append(enough.loc[enough["F"].idxmin()] if len(enough) else one.loc[one["target"].idxmin()])
    return pd.DataFrame(found).sort_values("F", ignore_index=True)
