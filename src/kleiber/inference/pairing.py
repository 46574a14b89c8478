"""Whether pairing by seed pays: the F test of the seed over groups that were run with equal seeds.

A paired difference is free of what runs of one seed have in common, and has fewer degrees of freedom. It pays where the
seed explains part of the variance. It does by design where the groups go on from one base, or are measured on the same
runs; there is nothing to test then.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtrc

PAYS = 0.05  # p value of the F test below which differences are paired


def seed_effect(table: ArrayLike) -> tuple[float, float]:
    """Returns the F of the seed and its p value: mean square between seeds over that of the residuals.

    table  groups x seeds, complete

    (nan, 1) for fewer than two groups or seeds, and where nothing varies.
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2:
        return math.nan, 1.0
    groups, seeds = values.shape
    by_seed = values.mean(0) - values.mean()
    residuals = values - values.mean(1, keepdims=True) - by_seed
    between = groups * float((by_seed**2).sum()) / (seeds - 1)
    within = float((residuals**2).sum()) / ((seeds - 1) * (groups - 1))
    if within == 0:
        return (math.inf, 0.0) if between > 0 else (math.nan, 1.0)
    return between / within, float(fdtrc(seeds - 1, (seeds - 1) * (groups - 1), between / within))


def pays(table: ArrayLike) -> bool:
    """Returns whether the seed explains part of the variance, so that differences are better paired."""
    return seed_effect(table)[1] < PAYS
