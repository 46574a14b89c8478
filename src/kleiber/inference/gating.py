"""Whether a proposed change is kept: a screen on a few runs, then a sequential test on pairs of fresh runs.

The screen compares the changed recipe with runs of the plain one that earlier proposals have used as well, so it is
cheap, and can only discard. What passes is tested on pairs of plain and changed runs at seeds that no decision has
used, run one after another. So the test keeps its level whatever was proposed before, and drift of the machine meets
both sides of a pair. All gains are positive where the changed recipe is better.

All tests have one error budget, since nobody chose their number and order beforehand.
Each test gets a share of what is left, so that the errors of all tests, however many there are, sum to the budget.
`stream` bounds the probability of any false discovery by this sum. `keep` bounds the expected share of false
discoveries (LOND: Javanmard and Montanari 2018, doi:10.1214/17-AOS1559): after D discoveries a test has D + 1 times its
share. Both need a test that keeps its level given all that came before, as one on runs that nothing else has used does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.special import fdtr, stdtrit

from kleiber.inference.moderation import pooled_variance
from kleiber.inference.sequential import boundary, e_value

Verdict = Literal["run", "keep", "stop", "undecided"]
PILOT = 6  # plain runs before the first proposal
FEWEST_PLAIN = 4  # plain runs before any other proposal
POOL = 8  # plain runs that a screen compares with, the latest
CARRIED = 6.0  # degrees of freedom that the noise of other recipes counts as: each may have its own
FORGET = 0.95  # weight of an earlier variance after each test, so that the noise may change over a stream
CLIP = 2.5  # standard deviations of a pair beyond which its gain counts as this much: no single run decides
ALIKE = 0.1  # standard deviations of a pair: a change whose gains at all seeds are smaller has hardly any effect
PAYS = 0.05  # p value below which the seed explains part of the variance of a pair
SCREEN = (0.4, 1.2)  # gains in standard errors that a change needs after each run of the screen
FUTILITY = (-0.3, 0.0, 0.4, 0.7, 1.0, 1.2, 1.4, 1.6, 1.7, 1.8)  # the same after each pair of the test; then the last
ErrorKind = Literal["keep", "stream"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("keep", "stream")
TESTED = 0.075  # share of the horizon over which most of the budget is spent: few proposals get as far as a test
FEWEST = 5  # tests over which it is spent at the earliest
LARGEST_ERROR = 0.3  # of one test


@dataclass(frozen=True)
class ErrorBudget:
    """What is left of an error budget.

    kind     keep or stream
    error    of the whole stream: 1 - level
    horizon  number of proposals that are planned
    tests    number of tests so far
    kept     number of discoveries so far
    """

    kind: ErrorKind
    error: float
    horizon: int
    tests: int = 0
    kept: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ERROR_KINDS:
            raise ValueError(f"error={self.kind} must be one of {', '.join(ERROR_KINDS)}")
        if not 0 < self.error < 1:
            raise ValueError(f"the error {self.error} of a stream must be between 0 and 1")
        if self.horizon < 1:
            raise ValueError(f"horizon={self.horizon} must be >= 1")

    @property
    def share(self) -> float:
        """The share of what is left that the next test gets."""
        return 1 / max(FEWEST, TESTED * self.horizon)

    @property
    def left(self) -> float:
        """The error that is left."""
        return self.error * (1 - self.share) ** self.tests

    @property
    def spent(self) -> float:
        """The error that the tests so far have spent."""
        return self.error - self.left

    @property
    def next_error(self) -> float:
        """The error of the next test: the chance that it keeps what is no better."""
        bonus = self.kept + 1 if self.kind == "keep" else 1
        return min(LARGEST_ERROR, self.left * self.share * bonus)

    def after(self, kept: bool) -> ErrorBudget:
        """Returns the budget after one more test."""
        return ErrorBudget(self.kind, self.error, self.horizon, self.tests + 1, self.kept + kept)


@dataclass(frozen=True)
class Noise:
    """What the runs of a stream say about the noise of a run and of a pair.

    squares, df            sum of squares of plain runs around their mean, and its degrees of freedom
    pair_squares, pair_df  those of the gains of pairs around the mean of their proposal
    """

    squares: float = 0.0
    df: float = 0.0
    pair_squares: float = 0.0
    pair_df: float = 0.0

    @property
    def pairing_pays(self) -> bool:
        """Whether runs of one seed have something in common, so that pairs are less noisy than two runs (F test)."""
        if min(self.pair_df, self.df) <= 0 or self.squares <= 0:
            return False
        ratio = self.pair_squares / self.pair_df / (2 * self.squares / self.df)
        return float(fdtr(self.pair_df, self.df, ratio)) < PAYS

    @property
    def pair_sd(self) -> float:
        """The standard deviation of the gain of a pair."""
        squares = self.pair_squares + (0.0 if self.pairing_pays else 2 * self.squares)
        return math.sqrt(squares / self.freedom)

    @property
    def run_sd(self) -> float:
        """The standard deviation of a run."""
        return math.sqrt((self.pair_squares / 2 + self.squares) / (self.pair_df + self.df))

    @property
    def freedom(self) -> float:
        """The degrees of freedom of `pair_sd`."""
        return self.pair_df if self.pairing_pays else self.pair_df + self.df

    def with_plain(self, values: Sequence[float]) -> Noise:
        """Returns the noise with that of further plain runs of one recipe."""
        variance, df = pooled_variance([values])
        return Noise(self.squares + (variance * df if df else 0.0), self.df + df, self.pair_squares, self.pair_df)

    def of_recipe(self, values: Sequence[float]) -> Noise:
        """Returns the noise of another recipe, of which these are runs; that so far counts as CARRIED."""
        total = self.df + self.pair_df
        share = min(1.0, CARRIED / total) if total else 1.0
        carried = Noise(share * self.squares, share * self.df, share * self.pair_squares, share * self.pair_df)
        return carried.with_plain(values)

    def sd_with(self, gains: Sequence[float]) -> float:
        """Returns the standard deviation of a pair of a test whose gains so far are these.

        A changed recipe may be noisier than the plain one, so what its own pairs show can raise it.
        """
        variance, df = pooled_variance([gains])
        carried = min(CARRIED, self.freedom)
        pooled = (carried * self.pair_sd**2 + (variance * df if df else 0.0)) / (carried + df)
        return max(self.pair_sd, math.sqrt(pooled))

    def after_test(self, gains: Sequence[float]) -> Noise:
        """Returns the noise with that of the pairs of a test; earlier ones count a little less."""
        variance, df = pooled_variance([gains])
        if not df:
            return self
        return Noise(
            FORGET * self.squares, FORGET * self.df, FORGET * self.pair_squares + variance * df,
            FORGET * self.pair_df + df,
        )  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """How many runs a proposal may take, and which test decides.

    first      runs of the first look of the screen
    max_seeds  runs of the changed recipe in all, those of the screen included
    test       sequential: the boundary of a group-sequential test; e_value: 1 / error
    """

    first: int = 1
    max_seeds: int = 12
    test: Literal["sequential", "e_value"] = "sequential"
    thresholds: tuple[float, ...] = field(default=SCREEN)

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ValueError(f"seeds={self.first} must be >= 1")
        if self.pairs < 2:
            raise ValueError(f"max-seeds={self.max_seeds} must be at least {self.screened + 2} for seeds={self.first}")

    @property
    def screened(self) -> int:
        """Runs of the screen."""
        return self.first + len(self.thresholds) - 1

    @property
    def pairs(self) -> int:
        """Most pairs of the test."""
        return self.max_seeds - self.screened

    def screen(self, plain: Sequence[float], gains: Sequence[float], paired: Sequence[float], noise: Noise) -> Verdict:
        """Decides what follows a run of the screen: `run` one more, `keep` for the test, or `stop`.

        plain   the latest plain runs, as gains
        gains   the runs of the changed recipe
        paired  gains over the plain runs of the same seeds, where there are any
        """
        look = len(gains) - self.first
        if look < 0:
            return "run"
        error = noise.run_sd * math.sqrt(1 / len(gains) + 1 / len(plain))
        gain = float(np.mean(gains) - np.mean(plain))
        within = noise.pair_sd / math.sqrt(max(len(paired), 1))
        if noise.pairing_pays and len(paired) == len(gains) and within < error:
            gain, error = float(np.mean(paired)), within
        alike = len(paired) > 1 and max(map(abs, paired)) < ALIKE * noise.pair_sd
        if alike or not gain > self.thresholds[look] * error:
            return "stop"
        return "keep" if look + 1 == len(self.thresholds) else "run"

    def test_pairs(self, gains: Sequence[float], noise: Noise, error: float) -> Verdict:
        """Decides what follows a pair of the test, with the noise from before the test.

        error  of the test, see `kleiber.inference.gating`
        """
        sd = noise.sd_with(gains)
        total = float(np.clip(gains, -CLIP * sd, CLIP * sd).sum()) / sd
        z = total / math.sqrt(len(gains))
        if self.test == "e_value":
            crossed = e_value(total, len(gains)) >= 1 / error
        else:
            crossed = z >= boundary(error, self.pairs, noise.freedom)
        if crossed:
            return "keep"
        if z < FUTILITY[min(len(gains), len(FUTILITY)) - 1]:
            return "stop"
        return "undecided" if len(gains) >= self.pairs else "run"


def interval_of_pairs(gains: Sequence[float], noise: Noise, looks: int, level: float) -> tuple[float, float]:
    """Returns an interval of the mean gain that holds at whichever look a test of so many looks stops."""
    half = boundary((1 - level) / 2, looks, noise.freedom) * noise.sd_with(gains) / math.sqrt(len(gains))
    mean = float(np.mean(gains))
    return mean - half, mean + half


def interval_of_screen(
    plain: Sequence[float], gains: Sequence[float], noise: Noise, level: float
) -> tuple[float, float]:
    """Returns Student's interval of the mean gain over plain runs, with the noise of the stream."""
    half = float(stdtrit(noise.df + noise.pair_df, 0.5 + level / 2)) * noise.run_sd
    half *= math.sqrt(1 / len(gains) + 1 / len(plain))
    gain = float(np.mean(gains) - np.mean(plain))
    return gain - half, gain + half


def interval_elsewhere(gains: Sequence[float], noise: Noise, level: float) -> tuple[float, float]:
    """Returns the interval of pairs on another evaluation or size, whose noise is theirs and a little of the stream's.

    The stream counts as half as many degrees of freedom as the pairs have, since the noise there may be another.
    """
    variance, df = pooled_variance([gains])
    shared = min(noise.freedom, df / 2) if df else 0.0
    mean = float(np.mean(gains))
    if not df:
        return -math.inf, math.inf
    sd = math.sqrt((variance * df + noise.pair_sd**2 * shared) / (df + shared))
    half = float(stdtrit(df + shared, 0.5 + level / 2)) * sd / math.sqrt(len(gains))
    return mean - half, mean + half


@dataclass(frozen=True)
class Stream:
    """What a stream of proposals has seen: the runs of the plain recipe, the noise, and what is left of the budget.

    pool  the latest runs of the plain recipe: seed and gain of each
    """

    rules: Rules
    budget: ErrorBudget
    noise: Noise = Noise()
    pool: tuple[tuple[int, float], ...] = ()

    @property
    def plain(self) -> list[float]:
        """The gains of the latest plain runs."""
        return [gain for _, gain in self.pool]

    @property
    def missing_plain(self) -> int:
        """Plain runs that are needed before the next proposal: a pilot, and a few of a recipe that was just kept."""
        return (PILOT if self.noise.df == 0 else FEWEST_PLAIN) - len(self.pool)

    def with_plain(self, runs: Sequence[tuple[int, float]]) -> Stream:
        """Returns the stream after further runs of the plain recipe; the first ones are the pilot."""
        noise = self.noise.with_plain([gain for _, gain in runs])
        return replace(self, noise=noise, pool=(*self.pool, *runs)[-POOL:])

    def without_pool(self) -> Stream:
        """Returns the stream after the plain recipe drifted, so that its earlier runs no longer compare."""
        return replace(self, pool=())

    def after_test(self, pairs: Sequence[tuple[int, float, float]], kept: bool) -> Stream:
        """Returns the stream after a test.

            pairs  seed, gain of the plain run and gain of the changed run
        kept   whether the changed recipe is the plain one from now on
        """
        noise = self.noise.after_test([changed - plain for _, plain, changed in pairs])
        if kept:
            noise = noise.of_recipe([changed for _, _, changed in pairs])
        pool = [(seed, plain) for seed, plain, _ in pairs]
        if kept:
            pool = [(seed, changed) for seed, _, changed in pairs]
        before = () if kept else self.pool
        return replace(self, noise=noise, budget=self.budget.after(kept), pool=(*before, *pool)[-POOL:])
