"""The measure of an arm at its best learning rate.

The best of several noisy cells is better than it will be again, and the more so the flatter the curve is: of two equal
arms that with the flatter curve wins. The least of a parabola through all rates is not drawn to the luckiest cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtrc

from kleiber.inference.parabola import fit_parabola

LEAST_RATES = 5  # fewer do not show whether a parabola fits
ROUNDING = 1e-20  # mean square of residuals, relative to that of the values, which rounding leaves
MISFIT = 0.1  # p value of the test of lack of fit below which the parabola is not used


@dataclass(frozen=True)
class Optimum:
    """The measure at the best rate.

    value   of the parabola at its vertex, or the mean of the best cell
    rate    of the vertex, or of the best cell
    fitted  whether it is the vertex of a parabola
    why     why it is not; "" where it is
    """

    value: float
    rate: float
    fitted: bool
    why: str = ""


def at_best_rate(rates: ArrayLike, table: ArrayLike, higher_is_better: bool = False) -> Optimum:
    """Returns the measure at the best rate, from a parabola in the logarithm of the rate over the means of all rates.

    rates  at least one, in ascending order
    table  rates x seeds, complete

    It is the mean of the best cell instead with fewer than LEAST_RATES rates, where the parabola has no vertex between
    the outer rates, where it misses the means by more than the noise of seeds (F test of lack of fit), and where its
    vertex would be less certain than a cell. So the standard error of one cell holds for either.
    """
    x, values = np.log(np.asarray(rates, dtype=float)), np.asarray(table, dtype=float)
    means = values.mean(1) if not higher_is_better else -values.mean(1)
    best, sign = int(np.argmin(means)), -1.0 if higher_is_better else 1.0
    cell = Optimum(sign * float(means[best]), math.exp(x[best]), False)

    def with_cell(why: str) -> Optimum:
        """Returns the best cell with the reason why it is used."""
        return Optimum(cell.value, cell.rate, False, why)

    if len(x) < LEAST_RATES:
        return with_cell(f"{len(x)} rates, and a parabola needs {LEAST_RATES}")
    if not np.isfinite(values).all():
        return with_cell("a run diverged")
    curve = fit_parabola(x, means)
    if curve is None or not x[0] <= curve.vertex <= x[-1]:
        return with_cell("the parabola has no vertex between the outer rates")
    if misfit(values, curve.residuals) < MISFIT:
        return with_cell("a parabola does not fit the rates")
    if curve.variance_at(curve.vertex) > 1:
        return with_cell("the vertex is less certain than a cell")
    return Optimum(sign * float(curve.at(curve.vertex)), math.exp(curve.vertex), True)


def misfit(table: ArrayLike, residuals: ArrayLike) -> float:
    """Returns the p value of the lack of fit of a parabola; 1 where seeds show no noise to compare it with.

    table      rates x seeds
    residuals  of the mean of each rate

    The noise is that of differences between rates within seeds, as runs of one seed at several rates are alike.
    """
    values, rest = np.asarray(table, dtype=float), np.asarray(residuals, dtype=float)
    rates, seeds = values.shape
    if seeds < 2:
        return 1.0
    within = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    df = (rates - 1) * (seeds - 1)
    noise, lack = float((within**2).sum()) / df, seeds * float((rest**2).sum()) / (rates - 3)
    rounding = ROUNDING * float((values**2).mean())
    return 1.0 if noise == 0 or lack <= rounding else float(fdtrc(rates - 3, df, lack / noise))
