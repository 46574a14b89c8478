"""Means over groups of items with bootstrap intervals, tests of them against chance, and a false discovery rate.

Items have strata, such as the target terms of StereoSet: a score is the mean over strata of the mean over the items of
each. The bootstrap resamples the items within each stratum, because the strata are what the data set is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest, false_discovery_control

from kleiber.evals.evaluation import CHUNK, LEVEL, RESAMPLES, Score

DRAWS = 100_000  # of the test under strata, whose smallest p-value is 1e-5


@dataclass(frozen=True)
class Strata:
    """The items of each stratum, by their numbers."""

    members: Sequence[Int[np.ndarray, "_"]]

    @classmethod
    def of(cls, terms: Sequence[str]) -> Strata:
        """Strata of items that have these terms."""
        numbers = {term: number for number, term in enumerate(dict.fromkeys(terms))}
        codes = np.array([numbers[term] for term in terms], dtype=np.int64)
        return cls([np.flatnonzero(codes == number) for number in range(len(numbers))])

    def mean(self, values: Float[np.ndarray, "rows"]) -> float:
        """The mean over strata of the mean over the items of each."""
        return float(np.mean([values[members].mean() for members in self.members]))

    def resampled_means(self, *values: Float[np.ndarray, "rows"]) -> list[Float[np.ndarray, "_"]]:
        """The mean of each kind of values in each resample; all kinds have the same resampled items."""
        random = np.random.default_rng(0)
        totals = [np.zeros(RESAMPLES) for _ in values]
        for members in self.members:
            size = max(1, CHUNK // len(members))
            for start in range(0, RESAMPLES, size):
                stop = min(start + size, RESAMPLES)
                drawn = members[random.integers(len(members), size=(stop - start, len(members)))]
                for total, of_items in zip(totals, values, strict=True):
                    total[start:stop] += of_items[drawn].mean(1)
        return [total / len(self.members) for total in totals]


def score_of(value: float, resampled: Float[np.ndarray, "_"], n: int) -> Score:
    """A value with its percentile interval."""
    lo, hi = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, float(lo), float(hi), n)


def sign_test(prefers: Float[np.ndarray, "rows"], strata: Strata) -> float:
    """Two-sided p-value of a mean preference against 1/2, if each item prefers either text with probability 1/2.

    prefers  1 where the stereotype is preferred, 0 where its counterpart is, 1/2 for ties, which do not vary

    A single stratum has the exact binomial test; several have one by simulation.
    """
    ties = [prefers[members][prefers[members] == 0.5] for members in strata.members]
    free = [len(members) - len(tied) for members, tied in zip(strata.members, ties, strict=True)]
    if not sum(free):
        return 1.0
    if len(free) == 1:
        return float(binomtest(int((prefers == 1).sum()), free[0], 0.5).pvalue)
    random = np.random.default_rng(0)
    sizes = np.array([len(members) for members in strata.members])
    drawn = (random.binomial(free, 0.5, size=(DRAWS, len(free))) - np.array(free) / 2) / sizes
    distance = abs(strata.mean(prefers) - 0.5)
    return float((1 + (np.abs(drawn.mean(1)) >= distance - 1e-12).sum()) / (1 + DRAWS))


def q_values(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: groups with q <= f have a false discovery rate of at most f (Benjamini & Hochberg 1995)."""
    return [float(q) for q in false_discovery_control(list(p_values), method="bh")]
