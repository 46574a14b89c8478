"""The noise of a table of runs: its variance between and within trunks, and its trend over model size.

The branches of a trunk share noise, so a trunk is one sample of it, however many branches it has. `estimate` computes
both variances from the residuals of a fit. `VarianceComponents.draw` simulates tables with this noise; it also draws
the variances from their sampling distribution, so that percentiles of refits have the width of t intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import fdtrc

from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import cells, cells_without
from kleiber.types import NonNegative

OUTLIER = 6.0  # a residual beyond this many robust standard deviations is an outlier
SLOPE_PRIOR = 0.5  # standard deviation of the prior of the slope, so that few rows do not produce a trend


@dataclass(frozen=True)
class Layout:
    """Which rows of a fit share a trunk.

    trunk     index of the trunk of each row, or of the group of trunks averaged into it
    averaged  number of trunks averaged into each row, as a float; 1 for a single run
    log_size  log N of each row; zeros if the law has no N
    """

    trunk: NDArray[np.intp]
    averaged: Array
    log_size: Array

    def rows(self, keep: NDArray) -> Layout:
        """Returns the layout of some of the rows (a mask or positions)."""
        return Layout(self.trunk[keep], self.averaged[keep], self.log_size[keep])


@dataclass(frozen=True)
class VarianceComponents:
    """Variances of the noise of a run at the size `log_size`, on the scale of the residuals.

    between, within        variance that the rows of a trunk share, and additional variance of each row
    df_between, df_within  their degrees of freedom; equal if both are pooled into `within`
    df_trunks              number of trunks minus the parameters that differences between trunks determine
    slope                  the standard deviation of the noise is proportional to N^-slope
    rows_per_trunk         mean number of branches of a trunk
    least_log_size, most_log_size  range of log N; outside, the noise is that of the nearest size
    """

    # laws.json holds the fields, which pydantic reads from there.
    __pydantic_config__: ClassVar = {"strict": True, "extra": "ignore", "allow_inf_nan": False}

    between: NonNegative
    within: NonNegative
    df_between: float
    df_within: float
    df_trunks: float
    slope: float
    log_size: float
    rows_per_trunk: float
    least_log_size: float = -np.inf
    most_log_size: float = np.inf

    @property
    def correlation(self) -> float:
        """Correlation of two rows of a trunk."""
        return self.between / max(self.between + self.within, 1e-300)

    @property
    def df(self) -> float:
        """Degrees of freedom of `between`, or of `within` if there is no variance between trunks."""
        return self.df_between if self.between > 0 else self.df_within

    def scale(self, log_size: Array) -> Array:
        """Returns the standard deviation of the noise at sizes, relative to that at `self.log_size`."""
        inside = np.clip(log_size, self.least_log_size, self.most_log_size)
        return np.exp(-self.slope * (inside - self.log_size))

    def run_sd(self, log_size: Array) -> Array:
        """Returns the standard deviation of a single run; it never increases with size, since only misfit does."""
        falling = replace(self, slope=max(self.slope, 0.0))
        return np.sqrt(self.between + self.within) * falling.scale(log_size)

    def redraw(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Draws `count` pairs (between, within) from their sampling distribution: mean square / (chi^2 / df)."""
        within = self.within * self.df_within / rng.chisquare(self.df_within, count)
        if not self.between > 0:
            return np.zeros(count), within
        mean_square = self.within + self.rows_per_trunk * self.between
        mean_square = mean_square * self.df_between / rng.chisquare(self.df_between, count)
        return np.maximum(mean_square - within, 0.0) / self.rows_per_trunk, within

    def draw(self, rng: np.random.Generator, count: int, layout: Layout) -> Array:
        """Draws noise for the rows of a layout, (count, rows)."""
        between, within = self.redraw(rng, count)
        names, member = np.unique(layout.trunk, return_inverse=True)
        shared = rng.normal(size=(count, len(names)))[:, member] * np.sqrt(between)[:, None]
        single = rng.normal(size=(count, len(member))) * np.sqrt(within)[:, None]
        return (shared + single) * self.scale(layout.log_size) / np.sqrt(layout.averaged)

    def variance(self, contrasts: Array, layout: Layout) -> tuple[Array, Array]:
        """Returns the variance of linear combinations (combinations, rows) of the noise, and Satterthwaite's df."""
        weights = contrasts * self.scale(layout.log_size) / np.sqrt(layout.averaged)
        names, member = np.unique(layout.trunk, return_inverse=True)
        by_trunk = np.stack([np.bincount(member, row, len(names)) for row in weights])
        shared, single = (by_trunk**2).sum(1), (weights**2).sum(1)
        if not self.between > 0:
            return single * self.within, np.full(len(single), self.df_within)
        mean_square = self.within + self.rows_per_trunk * self.between
        outer, inner = shared / self.rows_per_trunk * mean_square, (single - shared / self.rows_per_trunk) * self.within
        total = shared * self.between + single * self.within
        spread = outer**2 / self.df_between + inner**2 / self.df_within
        return total, np.maximum((outer + inner) ** 2 / np.maximum(spread, 1e-300), 1.0)

    def covariance(self, layout: Layout) -> Array:
        """Returns the covariance of the noise of the rows, (rows, rows)."""
        scale = self.scale(layout.log_size) / np.sqrt(layout.averaged)
        together = layout.trunk[:, None] == layout.trunk[None]
        return (self.between * together + self.within * np.eye(len(scale))) * scale[:, None] * scale


def estimate(jacobian: Array, residuals: Array, trunk: NDArray, log_size: Array) -> VarianceComponents | None:
    """Estimates the variance components from the residuals of a least-squares fit with this Jacobian (rows, params).

    They are mean squares between and within trunks; the parameters that differences between trunks determine (the trace
    of the projection) reduce the degrees of freedom between trunks. If an F test at 25 % finds no difference, both are
    pooled; between 10 % and 25 %, the pooled value replaces only `within`. The trend over size has a normal prior and
    costs one degree of freedom. Outliers beyond 6 robust standard deviations within a trunk are replaced by the median.
    Returns None without degrees of freedom.
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
    slope = _noise_slope(residuals, trunk, x) if can_vary else 0.0
    scale = np.exp(-slope * x)
    kept = without_outliers(residuals / scale, trunk)
    parts = _mean_squares(jacobian / scale[:, None], kept, trunk, spent)
    between, within, df_between, df_within, df_trunks, rows_per_trunk = parts
    if not df_within > 0 or not within > 0:
        return None
    ends = float(log_size.min()), float(log_size.max())
    return VarianceComponents(between, within, df_between, df_within, df_trunks, slope, centre, rows_per_trunk, *ends)


def _noise_slope(residuals: Array, trunk: NDArray, x: Array) -> float:
    """Returns the slope at which log noise decreases with log size, shrunk towards 0.

    It is the regression of log |residual| within trunks, which is robust to outliers; log |z| of a normal z has the
    variance pi^2 / 8.
    """
    apart = np.abs(residuals - _medians(residuals, trunk))
    clear = apart > 1e-12 * max(float(apart.max()), 1e-300)
    if clear.sum() < 3 or not np.ptp(x[clear]) > 0:
        return 0.0
    spread = float(((x[clear] - x[clear].mean()) ** 2).sum())
    slope = -float(((x[clear] - x[clear].mean()) * np.log(apart[clear])).sum()) / spread
    return slope * SLOPE_PRIOR**2 / (SLOPE_PRIOR**2 + np.pi**2 / 8 / spread)


def without_outliers(residuals: Array, trunk: NDArray | None = None) -> Array:
    """Replaces residuals farther than OUTLIER robust standard deviations from the median of their trunk by that median.

    If every trunk has one row, or `trunk` is None, it is the median of all rows.
    """
    middle = _medians(residuals, trunk)
    size = np.abs(residuals - middle)
    far = OUTLIER * 1.4826 * float(np.median(size[size > 0])) if size.any() else 0.0
    return np.where(size > far, middle, residuals)


def _medians(residuals: Array, trunk: NDArray | None) -> Array:
    if trunk is None or len(np.unique(trunk)) == len(trunk):
        return np.full(len(residuals), np.median(residuals))
    return pd.Series(residuals).groupby(trunk).transform("median").to_numpy()


def _mean_squares(
    jacobian: Array, residuals: Array, trunk: NDArray, spent: int
) -> tuple[float, float, float, float, float, float]:
    """Returns (between, within, df_between, df_within, df_trunks, rows per trunk) of least-squares residuals."""
    num_rows = len(residuals)
    lengths = np.bincount(trunk).astype(np.float64)
    num_trunks, spare = len(lengths), num_rows - spent
    rows_per_trunk = float((num_rows - (lengths**2).sum() / num_rows) / max(num_trunks - 1, 1))

    def means(column: Array) -> Array:
        return (np.bincount(trunk, column) / lengths)[trunk]

    basis, sizes, _ = np.linalg.svd(jacobian, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes.max()]
    outer = np.column_stack([means(column) for column in basis.T])
    share = float((outer**2).sum())  # parameters that trunks determine
    rest = residuals - basis @ (basis.T @ residuals)
    between_part = means(rest)
    within_part = rest - between_part
    squares = np.array([float(between_part @ between_part), float(within_part @ within_part)])
    df_between, df_within = num_trunks - share, num_rows - num_trunks - (spent - share)
    pooled = float(rest @ rest) / spare
    together = (0.0, pooled, float(spare), float(spare), df_between, rows_per_trunk)
    if num_trunks in (1, num_rows) or min(df_between, df_within) < 0.5:
        return together
    square_between, square_within = _unbiased_mean_squares(
        squares, basis, outer, trunk, lengths, df_between, df_within, spent
    )
    if square_between <= square_within:
        return together
    between = (square_between - square_within) / rows_per_trunk
    chance = float(fdtrc(df_between, df_within, square_between / square_within))
    if chance > 0.25:
        return together
    if chance > 0.1:
        square_within = pooled
    return (between, square_within, df_between, df_within, df_between, rows_per_trunk)


def _unbiased_mean_squares(
    squares: Array, basis: Array, outer: Array, trunk: NDArray, lengths: Array, df_between: float, df_within: float,
    spent: int,
) -> tuple[float, float]:  # fmt: skip
    """Returns unbiased mean squares between and within trunks.

    The fit moves part of the noise between trunks into the residuals within trunks, unless the law depends on trunks
    only. With the residual projection M = I - Q Q', the traces tr(B M B M) and tr(B M (I - B) M) give the two parts.
    """
    cross = basis.T @ outer  # Q' B Q
    stays = len(lengths) - 2 * float(np.trace(cross)) + float((cross**2).sum())
    leaks = float(np.trace(cross)) - float((cross**2).sum())
    inner = len(trunk) - len(lengths) - 2 * float(np.trace(np.eye(len(cross)) - cross))
    inner += float(((np.eye(len(cross)) - cross) ** 2).sum())
    mixing = np.array([[stays, leaks], [leaks, inner]])
    mean_squares = np.linalg.solve(mixing, squares)
    if not (mean_squares > 0).all():
        mean_squares = squares / np.array([df_between, df_within])
    spent_on_slope = inner / max(inner - spent + basis.shape[1], 1.0)
    return float(mean_squares[0]), max(float(mean_squares[1]) * spent_on_slope, 1e-300)


@dataclass(frozen=True)
class TrunkNoise:
    """Standard deviation of ln L between and within the trunks of a size; `df` is that between trunks."""

    between: float
    within: float
    df: int

    @property
    def correlation(self) -> float:
        """Correlation of two branches of a trunk."""
        return self.between**2 / max(self.between**2 + self.within**2, 1e-300)


def trunk_noise(inputs: Mapping[str, Array], loss: Array, clusters: NDArray) -> TrunkNoise | None:
    """Estimates the noise ln L = a_D + u_trunk + e within a size, pooled over sizes; None if no size has two seeds.

    Uses mean squares over the values of D that all trunks of a size reached: E[MS_trunk] = m var_u + var_e.
    """
    rows = pd.DataFrame({"trunk": clusters, "length": cells({"D": inputs["D"]}), "log_loss": np.log(loss)})
    between = within = lengths = 0.0
    df = spare = 0
    for _, part in rows.groupby(cells_without(inputs, "D")):
        table = part.pivot_table("log_loss", "trunk", "length", aggfunc="last").dropna(axis=1).to_numpy()
        trunks, num = table.shape
        if trunks < 2 or num < 2:
            continue
        means = table.mean(1, keepdims=True) - table.mean()
        rest = table - table.mean(0) - means
        between += num * float((means**2).sum())
        within += float((rest**2).sum())
        df, spare, lengths = df + trunks - 1, spare + (trunks - 1) * (num - 1), lengths + num * (trunks - 1)
    if df < 1:
        return None
    error = within / spare
    return TrunkNoise(float(np.sqrt(max(between / df - error, 0.0) / (lengths / df))), float(np.sqrt(error)), df)
