"""The best setting of each arm, the frontier of forgetting against target loss, and arms at equal target loss.

An arm that learns less forgets less, so forgetting is compared on the frontier of each arm at one target loss. Arms of
a seed start from one base run, so differences are within seeds. Points on the line between two models (WiSE) do not
count as replicates.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.inference.contrasts import Cell
from kleiber.studies.compare.noise import Noise, on_line, pooled
from kleiber.studies.compare.rows import CELL, Rows
from kleiber.types import Json

SAME = 1e-3  # most difference in nats between two scores of one model


def complete_settings(rows: Rows, arm: list[str], setting: list[str]) -> Rows:
    """Returns the rows of the settings with the most rows of their arm: others lack runs, such as those that diverged.

    arm, setting  columns that name an arm, and a setting of an arm
    """
    size = rows.groupby([*arm, *setting], dropna=False)[arm[0]].transform("size")
    return rows[size == size.groupby([rows[name] for name in arm]).transform("max")]


def best_settings(rows: Rows, arm: list[str], setting: list[str], measure: str, higher: bool = False) -> Rows:
    """Returns the setting of best mean of each arm, among its `complete_settings`.

    measure  column whose mean is the least or, with `higher`, the largest
    """
    columns = [*arm, *setting]
    means = complete_settings(rows, arm, setting).groupby(columns, as_index=False, dropna=False)[measure].mean()
    means_by_arm = means.groupby(arm)[measure]
    return means.loc[means_by_arm.idxmax() if higher else means_by_arm.idxmin(), columns]


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting: means over seeds, sd of F and target, the number n of seeds.

    "best" is whether the setting is on the frontier of the complete settings of its method.
    """
    table = rows.groupby(CELL, as_index=False, dropna=False).agg(
        n=("seed", "size"), F=("F", "mean"), F_sd=("F", "std"), peak=("peak", "mean"),
        relative=("relative", "mean"), target=("target", "mean"),
        target_sd=("target", "std"), target_tokens=("target_tokens", "mean"), seconds=("seconds", "mean"),
        memory=("memory", "mean"), steps=("steps", "mean"), tuned=("tuned", "mean"), N=("N", "median"),
    )  # fmt: skip
    table["best"] = False
    for _, part in table.groupby("method"):
        complete: Rows = part[part["n"] == part["n"].max()]
        table.loc[complete.index[nondominated(complete["target"].to_numpy(), complete["F"].to_numpy())], "best"] = True
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


EQUAL = ("reference", "weakest", "pair")  # whose best target loss decides where arms are compared


@dataclass(frozen=True)
class EqualTarget:
    """Reads the forgetting F of arms off the frontiers of their `complete_settings` at equal target loss.

    rows       of `outcomes`
    reference  the arm that the others are compared with
    equal      arms are compared at (1 + tolerance) times the best target loss of "reference", of the "weakest" arm, so
               that all arms reach it, or of the weaker arm of each "pair"
    """

    rows: Rows
    reference: str
    equal: str
    tolerance: float

    @cached_property
    def complete(self) -> Rows:
        """The rows of the complete settings."""
        return complete_settings(self.rows, CELL[:1], CELL[1:])

    @cached_property
    def by_seed(self) -> dict[str, dict[int, tuple[NDArray, NDArray]]]:
        """Target losses and F on the frontier of each arm, by seed."""
        frontiers: dict[str, dict[int, tuple[NDArray, NDArray]]] = {}
        for (arm, seed), part in self.complete.groupby(["method", "seed"]):
            x, y = part["target"].to_numpy(), part["F"].to_numpy()
            order = nondominated(x, y)
            frontiers.setdefault(str(arm), {})[seed] = x[order], y[order]
        return frontiers

    @cached_property
    def best(self) -> Rows:
        """The rows of each arm at its setting of least mean target loss."""
        return self.rows.merge(best_settings(self.rows, CELL[:1], CELL[1:], "target"), on=CELL)

    @cached_property
    def least(self) -> Rows:
        """The mean target loss of each arm at that setting."""
        return self.at_best("target").mean()

    def at_best(self, measure: str) -> Rows:
        """A measure of each arm at its best setting, seeds x arms."""
        return self.best.pivot_table(index="seed", columns="method", values=measure)

    def loss(self, arm: str, against: str) -> float:
        """Returns the target loss at which two arms are compared."""
        sides = {"reference": [self.reference], "weakest": list(self.least.index), "pair": [arm, against]}
        return (1 + self.tolerance) * float(self.least[sides[self.equal]].max())

    def forgetting(self, arm: str, loss: float) -> Rows:
        """F of an arm at a target loss by seed; nan where the arm does not reach it."""
        return pd.Series({seed: read_off(x, y, loss) for seed, (x, y) in self.by_seed.get(arm, {}).items()})

    def table(self) -> Rows:
        """F of each arm at its target loss, seeds x arms."""
        arms = sorted(set(self.rows["method"]))
        return pd.DataFrame({arm: self.forgetting(arm, self.loss(arm, self.reference)) for arm in arms})

    def differences(self, measure: str, arm: str, against: str, matched: bool = True) -> Rows:
        """Returns by seed a measure of an arm minus that of another, without seeds that lack one of them.

        measure  "F" or "target"
        matched  F at equal target loss; otherwise both arms are at their best settings
        """
        if not matched:
            table = self.at_best(measure)
            return (table[arm] - table[against]).dropna()
        loss = self.loss(arm, against)
        return (self.forgetting(arm, loss) - self.forgetting(against, loss)).dropna()

    def groups(self, measure: str, matched: bool = True) -> dict[Hashable, list[Cell]]:
        """Returns the cells of each arm for the variance of `differences`: at its target loss, or near its best rate.

        None at target losses of their own, as arms of each "pair" have them.
        """
        if matched:
            table = self.table() if self.equal != "pair" else pd.DataFrame()
            return {arm: [table[arm].dropna().to_dict()] for arm in table}
        groups: dict[Hashable, list[Cell]] = {}
        for arm, best in self.best.groupby("method"):
            chosen = best.iloc[0]
            part = self.complete[(self.complete["method"] == arm) & (self.complete["setting"] == chosen["setting"])]
            part = part[part["tokens"] == chosen["tokens"]]
            rates = sorted(set(part["lr"]))
            at = rates.index(chosen["lr"])
            near = rates[max(0, at - 1) : at + 2]
            groups[arm] = [part[part["lr"] == rate].groupby("seed")[measure].mean().to_dict() for rate in near]
        return groups

    @property
    def common(self) -> float | None:
        """The target loss at which all arms are compared; None where each pair has its own."""
        return None if self.equal == "pair" else self.loss(self.reference, self.reference)

    def levels(self, level: float) -> list[Json]:
        """Returns F of every arm at its target loss: mean over the seeds that `reached` it, and interval.

        `bound` is "at most" where this F is an upper bound, and `reference_bound` where that of the reference there is.
        The arm that forgets least comes first, by differences within seeds from the reference, since an arm may reach
        the loss from some bases only; arms that do not reach it come last.
        """
        table, seeds = self.table(), self.rows.groupby("method")["seed"].nunique()
        models = table.loc[:, ~on_line(table.columns)]
        spread = pooled([models[name].dropna().to_numpy() for name in models])
        # Arms share bases, so the degrees of freedom of a mean are those of seeds, not of arms x seeds.
        noise = Noise(spread.sd, min(spread.df, max(int(models.count().max()) - 1, 0)))
        rows = []
        for arm in map(str, table):
            values = table[arm].dropna()
            mean, half = float(values.mean()), noise.half_width(level, 1 / max(len(values), 1))
            lo, hi = (mean - half, mean + half) if math.isfinite(half) and len(values) else (None, None)
            loss = self.loss(arm, self.reference)
            theirs = float(self.forgetting(self.reference, loss).reindex(values.index).mean())
            gap = float(self.differences("F", arm, self.reference).mean())
            ends = {"F": mean, "lo": lo, "hi": hi, "reached": len(values), "seeds": int(seeds[arm])}
            bounds = ("at most" * self.is_bound(name, loss, values.index) for name in (arm, self.reference))
            row = {"method": arm, **ends, "at": loss, "reference": theirs, "gap": gap}
            rows.append(row | dict(zip(("bound", "reference_bound"), bounds, strict=True)))
        return sorted(rows, key=lambda row: (not row["reached"], math.isnan(row["gap"]), row["gap"], row["F"]))

    def is_bound(self, arm: str, loss: float, seeds: Iterable[int]) -> bool:
        """Whether F of an arm at a target loss is an upper bound, because the frontier of a seed ends before it."""
        return any(len(x) and x[-1] < loss for seed, (x, _) in self.by_seed[arm].items() if seed in seeds)

    def bounded(self) -> dict[str, tuple[float, int]]:
        """The target loss of each arm whose F there is an upper bound, and the number of seeds of which it is one."""
        losses = {arm: self.loss(arm, self.reference) for arm in self.by_seed}
        counts = {
            arm: sum(self.is_bound(arm, loss, {seed}) for seed in self.by_seed[arm]) for arm, loss in losses.items()
        }
        return {arm: (losses[arm], count) for arm, count in counts.items() if count}

    def bounds(self, arm: str, against: str) -> tuple[bool, bool]:
        """Returns for both arms whether their F, where the two are compared, is an upper bound."""
        loss, seeds = self.loss(arm, against), self.differences("F", arm, against).index
        return self.is_bound(arm, loss, seeds), self.is_bound(against, loss, seeds)

    def left_out(self) -> dict[str, list[str]]:
        """The settings of each arm that are not complete, such as `fraction=0.05 lr=0.01 (2 of 3 runs)`."""
        settings: dict[str, list[str]] = {}
        points: Rows = averaged(self.rows)
        for arm, part in points.groupby("method"):
            most, records = part["n"].max(), part.to_dict("records")
            names = [
                f"{row['setting']} lr={row['lr']:g} ({row['n']} of {most} runs)".strip()
                for row in records
                if row["n"] < most
            ]
            settings |= {str(arm): names} if names else {}
        return settings

    def chosen(self, points: Rows) -> Rows:
        """One complete setting of each arm: the least F among those that reach its target loss, else the least target
        loss."""
        settings = []
        for arm, part in points.groupby("method"):
            part = part[part["n"] == part["n"].max()]
            enough = part[part["target"] <= self.loss(str(arm), self.reference)]
            settings.append(enough.loc[enough["F"].idxmin()] if len(enough) else part.loc[part["target"].idxmin()])
        return pd.DataFrame(settings).sort_values("F", ignore_index=True)


def require_common_base(rows: Rows) -> None:
    """Raises ValueError where runs of one arm and seed start from bases with different losses on the earlier tasks.

    Their differences would count as noise.
    """
    for (arm, seed), part in rows.groupby(["method", "seed"]):
        low, high = float(part["start"].min()), float(part["start"].max())
        if high - low > SAME:
            raise ValueError(
                f"{arm} with seed {seed} starts from several bases (loss of the earlier tasks {low:.4f} to "
                f"{high:.4f}); methods are compared on one base, so give every key of design.base a single value"
            )
