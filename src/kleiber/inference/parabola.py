"""A parabola by least squares, such as of the loss in the logarithm of the learning rate, and where it is least.

Groups of points, such as the runs of one seed, may have levels of their own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Parabola:
    """y = level + slope (x - center) + curvature (x - center)^2.

    coefficients  the levels of all groups, slope and curvature
    design        columns of the fit, in the order of the coefficients
    residuals     of the points
    """

    center: float
    coefficients: NDArray[np.float64]
    design: NDArray[np.float64]
    residuals: NDArray[np.float64]

    @property
    def slope(self) -> float:
        return float(self.coefficients[-2])

    @property
    def curvature(self) -> float:
        return float(self.coefficients[-1])

    @property
    def vertex(self) -> float:
        """The x at which the parabola is least; nan where it does not bend upwards."""
        return self.center - self.slope / (2 * self.curvature) if self.curvature > 0 else math.nan

    @property
    def df(self) -> int:
        """Residual degrees of freedom."""
        return len(self.residuals) - len(self.coefficients)

    @property
    def squares(self) -> float:
        """Sum of the squared residuals."""
        return float(self.residuals @ self.residuals)

    @cached_property
    def unit(self) -> NDArray[np.float64]:
        """Covariance of the coefficients for noise of variance 1."""
        return np.asarray(np.linalg.inv(self.design.T @ self.design), np.float64)

    def spread(self, noise: float) -> float:
        """Returns the standard deviation of the vertex by the delta method, for noise of that variance."""
        jacobian = np.array([-1 / (2 * self.curvature), self.slope / (2 * self.curvature**2)])
        return float(np.sqrt(noise * jacobian @ self.unit[-2:, -2:] @ jacobian))

    def at(self, x: ArrayLike) -> NDArray[np.float64]:
        """Returns the heights of the first group at points x."""
        heights = np.polyval(self.coefficients[[-1, -2, 0]], np.asarray(x, dtype=float) - self.center)
        return np.asarray(heights, dtype=np.float64)

    def variance_at(self, x: float) -> float:
        """Returns the variance of the height at x, of a parabola of one group, for noise of variance 1."""
        powers = (x - self.center) ** np.arange(3)
        return float(powers @ self.unit @ powers)


def fit_parabola(
    x: ArrayLike, y: ArrayLike, groups: Sequence[Hashable] = (), center: float | None = None
) -> Parabola | None:
    """Fits a parabola to points by least squares; returns None where they do not determine it.

    groups  of the points, each of which has a level of its own; (): all points have one
    center  None: the mean of x
    """
    points, heights = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    middle = float(points.mean()) if center is None else center
    away, names = points - middle, sorted(set(groups), key=repr)
    levels = [np.array([float(group == name) for group in groups]) for name in names] or [np.ones(len(points))]
    design = np.column_stack([*levels, away, away**2])
    solved, _, rank, _ = np.linalg.lstsq(design, heights, rcond=None)
    if rank < design.shape[1]:
        return None
    return Parabola(middle, np.asarray(solved, np.float64), design, heights - design @ solved)
