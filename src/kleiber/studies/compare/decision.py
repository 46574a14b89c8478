"""Decides claims such as "arm B has a lower loss than arm A" from differences that are paired by seed.

An interval decides a claim once. Who looks again after more seeds, until the interval is clear of zero, is wrong more
often than the level says. So a study states its number of looks beforehand, and every look of every claim gets an equal
part of the error rate (Bonferroni): the claims of a study are all right with probability `level`, at whichever look
it stops.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from kleiber.config.errors import ExitCode
from kleiber.studies.compare.arms import interval
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.types import Json

DIRECTIONS = ("lower", "higher", "within")
MOST_SEEDS = 1000  # beyond this the number of further seeds is not told


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
    """A mean difference over seeds, arm less against, and its interval; lo and hi are None below two seeds."""

    value: float
    lo: float | None
    hi: float | None
    n: int
    unit: str

    def text(self) -> str:
        """The estimate with its interval, such as `-0.1400 [-0.1500, -0.1300] nats per token`."""
        if self.lo is None or self.hi is None:
            return f"{self.value:+.4f} {self.unit} (no interval: {self.n} seed)"
        return f"{self.value:+.4f} [{self.lo:+.4f}, {self.hi:+.4f}] {self.unit}"


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float, unit: str
) -> Estimate | None:
    """Returns the mean of ours - theirs over the common seeds, with Student's interval; None without a common seed."""
    gaps = gaps_by_seed(ours, theirs)
    if not gaps:
        return None
    lo, hi = interval(gaps, level)
    return Estimate(statistics.fmean(gaps), lo, hi, len(gaps), unit)


def gaps_by_seed(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Returns ours - theirs of each common seed, in order of the seed."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


@dataclass(frozen=True)
class Claim:
    """A statement about two arms.

    arm, against  names of the arms
    direction     lower: the measure of `arm` is lower than that of `against` by more than `margin`; higher: it is
                  higher by more than `margin`; within: the two differ by less than `margin`
    margin        in the unit of the measure
    """

    arm: str
    against: str
    direction: str = "lower"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction} must be one of {', '.join(DIRECTIONS)}")
        if not 0 <= self.margin < math.inf or (self.direction == "within" and self.margin == 0):
            least = "> 0 for direction=within" if self.direction == "within" else ">= 0"
            raise ValueError(f"margin={self.margin} must be {least}")

    def text(self, measure: str) -> str:
        """The statement as a sentence without a period."""
        if self.direction == "within":
            return f"{self.arm} and {self.against} differ in {measure} by less than {self.margin:g}"
        by = f" by more than {self.margin:g}" if self.margin else ""
        return f"{self.arm} has a {self.direction} {measure} than {self.against}{by}"

    def decide(self, estimate: Estimate | None) -> Decision:
        """Decides the claim by the interval of arm - against."""
        if estimate is None or estimate.lo is None or estimate.hi is None:
            return Decision.NOT_TESTED
        lo, hi = (estimate.lo, estimate.hi) if self.direction != "higher" else (-estimate.hi, -estimate.lo)
        if self.direction == "within":
            supported = -self.margin < lo and hi < self.margin
            contradicted = lo > self.margin or hi < -self.margin
        else:
            supported, contradicted = hi < -self.margin, lo > -self.margin
        if supported:
            return Decision.SUPPORTED
        return Decision.CONTRADICTED if contradicted else Decision.UNDECIDED

    def to_json(self) -> Json:
        """The claim as plain data."""
        return asdict(self)


def level_of_each(level: float, num_claims: int, num_looks: int) -> float:
    """Returns the confidence level of one interval, so that all intervals of a study hold together at `level`."""
    return 1 - (1 - level) / (num_claims * num_looks)


def overall(decisions: Sequence[Decision]) -> Decision:
    """Returns the decision of a study with several claims: that of its worst claim."""
    order = (Decision.CONTRADICTED, Decision.NOT_TESTED, Decision.UNDECIDED, Decision.SUPPORTED)
    return next(decision for decision in order if decision in decisions)


def half_width(gaps: Sequence[float], num_seeds: int, level: float) -> float:
    """Returns the half-width that Student's interval would have with `num_seeds` seeds of the same spread."""
    spread = statistics.stdev(gaps)
    return student_quantile(num_seeds - 1, level) * spread / math.sqrt(num_seeds)


def more_seeds_needed(gaps: Sequence[float], claim: Claim, level: float) -> int | None:
    """Returns how many further seeds would decide the claim, if mean and spread stay as they are.

    None below two seeds, and where more than MOST_SEEDS would be needed.
    """
    if len(gaps) < 2:
        return None
    mean = statistics.fmean(gaps)
    for number in range(len(gaps), MOST_SEEDS + 1):
        half = half_width(gaps, number, level)
        if claim.decide(Estimate(mean, mean - half, mean + half, number, "")) in (
            Decision.SUPPORTED,
            Decision.CONTRADICTED,
        ):
            return number - len(gaps)
    return None
