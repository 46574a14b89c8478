"""The optimal hyperparameters of each group of runs with equal N and D, from a quadratic surface around the best run.

The axes of a surface are the logarithms of the swept hyperparameters (learning rate, batch, weight decay). The loss is
a parabola only near its least value, and rises steeply where training diverges, so the surface is fitted to the runs
within WINDOW of the least loss. An optimum at the edge of its grid is no optimum, since the loss may fall beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, interp1d

from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import cells

WINDOW = 0.01  # relative excess over the least loss of the runs that a surface is fitted to
WIDER = 1.25  # factor by which the window grows until it has twice as many points as the surface has coefficients
NOISES, ROUNDS = 6.0, 8  # the window is at least this many standard deviations of the noise, which refits estimate
SHARED_DF = 4.0  # degrees of freedom of the noise of all groups that each group's estimate of its noise is given
INSIDE, EDGE, FLAT, FEW = "inside", "edge", "flat", "few"


@dataclass(frozen=True)
class Group:
    """The runs of one model size N and one number of training tokens D, averaged over equal hyperparameters.

    points  (cells, axes) logarithms of the hyperparameters
    losses  (cells,) mean log loss
    count   (cells,) number of runs
    """

    N: float
    D: float
    points: Array
    losses: Array
    count: Array

    @property
    def best(self) -> int:
        """Position of the least loss."""
        return int(np.argmin(self.losses))

    def nearby(self, window: float) -> NDArray[np.bool_]:
        """Returns the mask of the cells within a relative `window` of the least loss, wider if those are too few."""
        enough = min(2 * num_coefficients(self.points.shape[1]), len(self.losses))
        excess = self.losses - self.losses.min()
        while (excess <= window).sum() < enough:
            window *= WIDER
        return excess <= window

    def excess(self, point: Array) -> float:
        """Returns the relative excess loss at a point (axes,), by linear interpolation of the sweep; nan outside."""
        if self.points.shape[1] == 1:
            order = np.argsort(self.points[:, 0])
            at = interp1d(self.points[order, 0], self.losses[order], bounds_error=False)(point[0])
        else:
            at = LinearNDInterpolator(self.points, self.losses, rescale=True)(point[None])[0]
        return float(np.expm1(at - self.losses.min()))


@dataclass(frozen=True)
class Optimum:
    """The optimum of one group: log of each hyperparameter (axes,), its covariance, and the surface around it.

    place      inside; edge (of the grid), flat (not convex) or few (too few runs), which have no optimum
    curvature  (axes, axes) matrix Q of log L = log L* + (h - h*)' Q (h - h*)
    noise, df  residual variance of the surface and its degrees of freedom
    window     relative excess loss of the runs that the surface is fitted to (more where those are too few)
    used       (cells,) mask of these runs
    """

    group: Group
    place: str
    log: Array
    cov: Array
    curvature: Array
    noise: float
    df: int
    window: float
    used: NDArray[np.bool_]


def num_coefficients(axes: int) -> int:
    """Returns the number of coefficients of a quadratic surface: constant, slopes and curvatures."""
    return 1 + axes + axes * (axes + 1) // 2


def groups_of(N: Array, D: Array, axes: Sequence[Array], loss: Array) -> list[Group]:
    """Returns the groups of rows with equal N and D, in order of size and tokens; replicates are averaged."""
    groups = []
    member = cells({"N": N, "D": D})
    for number in np.unique(member):
        rows = member == number
        points = np.column_stack([np.log(axis[rows]) for axis in axes])
        cell = cells({str(j): axis[rows] for j, axis in enumerate(axes)})
        count = np.bincount(cell).astype(np.float64)
        _, first = np.unique(cell, return_index=True)
        mean = np.bincount(cell, np.log(loss[rows])) / count
        groups.append(Group(float(N[rows][0]), float(D[rows][0]), points[first], mean, count))
    return groups


def quadratic(u: Array) -> Array:
    """Returns the columns 1, u_j and u_j u_k (j <= k) of a quadratic surface at points u (points, axes)."""
    axes = u.shape[1]
    products = [u[:, j] * u[:, k] for j in range(axes) for k in range(j, axes)]
    return np.column_stack([np.ones(len(u)), u, *products])


def hessian(coefficients: Array, axes: int) -> Array:
    """Returns the matrix of second derivatives of a surface with the coefficients of `quadratic`."""
    second = np.zeros((axes, axes))
    second[np.triu_indices(axes)] = coefficients[1 + axes :]
    return second + second.T


def surface(group: Group, window: float = WINDOW) -> Optimum:
    """Fits the surface of one group by least squares; the covariance of its optimum is by the delta method."""
    axes, used = group.points.shape[1], group.nearby(window)
    size, center = num_coefficients(axes), group.points[group.best]
    weight = np.sqrt(group.count[used])
    design = quadratic(group.points[used] - center)
    blank = np.full((axes, axes), np.nan)
    if len(weight) <= size or np.linalg.matrix_rank(design) < size:
        return Optimum(group, FEW, center, blank, blank, np.nan, 0, window, used)
    fitted, *_ = np.linalg.lstsq(design * weight[:, None], group.losses[used] * weight, rcond=None)
    residuals = (group.losses[used] - design @ fitted) * weight
    df = len(weight) - size
    noise = float(residuals @ residuals) / df
    second = hessian(np.asarray(fitted, dtype=np.float64), axes)
    if np.linalg.eigvalsh(second).min() <= 0:
        at_edge = _at_edge(group, center)
        return Optimum(group, EDGE if at_edge else FLAT, center, blank, second / 2, noise, df, window, used)
    inverse = np.linalg.inv(second)
    step = -inverse @ fitted[1 : 1 + axes]
    slopes = np.zeros((axes, size))
    slopes[:, 1 : 1 + axes] = -inverse
    for number, (j, k) in enumerate(zip(*np.triu_indices(axes), strict=True)):
        turned = np.zeros(axes)
        turned[j] += step[k]
        turned[k] += step[j]
        slopes[:, 1 + axes + number] = -inverse @ turned
    unit = np.linalg.inv((design * weight[:, None] ** 2).T @ design)
    cov = slopes @ unit @ slopes.T
    place = EDGE if _at_edge(group, center) or _outside(group, center + step) else INSIDE
    return Optimum(group, place, center + step, cov, second / 2, noise, df, window, used)


def optima_of(groups: Sequence[Group], window: float = WINDOW) -> list[Optimum]:
    """Fits the surface of every group; `cov` is scaled by its noise, to which all groups contribute.

    The window is at least NOISES standard deviations of the noise.
    """
    fits = [surface(group, window) for group in groups]
    for _ in range(ROUNDS):
        shared = _shared_noise(fits)
        if NOISES * shared**0.5 <= window:
            break
        window = NOISES * shared**0.5
        fits = [surface(group, window) for group in groups]
    shared = _shared_noise(fits)
    return [_scaled(fit, shared) if fit.df else fit for fit in fits]


def _shared_noise(fits: Sequence[Optimum]) -> float:
    """Returns the residual variance of the surfaces of all groups."""
    df = sum(fit.df for fit in fits)
    return sum(fit.df * fit.noise for fit in fits if fit.df) / max(df, 1)


def _scaled(fit: Optimum, shared: float) -> Optimum:
    """Returns the optimum with the covariance for its own noise, drawn towards that of all groups."""
    noise = (fit.df * fit.noise + SHARED_DF * shared) / (fit.df + SHARED_DF)
    return replace(fit, cov=fit.cov * noise, noise=noise)


def _at_edge(group: Group, center: Array) -> bool:
    """Whether the run of least loss is at an end of some axis."""
    return bool(((center <= group.points.min(0) + 1e-9) | (center >= group.points.max(0) - 1e-9)).any())


def _outside(group: Group, point: Array) -> bool:
    """Whether a point is not inside the range of every axis."""
    return bool(((point <= group.points.min(0)) | (point >= group.points.max(0))).any())
