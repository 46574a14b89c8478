"""Fits the law of optimal hyperparameters, in two steps and jointly.

In two steps: the optimum of each group of equal N and D (`optima`), then a power law of each hyperparameter over the
groups, weighted by the uncertainty of the optima and by their scatter around the law, which is estimated by restricted
maximum likelihood. Jointly: one least-squares fit of the loss of all runs, in which the optima follow the power laws
while every group has a level and curvatures of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, minimize_scalar

from kleiber.studies.laws.hyperparameters import LARGEST, POWERS
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.optima import Optimum, quadratic
from kleiber.studies.laws.uncertainty import FEW_CLUSTERS, student_quantile


@dataclass(frozen=True)
class PowerLaw:
    """The power law of one hyperparameter: log h = theta_0 + sum_j theta_j (log x_j - center_j).

    bread    covariance of theta if the optima have the variances 1 / weights
    factor   residual variance in these units, with `df` degrees of freedom (Hartung and Knapp 2001)
    scatter  standard deviation of the optima around the law beyond their own uncertainty, in log
    weights  (groups,) inverse variances of the optima
    rank     rank of the design; the exponents are not determined if it is below the number of coefficients
    """

    axis: str
    theta: Array
    bread: Array
    factor: float
    scatter: float
    weights: Array
    center: Array
    df: int
    rank: int

    @property
    def determined(self) -> bool:
        """Whether the groups determine the exponents and leave a degree of freedom to estimate their uncertainty."""
        return self.rank == len(self.theta) and self.df >= 1

    def natural(self, theta: Array) -> Array:
        """Returns log scale and exponents for coefficients (..., coefficients) of centered inputs."""
        out = np.array(theta, dtype=np.float64)
        out[..., 0] -= out[..., 1:] @ self.center
        return out


def logs_of(axis: str, N: Array, D: Array) -> Array:
    """Returns the logarithms of the inputs of a hyperparameter's power law, (groups, inputs)."""
    inputs = {"N": N, "D": D, "M": D / N}
    return np.column_stack([np.log(inputs[name]) for name in POWERS[axis][1]])


def power_law(axis: str, N: Array, D: Array, log: Array, variance: Array) -> PowerLaw:
    """Fits the power law of a hyperparameter to the optima of groups.

    log, variance  (groups,) logarithm of the optimum and its variance
    """
    inputs = logs_of(axis, N, D)
    center = inputs.mean(0)
    design = np.column_stack([np.ones(len(log)), inputs - center])
    rank = int(np.linalg.matrix_rank(design, tol=1e-6 * len(log) ** 0.5))
    scatter2 = _scatter(design, log, variance) if len(log) > rank else 0.0
    weights = 1 / np.maximum(variance + scatter2, 1e-12)
    bread = np.asarray(np.linalg.pinv((design * weights[:, None]).T @ design, rcond=1e-9), dtype=np.float64)
    theta = bread @ (design.T @ (weights * log))
    df = len(log) - rank
    factor = float((weights * (log - design @ theta) ** 2).sum() / df) if df else np.nan
    return PowerLaw(axis, theta, bread, factor, float(np.sqrt(scatter2)), weights, center, df, rank)


def _scatter(design: Array, log: Array, variance: Array) -> float:
    """Returns the variance of the optima around the law beyond `variance`, by restricted maximum likelihood."""

    def restricted(log_scatter: float) -> float:
        """Returns minus twice the restricted log likelihood at the logarithm of a scatter."""
        total = variance + np.exp(log_scatter)
        information = (design / total[:, None]).T @ design
        theta = np.linalg.pinv(information, rcond=1e-9) @ (design.T @ (log / total))
        size = np.linalg.eigvalsh(information)
        kept = size[size > 1e-9 * size.max()]
        return float((np.log(total) + (log - design @ theta) ** 2 / total).sum() + np.log(kept).sum())

    floor = float(np.log(max(variance.min() * 1e-4, 1e-14)))
    best = minimize_scalar(restricted, bounds=(floor, 4.0), method="bounded")
    return 0.0 if restricted(floor) <= best.fun + 1e-9 else float(np.exp(best.x))


def sizes_of(optima: Sequence[Optimum]) -> tuple[Array, Array]:
    """Returns N and D of the groups, (groups,) each."""
    return np.array([fit.group.N for fit in optima]), np.array([fit.group.D for fit in optima])


def fit_laws(axes: Sequence[str], optima: Sequence[Optimum]) -> list[PowerLaw]:
    """Fits the power law of every hyperparameter to optima, or to best runs where no optimum is inside its grid."""
    N, D = sizes_of(optima)
    logs = np.array([fit.log for fit in optima])
    variances = np.nan_to_num([np.diag(fit.cov) for fit in optima], nan=1.0)
    return [power_law(axis, N, D, logs[:, j], variances[:, j]) for j, axis in enumerate(axes)]


def values_of(laws: Sequence[PowerLaw], thetas: Sequence[Array]) -> Array:
    """Returns the parameters in natural units (..., params) for the coefficients of each law (..., coefficients)."""
    parts = [law.natural(theta) for law, theta in zip(laws, thetas, strict=True)]
    natural = [
        np.concatenate([np.exp(np.clip(part[..., :1], -LARGEST, LARGEST)), part[..., 1:]], axis=-1) for part in parts
    ]
    return np.concatenate(natural, axis=-1)


def draw(laws: Sequence[PowerLaw], optima: Sequence[Optimum], count: int, seed: int) -> tuple[str, Array]:
    """Returns the bootstrap method, and refitted parameters in natural units (count, params).

    Groups are resampled if there are at least 20. With fewer, a resample has too few distinct groups, and optima are
    simulated with their own covariance and the scatter around the laws, with the width of Student's t.
    """
    rng = np.random.default_rng(seed)
    N, D = sizes_of(optima)
    designs = [np.column_stack([np.ones(len(N)), logs_of(law.axis, N, D) - law.center]) for law in laws]
    logs = np.array([fit.log for fit in optima])
    if len(optima) >= FEW_CLUSTERS:
        times = rng.multinomial(len(optima), np.full(len(optima), 1 / len(optima)), size=count)
        thetas = []
        for j, (law, design) in enumerate(zip(laws, designs, strict=True)):
            weights = times * law.weights
            normal = np.einsum("cg,gi,gj->cij", weights, design, design)
            moment = np.einsum("cg,gi->ci", weights * logs[:, j], design)
            thetas.append(np.einsum("cij,cj->ci", np.linalg.pinv(normal, rcond=1e-9), moment))
        return "cluster bootstrap", values_of(laws, thetas)
    total = np.array([fit.cov for fit in optima]) + np.diag([law.scatter**2 for law in laws])
    error = np.einsum("gij,cgj->cgi", _roots(total), rng.normal(size=(count, len(optima), len(laws))))
    thetas = []
    for j, (law, design) in enumerate(zip(laws, designs, strict=True)):
        width = np.sqrt(law.factor * law.df / rng.chisquare(max(law.df, 1), size=(count, 1)))
        gain = law.bread @ (design * law.weights[:, None]).T
        thetas.append(law.theta + (error[:, :, j] * width) @ gain.T)
    return "cluster t", values_of(laws, thetas)


def _roots(matrices: Array) -> Array:
    """Returns the Cholesky factors of covariance matrices (groups, axes, axes)."""
    return np.asarray(np.linalg.cholesky(matrices + 1e-14 * np.eye(matrices.shape[1])), dtype=np.float64)


@dataclass(frozen=True)
class JointFit:
    """The joint fit of the loss of all runs: parameters in natural units, their intervals, and the residuals.

    lo, hi     (params,) Student intervals from the jackknife over groups
    residuals  (runs,) of the log loss
    """

    values: Array
    lo: Array
    hi: Array
    residuals: Array


def fit_jointly(laws: Sequence[PowerLaw], optima: Sequence[Optimum], level: float) -> JointFit:
    """Fits log L = level of the group + (h - h*)' Q (h - h*) of the group, with h* from the power laws, to all runs.

    The levels and curvatures are solved exactly at every step (variable projection). Groups are weighted by the noise
    of their surfaces. Intervals are from the jackknife over groups, which needs no model of the noise.
    """
    parts = [_JointGroup(laws, fit) for fit in optima]
    start = np.concatenate([law.theta for law in laws])
    theta = _minimize(parts, start)
    left_out = np.array([_minimize([*parts[:g], *parts[g + 1 :]], theta) for g in range(len(parts))])
    spread = np.sqrt((len(parts) - 1) / len(parts) * ((left_out - left_out.mean(0)) ** 2).sum(0))
    half = student_quantile(min(law.df for law in laws), level) * spread
    ends = np.cumsum([len(law.theta) for law in laws])[:-1]
    point, low, high = (values_of(laws, np.split(at, ends)) for at in (theta, theta - half, theta + half))
    # The scale of a power law is that at N = D = 1, far outside: its interval follows from the draws, not from here.
    residuals = np.concatenate([part.residuals(theta) * part.noise for part in parts])
    return JointFit(point, low, high, residuals)


class _JointGroup:
    """The runs of one group in the joint fit."""

    def __init__(self, laws: Sequence[PowerLaw], fit: Optimum) -> None:
        group, self.noise = fit.group, max(fit.noise**0.5, 1e-9)
        self.points, self.losses = group.points[fit.used], group.losses[fit.used] / self.noise
        self.weight = np.sqrt(group.count[fit.used])
        N, D = np.array([group.N]), np.array([group.D])
        self.rows = [np.concatenate([[1.0], (logs_of(law.axis, N, D) - law.center)[0]]) for law in laws]
        self.ends = np.cumsum([len(row) for row in self.rows])[:-1]

    def residuals(self, theta: Array) -> Array:
        """Returns the residuals in units of the noise, with the level and curvatures solved for."""
        best = [row @ part for row, part in zip(self.rows, np.split(theta, self.ends), strict=True)]
        away = quadratic(self.points - np.array(best))
        design = np.delete(away, np.s_[1 : 1 + len(best)], axis=1)  # no slopes: the surface is least at the optimum
        fitted, *_ = np.linalg.lstsq(design * self.weight[:, None], self.losses * self.weight, rcond=None)
        return (self.losses - design @ fitted) * self.weight


def _minimize(parts: Sequence[_JointGroup], start: Array) -> Array:
    def residuals(theta: Array) -> Array:
        return np.concatenate([part.residuals(theta) for part in parts])

    return least_squares(residuals, start, method="lm", xtol=1e-9, ftol=1e-9).x
