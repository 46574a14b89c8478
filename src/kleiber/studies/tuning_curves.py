"""Tuning curves: the best loss after k trials of a search, with a band that assumes nothing about the losses.

The mean is the unbiased estimate (Dodge et al. 2019, arXiv:1909.03004, as corrected by Tang et al. 2020). The band is
that of the median best loss, from a simultaneous confidence band of the distribution function (Lourie et al. 2023,
arXiv:2311.09480). It holds for trials that are drawn independently; Sobol points fill the space more evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import betainc, betaincinv, gammaln

from kleiber.studies.laws.law import Array

SIMULATIONS = 4000  # behind the levels of a band


def expected_best(losses: Sequence[float], count: int) -> float:
    """Returns the unbiased estimate of the expected least loss of `count` trials; inf where too many diverged.

    losses  of at least `count` trials; inf for one that diverged
    """
    ordered = np.sort(np.asarray(losses, dtype=np.float64))
    n = len(ordered)
    later = n - 1 - np.arange(n)  # trials that are no better than the i-th best
    possible = later >= count - 1
    log = np.full(n, -np.inf)
    log[possible] = _log_choose(later[possible].astype(np.float64), count - 1) - _log_choose(
        np.array([float(n)]), count
    )
    weights = np.exp(log)
    return float((weights[weights > 0] * ordered[weights > 0]).sum())


def _log_choose(n: Array, k: int) -> Array:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0), dtype=np.float64)


@cache
def distribution_band(n: int, level: float) -> tuple[Array, Array]:
    """Returns simultaneous bounds of the distribution function at the n ordered losses, (n,) each.

    Each bound has the same local level (the intervals of the beta distribution of an order statistic), chosen by
    simulation so that all of them hold together with the probability `level`.
    """
    rank = np.arange(1, n + 1)
    uniform = np.sort(np.random.default_rng(0).random((SIMULATIONS, n)), axis=1)
    below = betainc(rank, n + 1 - rank, uniform)
    local = np.quantile(2 * np.minimum(below, 1 - below).min(axis=1), 1 - level)
    lo, hi = (betaincinv(rank, n + 1 - rank, share) for share in (local / 2, 1 - local / 2))
    return np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)


def median_band(losses: Sequence[float], level: float) -> tuple[Array, Array]:
    """Returns bounds of the median of the least loss of 1, 2, ..., n trials, (n,) each, that hold together at `level`.

    The lower bound is -inf where so many trials might find a lower loss than any so far.
    """
    ordered = np.sort(np.asarray(losses, dtype=np.float64))
    n = len(ordered)
    lo, hi = distribution_band(n, level)
    share = 1 - 0.5 ** (1 / np.arange(1, n + 1))  # the quantile of one loss that is the median of the least of k
    before = np.searchsorted(hi, share)  # losses whose distribution function is certainly below the quantile
    after = np.searchsorted(lo, share)
    with_ends = np.concatenate([[-np.inf], ordered, [np.inf]])
    return with_ends[before], with_ends[after + 1]


def curve(losses: Sequence[float], level: float) -> list[dict[str, float | None]]:
    """Returns a row for each number of trials: the expected best loss, and the band of the median; None if infinite."""
    lo, hi = median_band(losses, level)
    rows = []
    for count in range(1, len(losses) + 1):
        values = {"mean": expected_best(losses, count), "lo": float(lo[count - 1]), "hi": float(hi[count - 1])}
        rows.append({"trials": count, **{name: x if np.isfinite(x) else None for name, x in values.items()}})
    return rows


def running_best(losses: Sequence[float]) -> list[dict[str, float | None]]:
    """Returns a row for each number of trials: the least loss so far, for trials that depend on each other."""
    best = np.minimum.accumulate(np.asarray(losses, dtype=np.float64)).tolist()
    finite = [value if np.isfinite(value) else None for value in best]
    return [{"trials": count, "mean": value, "lo": None, "hi": None} for count, value in enumerate(finite, 1)]
