"""Fits the law of schedules to whole curves: a robust fit of log losses, with residuals that are correlated in a curve.

Long curves are averaged over neighboring rows first. The fit minimizes a Huber loss of the residuals in units of their
robust standard deviation. Residuals of a curve are correlated over many rows, so all rows together count as
rows / `inflation` independent ones, with the autocorrelation time of the residuals as the inflation. Few schedules
determine the shape of the decay badly; the priors of `forms.Prior` keep it near published fits until the curves
say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from kleiber.studies import Array
from kleiber_topics.schedules.curves import Curve
from kleiber_topics.schedules.forms import Form, Prior, RatePath, rate_path

POINTS, LEAST_POINTS, MOST_POINTS = 8_000, 12, 200  # of all curves, and of each
FARTHEST = 27.0  # largest size of the logarithm of a parameter
CHANGES = 100  # of the learning rate of a curve, at most
DELTA = 1.5  # of the Huber loss, in standard deviations
LEAST_SD = 1e-5  # of a residual of log loss
CALIBRATION = 3.0  # of the variance by what the curves say, so that intervals cover (benchmarks/schedule_law.py)
MOST_ABSORBED = 3.0  # of the variance of the noise, which the parameters have absorbed, over what is left
ROUNDS = 3  # of estimating the noise and fitting


@dataclass(frozen=True)
class Noise:
    """The residuals of log losses.

    sd         their standard deviation
    inflation  rows that count as one independent row in the fit
    widening   of the variance of the parameters, over that of the fit
    """

    sd: float
    inflation: float
    widening: float = 1.0


@dataclass(frozen=True)
class ScheduleFit:
    """A fit: the form, its parameters (params,), the covariance of their logarithms, and the noise of a curve."""

    form: Form
    values: Array
    cov: Array
    noise: Noise
    residuals: list[Array]
    prior_sd: Array

    def draws(self, count: int, seed: int) -> Array:
        """Returns parameters from the posterior distribution of the fit, (count, params)."""
        rng = np.random.default_rng(seed)
        root = np.linalg.cholesky(self.cov + 1e-14 * np.eye(len(self.cov)))
        return np.exp(np.log(self.values) + rng.normal(size=(count, len(self.values))) @ root.T)


@dataclass(frozen=True)
class Points:
    """The points of a curve that are fitted: the path of its learning rates, and the logs of its losses."""

    path: RatePath
    logs: Array


def points_of(curves: Sequence[Curve]) -> list[Points]:
    """Returns the points of the curves; losses of long curves are averaged over neighboring rows.

    Curves of the same steps and rates share their path, which is then computed once.
    """
    most, changes = (int(np.clip(POINTS // len(curves), LEAST_POINTS, limit)) for limit in (MOST_POINTS, CHANGES))
    paths: dict[bytes, RatePath] = {}
    out = []
    for curve in curves:
        steps, losses = curve.at, curve.observed
        if len(steps) > most:
            group = groups_of_rows(steps, most)
            size = np.bincount(group)
            steps, losses = (np.bincount(group, column) / size for column in (steps, losses))
        key = b"".join(column.tobytes() for column in (steps, curve.steps, curve.rates))
        if key not in paths:
            paths[key] = rate_path(curve.steps, curve.rates, steps, changes)
        out.append(Points(paths[key], np.log(losses)))
    return out


def groups_of_rows(steps: Array, most: int) -> np.ndarray:
    """Returns the number of the group of each row: half of `most` groups divide the rows equally, half the log step.

    The loss falls fast in the beginning, where averages over many rows would be biased.
    """
    place = np.arange(len(steps)) / len(steps)
    log = np.log(steps) - np.log(steps[0])
    place = (place + log / (log[-1] * (1 + 1e-9))) / 2
    return np.unique(np.floor(place * most).astype(int), return_inverse=True)[1]


def fit_curves(
    form: Form, curves: Sequence[Curve], points: Sequence[Points], start: ScheduleFit | None = None
) -> ScheduleFit:
    """Fits a form of the law to curves.

    points  of the curves, by `points_of`
    start   a fit to more curves, whose noise is that of the curves, and whose parameters are near; None: there is none
    """
    problem = _Problem(form, points, max(float(curve.rates.max()) for curve in curves))
    noise, best = (Noise(2e-3, 10.0), problem.median) if start is None else (start.noise, np.log(start.values))
    for _ in range(ROUNDS if start is None else 0):
        best, _ = problem.minimize(best, noise)
        noise = estimate_noise(problem.residuals(best), len(best))
    best, jacobian = problem.minimize(best, noise)
    prior = np.diag(problem.prior_sd**-2.0)
    precision = (jacobian.T @ jacobian - prior) / noise.widening + prior
    cov = np.asarray(np.linalg.pinv(precision, rcond=1e-12), dtype=np.float64)
    return ScheduleFit(form, np.exp(best), cov, noise, problem.residuals(best), problem.prior_sd)


class _Problem:
    """Residuals of log losses as a function of the logarithms of the parameters."""

    def __init__(self, form: Form, points: Sequence[Points], peak: float) -> None:
        self.form, self.points = form, points
        self.paths = list({id(each.path): each.path for each in points}.values())
        least = float(np.exp(min(each.logs.min() for each in points)))
        total = float(np.mean([each.path.sums[-1] for each in points]))
        priors = {"E": Prior(0.9 * least, 1.0), "A": Prior(0.1 * least * total**0.5, 5.0), **dict(form.priors)}
        self.median = np.log([priors[name].median * peak ** priors[name].per_rate for name in form.params])
        self.prior_sd = np.array([priors[name].sd for name in form.params])

    def residuals(self, logs: Array) -> list[Array]:
        """Returns observed minus predicted log losses of each curve."""
        values = np.exp(logs)[None]
        predicted = {id(path): np.log(self.form.losses(path, values)[0]) for path in self.paths}
        return [each.logs - predicted[id(each.path)] for each in self.points]

    def objective(self, logs: Array, noise: Noise) -> Array:
        """Returns numbers whose sum of squares is twice the objective: the Huber loss, and the priors."""
        scaled = np.concatenate(self.residuals(logs)) / noise.sd
        away = (logs - self.median) / self.prior_sd
        return np.concatenate([np.sign(scaled) * bent(np.abs(scaled)) / noise.inflation**0.5, away])

    def jacobian(self, logs: Array, noise: Noise) -> Array:
        """Returns the derivatives of `objective` by the logarithms of the parameters."""
        values = np.exp(logs)
        slopes = {
            id(path): self.form.gradient(path, values) / self.form.losses(path, values[None])[0][:, None]
            for path in self.paths
        }
        size = np.abs(np.concatenate(self.residuals(logs))) / noise.sd
        weight = np.where(size < DELTA, 1.0, DELTA / np.maximum(bent(size), DELTA)) / (noise.sd * noise.inflation**0.5)
        of_losses = -np.concatenate([slopes[id(each.path)] for each in self.points]) * weight[:, None]
        return np.concatenate([of_losses, np.diag(1 / self.prior_sd)])

    def minimize(self, start: Array, noise: Noise) -> tuple[Array, Array]:
        """Returns the best logarithms of the parameters, and the Jacobian there."""
        inside = np.clip(start, -FARTHEST + 1, FARTHEST - 1)
        best = least_squares(
            self.objective, inside, self.jacobian,  # type: ignore[arg-type]  (a function, which the stub lacks)
            bounds=(-FARTHEST, FARTHEST), max_nfev=60, xtol=1e-6, ftol=1e-7, args=(noise,),
        )  # fmt: skip
        return best.x, best.jac


def bent(size: Array) -> Array:
    """Returns the root of twice the Huber loss of residuals of this size in standard deviations."""
    return np.where(size < DELTA, size, np.sqrt(np.maximum(2 * DELTA * size - DELTA**2, 0.0)))


def estimate_noise(residuals: Sequence[Array], num_params: int) -> Noise:
    """Returns the robust standard deviation of the residuals, and their autocorrelation time in rows.

    The sum of the autocorrelations ends before the first that is not positive (Geyer 1992). The variance is increased
    by what the parameters have absorbed, in particular of slow changes.
    """
    every = np.concatenate(residuals)
    sd = max(float(1.4826 * np.median(np.abs(every))), LEAST_SD)
    clipped = [np.clip(each, -4 * sd, 4 * sd) for each in residuals]
    variance = sum(float(each @ each) for each in clipped) / len(every)
    time = 1.0
    for lag in range(1, max(len(each) for each in clipped) // 3):
        pairs = [(each[lag:], each[:-lag]) for each in clipped if len(each) > lag]
        count = sum(len(first) for first, _ in pairs)
        correlation = sum(float(first @ other) for first, other in pairs) / max(count, 1) / variance
        if correlation <= 0:
            break
        time += 2 * correlation
    effective = len(every) / time
    absorbed = min(effective / max(effective - num_params, 1.0), MOST_ABSORBED)
    return Noise(sd * absorbed**0.5, max(time / absorbed**0.5, 1.0), CALIBRATION * absorbed)
