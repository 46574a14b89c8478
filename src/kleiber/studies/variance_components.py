"""The noise of a table of runs: its variance between trunks and within a trunk, and how it changes with model size.

Branches of one trunk share the noise of that trunk, so a trunk is one sample of it, however many branches it has.
`estimate` measures both variances from the residuals of a fit; `VarianceComponents.draw` simulates tables with that
noise, the variances themselves redrawn by their degrees of freedom, so that percentiles of refits are t intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from kleiber.studies.law import Array

CLIP = 4.0  # robust standard deviations beyond which a residual counts as an outlier and is drawn in
SLOPES = np.linspace(-1.2, 1.2, 25)  # of log noise against log size that are tried
SLOPE_PRIOR = 0.5  # standard deviation of the slope that is expected: few rows should not invent a trend


@dataclass(frozen=True)
class Layout:
    """How the rows of a fit share trunks.

    trunk     number of the trunk of each row, or of the group of trunks that a row averages
    averaged  trunks that a row averages, as a float; 1 for a row that is a run
    log_size  log N of each row; zeros where the law has no N
    """

    trunk: NDArray[np.intp]
    averaged: Array
    log_size: Array

    def rows(self, keep: NDArray) -> Layout:
        """The layout of some of the rows (a mask or positions)."""
        return Layout(self.trunk[keep], self.averaged[keep], self.log_size[keep])


@dataclass(frozen=True)
class VarianceComponents:
    """Variances of a run's noise on the scale of the fit, at the size `log_size`.

    between, within        variance that the rows of a trunk share, and of each row alone
    df_between, df_within  degrees of freedom they were measured with: trunks (rows) less the parameters of the law that
                           trunks (rows within trunks) determine; equal when both were pooled into `within`
    slope                  the noise's standard deviation goes as N^-slope
    rows_per_trunk         branches of a trunk, on average
    """

    between: float
    within: float
    df_between: float
    df_within: float
    slope: float
    log_size: float
    rows_per_trunk: float

    @property
    def correlation(self) -> float:
        """Of two rows of one trunk."""
        return self.between / max(self.between + self.within, 1e-300)

    @property
    def df(self) -> float:
        """Degrees of freedom of the larger part of the noise of a trunk's mean."""
        return self.df_between if self.between > 0 else self.df_within

    def scale(self, log_size: Array) -> Array:
        """The noise at sizes, relative to that at `self.log_size`."""
        return np.exp(-self.slope * (log_size - self.log_size))

    def run_sd(self, log_size: Array) -> Array:
        """Standard deviation of single runs."""
        return np.sqrt(self.between + self.within) * self.scale(log_size)

    def redraw(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        """`count` pairs of (between, within) that the table's own could stand for: mean squares over chi^2 / df."""
        within = self.within * self.df_within / rng.chisquare(self.df_within, count)
        if not self.between > 0:
            return np.zeros(count), within
        mean_square = self.within + self.rows_per_trunk * self.between
        mean_square = mean_square * self.df_between / rng.chisquare(self.df_between, count)
        return np.maximum(mean_square - within, 0.0) / self.rows_per_trunk, within

    def draw(self, rng: np.random.Generator, count: int, layout: Layout) -> Array:
        """Noise for the rows of a layout, (count, rows)."""
        between, within = self.redraw(rng, count)
        names, member = np.unique(layout.trunk, return_inverse=True)
        shared = rng.normal(size=(count, len(names)))[:, member] * np.sqrt(between)[:, None]
        own = rng.normal(size=(count, len(member))) * np.sqrt(within)[:, None]
        return (shared + own) * self.scale(layout.log_size) / np.sqrt(layout.averaged)

    def variance(self, contrasts: Array, layout: Layout) -> tuple[Array, Array]:
        """Variance of linear combinations of the rows' noise, and its degrees of freedom after Satterthwaite.

        `contrasts` (combinations, rows).
        """
        weights = contrasts * self.scale(layout.log_size) / np.sqrt(layout.averaged)
        names, member = np.unique(layout.trunk, return_inverse=True)
        by_trunk = np.stack([np.bincount(member, row, len(names)) for row in weights])
        shared, own = (by_trunk**2).sum(1), (weights**2).sum(1)
        if not self.between > 0:
            return own * self.within, np.full(len(own), self.df_within)
        mean_square = self.within + self.rows_per_trunk * self.between
        outer, inner = shared / self.rows_per_trunk * mean_square, (own - shared / self.rows_per_trunk) * self.within
        total = shared * self.between + own * self.within
        spread = outer**2 / self.df_between + inner**2 / self.df_within
        return total, np.maximum((outer + inner) ** 2 / np.maximum(spread, 1e-300), 1.0)

    def covariance(self, layout: Layout) -> Array:
        """Covariance of the rows' noise, (rows, rows)."""
        scale = self.scale(layout.log_size) / np.sqrt(layout.averaged)
        together = layout.trunk[:, None] == layout.trunk[None]
        return (self.between * together + self.within * np.eye(len(scale))) * scale[:, None] * scale


def estimate(jacobian: Array, residuals: Array, trunk: NDArray, log_size: Array) -> VarianceComponents | None:
    """Variance components of the residuals of a least-squares fit with that Jacobian (rows, params).

    Mean squares between and within trunks by generalized least squares, each over its own degrees of freedom: the
    parameters that a stratum determines are the trace of its share of the information. Where the mean square between
    trunks is the smaller one, both are pooled; where it is larger by chance (F test at 10 %), `within` is the pooled one
    all the same, since the smaller of two estimates is too small. The slope of the noise over size maximizes the
    restricted likelihood under a normal prior and costs a degree of freedom. Outliers beyond 4 robust standard
    deviations within a trunk are drawn in. None without degrees of freedom.
    """
    num_rows, num_params = jacobian.shape
    if num_rows - num_params < 2:
        return None
    _, trunk = np.unique(trunk, return_inverse=True)
    jacobian = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    centre = float(log_size.mean())
    x = log_size - centre
    can_vary = len(np.unique(np.round(x, 6))) > 2 and num_rows > 2 * num_params
    spent = num_params + can_vary
    best: tuple[float, float, tuple[float, float, float, float, float]] | None = None
    for slope in SLOPES if can_vary else (0.0,):
        scale = np.exp(-slope * x)
        deviance, parts = _mean_squares(
            jacobian / scale[:, None], _winsorized(residuals / scale, trunk), trunk, spent
        )
        deviance += 2 * float(np.log(scale).sum()) + (slope / SLOPE_PRIOR) ** 2
        if best is None or deviance < best[0]:
            best = (deviance, float(slope), parts)
    assert best is not None
    between, within, df_between, df_within, rows_per_trunk = best[2]
    if not df_within > 0 or not within > 0:
        return None
    return VarianceComponents(between, within, df_between, df_within, best[1], centre, rows_per_trunk)


def _winsorized(residuals: Array, trunk: NDArray) -> Array:
    """Residuals with those drawn in that lie far from the median of their trunk, or of all where trunks have one row."""
    middle = np.array([np.median(residuals[trunk == number]) for number in range(int(trunk.max()) + 1)])[trunk]
    if len(np.unique(trunk)) == len(trunk):
        middle = np.full(len(trunk), np.median(residuals))
    apart = residuals - middle
    size = np.abs(apart[apart != 0])
    spread = 1.4826 * float(np.median(size)) if size.size else 0.0
    return middle + np.clip(apart, -CLIP * spread, CLIP * spread)


def _mean_squares(
    jacobian: Array, residuals: Array, trunk: NDArray, spent: int
) -> tuple[float, tuple[float, float, float, float, float]]:
    """-2 log restricted likelihood (up to a constant), and (between, within, df_between, df_within, rows per trunk)."""
    num_rows = len(residuals)
    lengths = np.bincount(trunk).astype(np.float64)
    num_trunks, spare = len(lengths), num_rows - spent
    rows_per_trunk = float((num_rows - (lengths**2).sum() / num_rows) / max(num_trunks - 1, 1))

    def means(column: Array) -> Array:
        return (np.bincount(trunk, column) / lengths)[trunk]

    outer = np.column_stack([means(column) for column in jacobian.T])
    inner = jacobian - outer
    one_stratum = num_trunks == num_rows or num_trunks <= 1
    square_between = square_within = 1.0
    for _ in range(40):
        information_between, information = outer.T @ outer / square_between, inner.T @ inner / square_within
        information = information + information_between
        unit = 1 / np.sqrt(np.maximum(np.diag(information), 1e-300))
        inverse = np.linalg.pinv(information * unit[:, None] * unit, hermitian=True)
        share = float(np.trace(inverse @ (information_between * unit[:, None] * unit)))
        step = unit * (inverse @ (unit * (outer.T @ residuals / square_between + inner.T @ residuals / square_within)))
        rest = residuals - jacobian @ step
        between_part = means(rest)
        within_part = rest - between_part
        df_between, df_within = num_trunks - share, num_rows - num_trunks - (spent - share)
        pooled = one_stratum or df_between < 0.5 or df_within < 0.5
        if not pooled:
            new = float(between_part @ between_part) / df_between, float(within_part @ within_part) / df_within
            pooled = new[0] <= new[1]
        if pooled:
            new = (float(rest @ rest) / spare,) * 2
        moved = abs(np.log(max(new[0], 1e-300) / square_between)) + abs(np.log(max(new[1], 1e-300) / square_within))
        square_between, square_within = max(new[0], 1e-300), max(new[1], 1e-300)
        if moved < 1e-8:
            break
    deviance = num_trunks * np.log(square_between) + (num_rows - num_trunks) * np.log(square_within)
    deviance += float(between_part @ between_part) / square_between + float(within_part @ within_part) / square_within
    deviance += float(np.linalg.slogdet(information * unit[:, None] * unit)[1]) - 2 * float(np.log(unit).sum())
    if pooled:
        return deviance, (0.0, square_within, float(spare), float(spare), rows_per_trunk)
    between = (square_between - square_within) / rows_per_trunk
    if fdtrc(df_between, df_within, square_between / square_within) > 0.1:
        square_within = float(rest @ rest) / spare
    return deviance, (between, square_within, df_between, df_within, rows_per_trunk)
