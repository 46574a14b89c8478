"""Estimates with intervals, what has to hold of them, and whether it does."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import NamedTuple, TypeVar

from kleiber.config.errors import ExitCode
from kleiber.inference.contrasts import Spread
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

Key = TypeVar("Key", int, tuple[int, int])  # a seed, or a size and a seed
DIRECTIONS = ("lower", "higher", "not_lower", "not_higher", "within")
MOST_SEEDS = 1000  # beyond this the number of further seeds is not told


class Quantity(NamedTuple):
    """A quantity that can be held equal: its name among the facts of an arm, and its label."""

    fact: str
    label: str


QUANTITIES = {
    "tokens": Quantity("tokens", "training tokens"),
    "flops": Quantity("flops", "training FLOPs"),
    "seconds": Quantity("train_s", "training time"),
    "params": Quantity("params", "parameters"),
    "memory": Quantity("memory", "inference memory"),
}


class Decision(StrEnum):
    """What the runs say about a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command that decides the claim."""
        codes = {Decision.SUPPORTED: ExitCode.DONE, Decision.CONTRADICTED: ExitCode.CONTRADICTED}
        return codes.get(self, ExitCode.UNDECIDED)


@dataclass(frozen=True)
class Estimate:
    """An estimate from n seeds with its interval; lo and hi are None where there is no interval."""

    value: float
    lo: float | None
    hi: float | None
    n: int
    unit: str

    def text(self, style: str = "+.4f") -> str:
        """The estimate with its interval, such as `-0.1400 [-0.1500, -0.1300] nats per token`.

        style  format of its numbers
        """
        if self.lo is None or self.hi is None:
            value = f"{self.value:{style}} {self.unit}".rstrip()
            return f"{value} (no interval: {self.n} seed{'s' * (self.n != 1)})"
        return f"{self.value:{style}} {format_interval(self.lo, self.hi, style)} {self.unit}".rstrip()

    def negated(self) -> Estimate:
        """Returns the estimate of the difference with its sides exchanged."""
        ends = (None, None) if self.lo is None or self.hi is None else (-self.hi, -self.lo)
        return Estimate(-self.value, *ends, self.n, self.unit)

    def plus(self, amount: float) -> Estimate:
        """Returns the estimate of the value with an amount added."""
        ends = (None, None) if self.lo is None or self.hi is None else (self.lo + amount, self.hi + amount)
        return Estimate(self.value + amount, *ends, self.n, self.unit)

    def within(self, least: float, most: float) -> Estimate:
        """Returns the estimate with its interval cut at the ends of its scale, which the interval of a mean ignores."""
        if self.lo is None or self.hi is None:
            return self
        return replace(self, lo=max(least, self.lo), hi=min(most, self.hi))


def mean_interval(values: Sequence[float], level: float) -> tuple[float | None, float | None]:
    """Student's interval of the mean; (None, None) below two values and for values that are not finite."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None, None
    mean, half = statistics.fmean(values), half_width(values, n, level)
    return mean - half, mean + half


def half_width(values: Sequence[float], num_seeds: int, level: float) -> float:
    """Returns the half-width that Student's interval would have with `num_seeds` seeds of the same spread."""
    return student_quantile(num_seeds - 1, level) * statistics.stdev(values) / math.sqrt(num_seeds)


def mean_estimate(values: Sequence[float], level: float, unit: str) -> Estimate | None:
    """Returns the mean of one value per seed, with Student's interval; None without values."""
    if not values:
        return None
    lo, hi = mean_interval(values, level)
    return Estimate(statistics.fmean(values), lo, hi, len(values), unit)


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float, unit: str
) -> Estimate | None:
    """Returns the mean of ours - theirs over the common seeds, with Student's interval.

    None without a common seed, and where an arm diverged with one of them.
    """
    gaps = gaps_by_seed(ours, theirs)
    return mean_estimate(gaps, level, unit) if all(map(math.isfinite, gaps)) else None


def gaps_by_seed(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> list[float]:
    """Returns ours - theirs of each common seed, or size and seed, in their order."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def as_row(estimate: Estimate | None) -> Json:
    """The columns value, lo, hi, n and unit of a table; all of them None without an estimate."""
    return asdict(estimate) if estimate else dict.fromkeys(("value", "lo", "hi", "n", "unit"))


def estimate_around(value: float, half: float, n: int, unit: str) -> Estimate:
    """Returns the estimate with an interval of half-width `half`; without interval where that is not finite."""
    ends = (value - half, value + half) if math.isfinite(half) else (None, None)
    return Estimate(value, *ends, n, unit)


def from_row(row: Row) -> Estimate:
    """The estimate of a row that has its columns."""
    return Estimate(*(row[name] for name in ("value", "lo", "hi", "n", "unit")))


@dataclass(frozen=True)
class Criterion:
    """What has to hold of a quantity.

    direction  lower, higher: it is below -margin, or above margin; not_lower, not_higher: it is not; within: it lies
               between the two
    margin     in the unit of the quantity
    """

    direction: str = "lower"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction} must be one of {', '.join(DIRECTIONS)}")
        if not 0 <= self.margin < math.inf or (self.direction == "within" and self.margin == 0):
            least = "> 0 for direction=within" if self.direction == "within" else ">= 0"
            raise ValueError(f"margin={self.margin} must be {least}")

    @property
    def better(self) -> str | None:
        """Whether it holds for a "lower" or a "higher" quantity; None for direction=within."""
        if self.direction == "within":
            return None
        return "higher" if self.direction in ("higher", "not_lower") else "lower"

    @property
    def bound(self) -> float | None:
        """The value below or above which it is claimed to be; None for direction=within."""
        if self.direction == "within":
            return None
        return -self._upper if self.better == "higher" else self._upper

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The lower and the upper bound of where it is claimed to be; None for the lower one if they are one."""
        return (-self.margin, self.margin) if self.bound is None else (None, self.bound)

    @property
    def region(self) -> str:
        """Where the quantity is claimed to be, such as `below 0.01`."""
        if self.bound is None:
            return f"within ±{self.margin:g}"
        side = "above" if self.better == "higher" else "below"
        return f"{side} {self.bound or 0.0:g}".replace("-", "\N{MINUS SIGN}")

    @property
    def _upper(self) -> float:
        """The bound below which it is claimed to be, with the other sign where "higher" is claimed."""
        return self.margin if self.direction.startswith("not_") else -self.margin

    def decide(self, estimate: Estimate | None) -> Decision:
        """Decides by the interval of the quantity."""
        if estimate is None or estimate.lo is None or estimate.hi is None:
            return Decision.NOT_TESTED
        lo, hi = (-estimate.hi, -estimate.lo) if self.better == "higher" else (estimate.lo, estimate.hi)
        if self.direction == "within":
            supported = -self.margin < lo and hi < self.margin
            contradicted = lo > self.margin or hi < -self.margin
        else:
            supported, contradicted = hi < self._upper, lo > self._upper
        if supported:
            return Decision.SUPPORTED
        return Decision.CONTRADICTED if contradicted else Decision.UNDECIDED


def level_of_each(level: float, num_claims: int, num_looks: int) -> float:
    """Returns the confidence level of one interval, so that all intervals of a study hold together at `level`."""
    return 1 - (1 - level) / (num_claims * num_looks)


def more_seeds_needed(estimate: Estimate, spread: Spread, criterion: Criterion, level: float) -> int | None:
    """Returns how many further seeds would decide about the estimate, if mean and spread stay as they are.

    None where more than MOST_SEEDS would be needed.
    """

    def decided(further: int) -> bool:
        """Whether the interval with so many seeds more decides; it becomes narrower with every seed."""
        half = spread.with_samples(estimate.n, further).half_width(level)
        return criterion.decide(estimate_around(estimate.value, half, estimate.n, "")) != Decision.UNDECIDED

    number = bisect_left(range(MOST_SEEDS - estimate.n + 1), True, key=decided)
    return None if number > MOST_SEEDS - estimate.n else number
