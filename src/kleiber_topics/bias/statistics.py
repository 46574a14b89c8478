"""Means over groups of items with bootstrap intervals, tests of them against chance, and a false discovery rate.

Items have strata, such as the target terms of StereoSet: a score is the mean over strata of the mean over the items of
each. The bootstrap resamples the items within each stratum, because the strata are what the data set is made of. Items
of a cluster, such as the sentences about an occupation, are not independent: they are resampled and tested together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest, false_discovery_control

from kleiber.evals import CHUNK, RESAMPLES

DRAWS = 100_000  # of the test under strata, whose smallest p-value is 1e-5


@dataclass(frozen=True)
class Strata:
    """The items of each stratum, by their numbers, and the number of the cluster of each item."""

    members: Sequence[Int[np.ndarray, "_"]]
    clusters: Int[np.ndarray, "rows"]

    @classmethod
    def of(cls, terms: Sequence[str], clusters: Sequence[str] | None = None) -> Strata:
        """Strata of items that have these terms.

        clusters  names of the clusters of the items; "" for an item that is independent of all others; None: all are
        """
        codes = _codes(terms)
        names = [""] * len(terms) if clusters is None else clusters
        keys = [(name, -1 if name else at) for at, name in enumerate(names)]
        return cls([np.flatnonzero(codes == number) for number in range(len(set(terms)))], _codes(keys))

    @property
    def clustered(self) -> bool:
        """Whether a cluster has several items."""
        return len(np.unique(self.clusters)) < len(self.clusters)

    def sums(self, stratum: int, values: Float[np.ndarray, "rows"]) -> Float[np.ndarray, "_"]:
        """The sum of the values of each cluster of a stratum."""
        members = self.members[stratum]
        _, local = np.unique(self.clusters[members], return_inverse=True)
        return np.bincount(local, values[members])

    def mean(self, values: Float[np.ndarray, "rows"]) -> float:
        """The mean over strata of the mean over the items of each."""
        return float(np.mean([values[members].mean() for members in self.members]))

    def resampled_means(self, *values: Float[np.ndarray, "rows"]) -> list[Float[np.ndarray, "_"]]:
        """The mean of each kind of values in each resample; all kinds have the same resampled items."""
        random = np.random.default_rng(0)
        totals = [np.zeros(RESAMPLES) for _ in values]
        for stratum in range(len(self.members)):
            sizes = self.sums(stratum, np.ones(len(self.clusters)))
            sums = [self.sums(stratum, of_items) for of_items in values]
            size = max(1, CHUNK // len(sizes))
            for start in range(0, RESAMPLES, size):
                stop = min(start + size, RESAMPLES)
                drawn = random.integers(len(sizes), size=(stop - start, len(sizes)))
                for total, of_clusters in zip(totals, sums, strict=True):
                    total[start:stop] += of_clusters[drawn].sum(1) / sizes[drawn].sum(1)
        return [total / len(self.members) for total in totals]


def _codes(names: Sequence[Hashable]) -> Int[np.ndarray, "rows"]:
    """The number of each name, in the order of their first places."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def sign_test(prefers: Float[np.ndarray, "rows"], strata: Strata) -> float:
    """Two-sided p-value of a mean preference against 1/2, if each item prefers either text with probability 1/2.

    prefers  1 where the stereotype is preferred, 0 where its counterpart is, 1/2 for ties, which do not vary

    A single stratum has the exact binomial test, and with clusters the exact test in which each cluster prefers as it
    does or the other way around with probability 1/2. Several strata have the first one by simulation.
    """
    if strata.clustered:
        assert len(strata.members) == 1, "strata have no clusters"
        return _cluster_test(strata.sums(0, 2 * prefers - 1))
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


def _cluster_test(balances: Float[np.ndarray, "_"]) -> float:
    """Two-sided p-value of the sum of whole numbers whose signs are + or - with probability 1/2 each."""
    chances = np.ones(1)  # of the sums -total, -total + 1, ..., total
    for size in np.abs(balances).round().astype(int):
        if size:
            chances = np.convolve(chances, np.concatenate([[0.5], np.zeros(2 * size - 1), [0.5]]))
    sums = np.arange(len(chances)) - len(chances) // 2
    return float(min(1.0, chances[np.abs(sums) >= abs(balances.sum()) - 0.5].sum()))


def q_values(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: groups with q <= f have a false discovery rate of at most f (Benjamini & Hochberg 1995)."""
    return [float(q) for q in false_discovery_control(list(p_values), method="bh")]
