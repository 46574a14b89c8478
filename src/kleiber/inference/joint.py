"""Joint intervals of several contrasts: the multivariate t of their design.

Contrasts that share groups are correlated, so intervals that all hold together at a level are narrower than
Bonferroni's: those of many arms against a plain one are Dunnett's. Probabilities are integrals over the conditional
distributions (Genz and Bretz 2009, Computation of Multivariate Normal and t Probabilities) at the points of one Sobol
sequence, so equal input gives equal digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import root_scalar
from scipy.special import gammaincinv, ndtr, ndtri, stdtrit

Array = NDArray[np.float64]
POINTS, SEED = 2**15, 0  # of the sequence: half-widths are then right to about 1e-4 of themselves
MANY = 16  # dimensions above which half as many points are used
SINGULAR = 1e-7  # a conditional variance below this is 0: the contrast is a sum of others


def design_correlation(weights: ArrayLike, variances: ArrayLike) -> Array:
    """Returns the correlation of contrasts of independent groups, contrasts x contrasts.

    weights    contrasts x groups
    variances  of the mean of each group
    """
    w = np.asarray(weights, dtype=float)
    covariance = (w * np.asarray(variances, dtype=float)) @ w.T
    sd = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sd, sd)


def quantile(df: float, level: float) -> float:
    """Returns the t with P(|T| <= t) = level, of Student's t or, for infinite df, of the normal distribution.

    nan for df = 0.
    """
    return float(ndtri(0.5 + level / 2)) if math.isinf(df) else float(stdtrit(df, 0.5 + level / 2))


def level_of_each(correlation: ArrayLike, df: float, level: float) -> float:
    """Returns the level of each interval with which all intervals hold together at `level`.

    correlation  of the contrasts
    df           degrees of freedom of the variance that they share; infinite for variances of their own, whose
                 quantiles are then those of Student's t with their own degrees of freedom (a normal copula)
    """
    matrix = np.asarray(correlation, dtype=float).round(9)
    return _level_of_each(matrix.tobytes(), len(matrix), df, level)


@lru_cache(maxsize=256)
def _level_of_each(matrix: bytes, count: int, df: float, level: float) -> float:
    distinct = without_repeats(np.frombuffer(matrix).reshape(count, count))
    if len(distinct) == 1:
        return level
    inside, alpha = probability(distinct, df), 1 - level

    def excess(log_alpha: float) -> float:
        """Returns how far the joint level of intervals with this error each lies above `level`."""
        return inside(np.full(len(distinct), quantile(df, 1 - math.exp(log_alpha)))) - level

    lowest, highest = math.log(alpha / len(distinct)) - 0.01, math.log(alpha)
    if excess(highest) >= 0:  # contrasts that are one contrast up to the error of the integral
        return level
    return 1 - math.exp(root_scalar(excess, bracket=(lowest, highest), xtol=1e-6).root)


def without_repeats(correlation: Array) -> Array:
    """Returns the correlation without contrasts that repeat an earlier one, up to the sign."""
    kept: list[int] = []
    for at in range(len(correlation)):
        if not any(abs(correlation[at, other]) > 1 - SINGULAR for other in kept):
            kept.append(at)
    return correlation[np.ix_(kept, kept)]


def probability(correlation: Array, df: float) -> Callable[[Array], float]:
    """Returns a function of half-widths h that returns P(|T_i| <= h_i for all i) of a multivariate t."""
    order, factor = pivoted_cholesky(correlation)
    last = [int(np.flatnonzero(row)[-1]) for row in factor]  # the variable that bounds a contrast, given those before
    variables = max(last) + 1
    points = sobol(variables + 1)
    scale = np.ones(points.shape[1]) if math.isinf(df) else np.sqrt(2 * gammaincinv(df / 2, points[-1]) / df)

    def inside(half_widths: Array) -> float:
        """Integrates one variable after another, each between the limits that contrasts set given those before it."""
        mass, drawn = np.ones_like(scale), np.zeros((variables, len(scale)))
        for at in range(variables):
            low, high = np.full_like(scale, -np.inf), np.full_like(scale, np.inf)
            for row in (row for row, variable in enumerate(last) if variable == at):
                limit, center = half_widths[order[row]] * scale, factor[row, :at] @ drawn[:at]
                ends = (-limit - center) / factor[row, at], (limit - center) / factor[row, at]
                low, high = np.maximum(low, np.minimum(*ends)), np.minimum(high, np.maximum(*ends))
            start, share = ndtr(low), np.maximum(0.0, ndtr(high) - ndtr(low))
            mass *= share
            drawn[at] = ndtri(np.clip(start + points[at] * share, 1e-300, 1 - 1e-16))
        return float(mass.mean())

    return inside


def pivoted_cholesky(correlation: Array) -> tuple[list[int], Array]:
    """Returns an order of the contrasts and the lower triangular factor of the correlation in it.

    Contrasts that are sums of those before them come last, with 0 on the diagonal.
    """
    count = len(correlation)
    order, left, factor = list(range(count)), correlation.copy(), np.zeros((count, count))
    for at in range(count):
        best = at + int(np.argmax(np.diag(left)[at:]))
        for matrix in (left, left.T):
            matrix[[at, best]] = matrix[[best, at]]
        factor[[at, best]] = factor[[best, at]]
        order[at], order[best] = order[best], order[at]
        if left[at, at] <= SINGULAR:
            break
        column = left[at:, at] / math.sqrt(left[at, at])
        factor[at:, at] = column
        left[at:, at:] -= np.outer(column, column)
    return order, np.where(np.abs(factor) < math.sqrt(SINGULAR), 0.0, factor)


@lru_cache(maxsize=8)
def sobol(dimensions: int) -> Array:
    """Returns points in the unit cube, dimensions x points; the last dimension is Sobol's first, the most even one."""
    from scipy.stats import qmc  # late: it takes a second, and a study without several claims needs none

    points = qmc.Sobol(dimensions, scramble=True, rng=SEED).random(POINTS if dimensions <= MANY else POINTS // 2)
    return np.clip(points.T[::-1], 1e-12, 1 - 1e-12)
