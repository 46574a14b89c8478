"""Uncertainty of a fit: refits of resampled tables, and profile likelihoods of its parameters.

A bootstrap resamples trunks or rows, or adds noise with the estimated variances, and refits every draw; intervals are
percentiles of parameters, predictions and derived quantities. Resampling does not show the law's misfit, which
`prediction` adds beyond the rows. A profile holds one parameter and refits the rest: where the fit never gets worse on
one side, the data do not identify the parameter, however sharp its point value looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri, stdtrit

from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.law import Array, Linear, Shape
from kleiber.studies.laws.problem import convert, from_space
from kleiber.studies.laws.solve import descend, finish
from kleiber.studies.laws.variance_components import Layout, VarianceComponents

FEW_ROWS = 25  # fewer independent rows leave too few distinct ones in a resample
FEW_CLUSTERS = 20  # with fewer trunks, intervals from resampled trunks are too narrow
APART = 2.0  # distance of the second start of a refit from the fit, in standard deviations
METHODS = ("cluster t", "cluster bootstrap", "bootstrap")


@dataclass(frozen=True)
class Draws:
    """Refitted parameters (draws, params), the method, and the noise of runs.

    method       "cluster t": noise from the variance components of trunks with their degrees of freedom; "cluster
                 bootstrap": whole trunks resampled; "bootstrap": rows resampled, or noise added where rows are few
    noise        variance components of single runs
    residual_sd  of the fit, misfit and outliers included: the least scatter of a new run
    """

    fit: Fit
    values: Array
    method: str
    noise: VarianceComponents
    residual_sd: float = 0.0

    def predict(self, inputs: Mapping[str, Array]) -> Array:
        """The target at new inputs by draw, (draws, rows)."""
        return self.fit.law.predict(inputs, self.values)

    def predict_runs(self, inputs: Mapping[str, Array], seed: int = 0, scale: Array | None = None) -> Array:
        """The loss of one new run by draw: `predict` plus the noise of a run, times the `scale` of the row."""
        answer = self.fit.law.evaluate(inputs, self.values)
        space = self.fit.problem.space
        sd = self.noise.run_sd(np.log(inputs["N"])) if "N" in inputs else self.noise.run_sd(np.array(0.0))
        sd = np.maximum(sd, self.residual_sd)
        noise = np.random.default_rng([seed, 1]).normal(size=answer.shape) * sd * (1.0 if scale is None else scale)
        noisy = convert(answer, self.fit.law.returns, space) + noise
        return from_space(noisy, space)

    def derive(self) -> dict[str, Array]:
        return self.fit.law.derive(self.values)


def interval(samples: Array, level: float = 0.9) -> tuple[Array, Array]:
    """Central percentile interval along the first axis, without nan, the draws that failed."""
    with np.errstate(all="ignore"):
        lo, hi = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(lo), np.asarray(hi)


def student_quantile(df: int, level: float) -> float:
    """The quantile t with P(|T| <= t) = level for `df` degrees of freedom of Student's t; nan for df = 0."""
    return float(stdtrit(df, 0.5 + level / 2))


def bootstrap(
    fit: Fit, count: int, seed: int, noise: VarianceComponents, layout: Layout, strata: NDArray | None = None,
    clusters: NDArray | None = None, method: str | None = None,
) -> Draws:  # fmt: skip
    """Refits `count` resampled tables; the same seed gives the same draws.

    `method` None chooses by measured coverage (benchmarks/coverage.py): whole `clusters` resampled from 20 of them on,
    rows resampled within `strata` from 25 independent rows on, else noise drawn from the variance components and added
    to the fit ("cluster t" with clusters). On 300 ladders of 6 to 14 trunks (benchmarks/resampling.py) this is the
    narrowest method whose nominal 90 % intervals of exponents cover .86 to .94 on average: .87 at 1.10 x the width of
    an oracle, pairs .88 at 1.21 x, pairs + t .94 at 1.52 x, CR2 + t .85 at .95 x, wild + t .83 at .93 x.
    """
    rng = np.random.default_rng(seed)
    method, resampled = _choose(fit.problem.num_rows, clusters, method)
    targets = weights = None
    if not resampled:
        targets = (fit.residuals + fit.problem.observed)[None] + noise.draw(rng, count, layout)
    elif clusters is None:
        weights = _counts(rng, count, np.zeros(fit.problem.num_rows) if strata is None else strata)
    else:
        names, member = np.unique(clusters, return_inverse=True)
        weights = _counts(rng, count, np.zeros(len(names)))[:, member]
    theta, value = descend(fit.problem, np.repeat(fit.theta[None], count, 0), targets, weights, None, 50, 1e-6)
    other, low = descend(fit.problem, _second_start(fit, count), targets, weights, None, 50, 1e-6)
    lower = low < value
    theta[lower] = other[lower]
    theta, value = finish(fit.problem, theta, targets, weights)
    return Draws(fit, fit.problem.values(theta[np.isfinite(value)]), method, noise, fit.noise)


def _choose(num_rows: int, clusters: NDArray | None, method: str | None) -> tuple[str, bool]:
    """The method, and whether it resamples."""
    if method is not None and method not in METHODS:
        raise ValueError(f"bootstrap method {method!r}: must be one of {', '.join(METHODS)}")
    if method in ("cluster t", "cluster bootstrap") and clusters is None:
        raise ValueError(f"bootstrap method {method!r} needs clusters")
    if clusters is None:
        return "bootstrap", num_rows >= FEW_ROWS
    if method == "bootstrap":
        raise ValueError("bootstrap method 'bootstrap' is for independent rows, and these share clusters")
    many = len(np.unique(clusters)) >= FEW_CLUSTERS
    method = method or ("cluster bootstrap" if many else "cluster t")
    return method, method == "cluster bootstrap"


def _second_start(fit: Fit, count: int) -> Array:
    """Points on both sides of the fit along its least certain direction, (count, params)."""
    variances, directions = np.linalg.eigh(fit.covariance()[0])
    step = APART * np.sqrt(max(float(variances[-1]), 0.0)) * directions[:, -1]
    return fit.theta + np.where(np.arange(count) % 2, 1.0, -1.0)[:, None] * np.clip(step, -3.0, 3.0)


def strata_of(sizes: Array) -> NDArray:
    """Strata for pairs: rows of one size, where sizes repeat at least three times on average; else one stratum."""
    _, member = np.unique(np.round(np.log(sizes), 3), return_inverse=True)
    return member if len(sizes) >= 3 * (member.max() + 1) else np.zeros(len(sizes), dtype=int)


def _counts(rng: np.random.Generator, count: int, strata: NDArray) -> Array:
    """How often each row is drawn when every stratum is resampled to its own size, (count, rows)."""
    weights = np.zeros((count, len(strata)))
    for name in np.unique(strata):
        rows = np.flatnonzero(strata == name)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
    return weights


STEPS = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 11.0, 18.0, 30.0])
FAR = np.log(1e3)  # farthest a profile goes on either side, for parameters on a log scale


@dataclass(frozen=True)
class Profile:
    """One parameter's profile: the values tried, the statistic at each, the interval, and why it is not identified.

    path  all parameters (points, params) at the values tried that stay under the threshold, the rest refitted
    """

    name: str
    values: Array
    statistic: Array
    threshold: float
    lo: float
    hi: float
    reason: str = ""
    path: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def identified(self) -> bool:
        return not self.reason


def profiles(fit: Fit, level: float = 0.9, half_widths: Mapping[str, float] | None = None) -> dict[str, Profile]:
    """The profile of every parameter that is in the law, by name.

    The statistic is (n - p) (S/S0 - 1) for squared loss, compared with F(1, n - p). For the Huber loss S grows like
    |r| in the tails, so the ratio has the power 1 + (share of residuals beyond delta): 2 for lad, where n log S is the
    Laplace likelihood. A term that can shrink 1000-fold, or a shape that can leave its search range, is flat.

    `half_widths` are those of intervals by another method, in solver coordinates (log where positive): the threshold of
    a parameter is then the height of the profile of a linear law at that distance.
    """
    problem = fit.problem
    spare = problem.num_rows - problem.num_params
    names = [name for name, on in zip(fit.law.params, problem.active, strict=True) if on]
    if spare < 1:
        return {n: _blank(n, fit, f"{problem.num_rows} rows for {problem.num_params} parameters") for n in names}
    spread = fit.covariance()[0]
    power = 1.0 if problem.loss_fn == "squared" else 1.0 + float(np.mean(np.abs(fit.residuals) > problem.delta))
    if problem.loss_fn == "lad":
        power = 2.0
    usual = float(fdtri(1, spare, level))
    by_name = {}
    for j, name in enumerate(names):
        width = (half_widths or {}).get(name)
        threshold = usual if width is None else width**2 / max(spread[j, j], 1e-300)
        by_name[name] = _profile(fit, j, name, spread, spare, power, threshold)
    return by_name


def _profile(fit: Fit, j: int, name: str, spread: Array, spare: int, power: float, threshold: float) -> Profile:
    """Refits at all offsets of a parameter, each from the fit and from the linear prediction of the others."""
    log = bool(fit.law.log[fit.problem.active][j])
    width = float(np.sqrt(max(spread[j, j], 1e-24)))
    far = FAR if log else 30.0 * width
    steps = np.minimum(STEPS * width, far)
    steps = np.unique(np.concatenate([steps, far * np.array([0.25, 0.5, 1.0])])) if log else np.unique(steps)
    offsets = np.concatenate([-steps[::-1], steps])
    along = np.clip(offsets[:, None] * spread[j] / max(spread[j, j], 1e-24), -30, 30)
    along[:, j] = offsets
    starts = np.concatenate([fit.theta + along, np.repeat(fit.theta[None], len(offsets), axis=0)])
    starts[len(offsets) :, j] += offsets
    theta, _ = descend(fit.problem, starts, fixed=j, rounds=60, tolerance=1e-5)
    _, value = finish(fit.problem, theta, fixed=j)
    best = value.reshape(2, -1).argmin(0)
    value = value.reshape(2, -1).min(0)
    ratio = np.maximum(value / max(fit.value, 1e-300), 1.0)
    with np.errstate(over="ignore"):
        statistic = [0.0, *np.where(np.isfinite(ratio), spare * (ratio**power - 1), np.inf)]
    at = [fit.theta[j], *(fit.theta[j] + offsets)]
    order = np.argsort(at)
    refits = theta.reshape(2, len(offsets), -1)[best, np.arange(len(offsets))]
    path = fit.problem.values(refits[np.array(statistic)[1:] <= threshold])
    theta, stat = np.array(at)[order], np.array(statistic)[order]
    lo, hi = _crossing(theta, stat, threshold, fit.theta[j], -1), _crossing(theta, stat, threshold, fit.theta[j], 1)
    natural = np.exp if log else np.asarray
    lo, hi, value = float(natural(lo)), float(natural(hi)), float(natural(fit.theta[j]))
    reason = _reason(fit, name, float(natural(theta[0])), float(natural(theta[-1])), lo, hi, value)
    return Profile(name, natural(theta), stat, threshold, lo, hi, reason, path)


def _crossing(theta: Array, stat: Array, threshold: float, centre: float, sign: int) -> float:
    """Where the square root of the profile, interpolated, exceeds the threshold on one side; inf if nowhere."""
    side = [i for i in np.argsort(sign * theta) if sign * (theta[i] - centre) >= 0]
    for a, b in pairwise(side):
        if stat[b] > threshold:
            low, high = np.sqrt(stat[a]), np.sqrt(min(stat[b], 1e12))
            share = (np.sqrt(threshold) - low) / max(high - low, 1e-300)
            return float(theta[a] + np.clip(share, 0, 1) * (theta[b] - theta[a]))
    return sign * np.inf


def _reason(fit: Fit, name: str, least: float, most: float, lo: float, hi: float, value: float) -> str:
    """Why the profile does not identify the parameter, "" when it rises on both sides."""
    kind = fit.law.params[name]
    below = np.isfinite(lo) and (lo > 0 or not kind.log)
    if not below and not np.isfinite(hi):
        return f"flat profile from {least:.3g} to {most:.3g}"
    if not below:
        return f"flat profile below {hi:.3g}" + (
            ": not distinguishable from 0" if isinstance(kind, Linear) and kind.log else ""
        )
    if not np.isfinite(hi):
        return f"flat profile above {lo:.3g}"
    if isinstance(kind, Shape) and not kind.lo * (1 - 1e-9) <= value <= kind.hi * (1 + 1e-9) and kind.log:
        return f"{value:.3g} is outside its range [{kind.lo:g}, {kind.hi:g}]"
    return ""


def _blank(name: str, fit: Fit, reason: str) -> Profile:
    value = fit.params[name]
    return Profile(name, np.array([value]), np.zeros(1), 0.0, float("-inf"), float("inf"), reason)
