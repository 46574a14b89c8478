"""How far off a law is beyond its rows: the misfit that no resampling sees, learned from backtests.

A law that fits its rows is an approximation, and its error grows with the distance from them. Here it is a relative
error whose standard deviation goes as the distance in decades to the power .75. What is expected of any table comes
from published and own ones (benchmarks/bands.py); the table's own backtests move it from there. Added to the
uncertainty of the parameters and the noise of a run it makes the band of a new run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from kleiber.studies.laws.law import Array

EXPECTED = 0.041  # relative error at one decade; with it 90 % bands cover 90 % of the runs of the tables it was set on
WEIGHT = 2.0  # independent runs that the expectation is worth
FEW_PER_CUT = 2.0  # runs above one cut share the error of one fit: they count as no more than these
POWER = 0.75  # of the distance in decades with which the error grows
NEAR = 0.1  # decades below which a distance counts as this


@dataclass(frozen=True)
class Evidence:
    """Errors of one fit on rows above it.

    rows      positions in the whole table
    cluster   trunk, or size, of each row
    error     log of observed over predicted, by row
    variance  that parameters and noise account for
    decades   distance of each row from those of the fit
    """

    rows: NDArray[np.intp]
    cluster: NDArray
    error: Array
    variance: Array
    decades: Array

    def keep(self, mask: NDArray[np.bool_]) -> Evidence:
        """That of some of its rows."""
        return Evidence(self.rows[mask], self.cluster[mask], self.error[mask], self.variance[mask], self.decades[mask])

    @property
    def weights(self) -> Array:
        """A weight for each row: every cluster the same, and all of them FEW_PER_CUT at most."""
        _, member, count = np.unique(self.cluster, return_inverse=True, return_counts=True)
        return min(len(count), FEW_PER_CUT) / len(count) / count[member]


@dataclass(frozen=True)
class Misfit:
    """The standard deviation of the law's relative error at one decade, after the evidence of backtests."""

    evidence: Sequence[Evidence] = field(default_factory=tuple)

    @property
    def num_runs(self) -> int:
        """Independent runs that were predicted, each counted once."""
        return len({name for one in self.evidence for name in one.cluster.tolist()})

    @property
    def at_one_decade(self) -> float:
        """Mean square of the errors beyond what parameters and noise account for, and of what is expected."""
        total, weight = WEIGHT * EXPECTED**2, WEIGHT
        for one in self.evidence:
            weights = one.weights
            beyond = np.maximum(one.error**2 - one.variance, 0.0) / np.maximum(one.decades, NEAR) ** (2 * POWER)
            total += float((weights * beyond).sum())
            weight += float(weights.sum())
        return float(np.sqrt(total / weight))

    def within(self, train: NDArray[np.bool_]) -> Misfit:
        """What the rows `train` alone could have told."""
        kept = []
        for one in self.evidence:
            mask = train[one.rows]
            if mask.any():
                kept.append(one.keep(mask))
        return Misfit(tuple(kept))


def widened(
    value: Array, lo: Array, hi: Array, at_one_decade: float, decades: Array, level: float
) -> tuple[Array, Array]:
    """An interval around positive values with the law's misfit at that distance added in quadrature, in logs.

    Values or ends that are not positive are widened on their own scale.
    """
    extra = float(ndtri((1 + level) / 2)) * at_one_decade * np.maximum(decades, 0.0) ** POWER
    with np.errstate(all="ignore"):
        below, above = np.hypot(np.log(value / lo), extra), np.hypot(np.log(hi / value), extra)
        low, high = value * np.exp(-below), value * np.exp(above)
        flat_low, flat_high = value - np.hypot(value - lo, extra * value), value + np.hypot(hi - value, extra * value)
    inside = (lo <= value) & (value <= hi)
    positive = inside & (lo > 0)
    low, high = np.where(positive, low, flat_low), np.where(positive, high, flat_high)
    return np.where(inside, low, lo), np.where(inside, high, hi)


def outside(domain: Mapping[str, Sequence[float]], at: Mapping[str, Array | float]) -> Array:
    """Decades by which points lie outside the fitted rows, the largest over inputs and compute; 0 inside."""
    far = np.zeros(np.shape(next(iter(at.values()), 0.0)))
    for name, (lo, hi) in domain.items():
        if name in at and lo > 0:
            value = np.asarray(at[name], dtype=np.float64)
            with np.errstate(all="ignore"):
                beyond = np.where(value > 0, np.maximum(np.log10(value / hi), np.log10(lo / value)), 0.0)
            far = np.maximum(far, beyond)
    return far
