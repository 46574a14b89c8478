"""Uncertainty of a fit: bootstrap refits, and profile likelihoods of the parameters.

A bootstrap resamples trunks or rows, or simulates noise with the estimated variances, and refits every sample;
intervals are percentiles of the refits. It does not reveal the misfit of the law, which `prediction` adds. A profile
fixes one parameter at several values and refits the others: if the fit does not become worse on one side, the rows do
not identify the parameter, however precise its estimate looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri, ndtri, stdtrit

from kleiber.records.progress import activity
from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Linear, Shape
from kleiber.studies.laws.problem import convert, from_space
from kleiber.studies.laws.solve import descend, finish
from kleiber.studies.laws.variance_components import Layout, VarianceComponents
from kleiber.types.score import format_interval

FEW_ROWS = 25  # with fewer independent rows, a resample has too few distinct rows
FEW_CLUSTERS = 20  # with fewer trunks, resampling trunks gives intervals that are too narrow
APART = 2.0  # distance of a refit's second starting point from the fit, in standard deviations
METHODS = ("cluster t", "cluster bootstrap", "bootstrap")


@dataclass(frozen=True)
class Draws:
    """Parameters of the bootstrap refits (draws, params), the bootstrap method, and the noise of a run.

    method       "cluster t": simulated noise of trunks and rows, with variances drawn from their sampling distribution;
                 "cluster bootstrap": resampled trunks; "bootstrap": resampled rows, or simulated noise for few rows
    noise        variance components of single runs
    residual_sd  residual standard deviation of the fit; a new run scatters at least as much
    """

    fit: Fit
    values: Array
    method: str
    noise: VarianceComponents
    residual_sd: float = 0.0

    def predict(self, inputs: Mapping[str, Array]) -> Array:
        """Predicts the target at new inputs with each draw, (draws, rows)."""
        return self.fit.law.predict(inputs, self.values)

    def predict_runs(self, inputs: Mapping[str, Array], seed: int = 0, scale: Array | None = None) -> Array:
        """Predicts the loss of one new run with each draw: `predict` plus the noise of a run, multiplied by `scale`."""
        answer = self.fit.law.evaluate(inputs, self.values)
        space = self.fit.problem.space
        normal = np.random.default_rng([seed, 1]).normal(size=answer.shape)
        noise = normal * self._run_sd(inputs) * (1.0 if scale is None else scale)
        return from_space(convert(answer, self.fit.law.returns, space) + noise, space)

    def run_intervals(self, inputs: Mapping[str, Array], level: float) -> tuple[Array, Array]:
        """Returns the central interval of a new run for each draw taken as the true law, two of (draws, rows)."""
        space = self.fit.problem.space
        answer = convert(self.fit.law.evaluate(inputs, self.values), self.fit.law.returns, space)
        noise = float(ndtri((1 + level) / 2)) * self._run_sd(inputs)
        return from_space(answer - noise, space), from_space(answer + noise, space)

    def _run_sd(self, inputs: Mapping[str, Array]) -> Array:
        """Returns the standard deviation of the loss of a run on the scale of the residuals, (rows,) or a number."""
        sd = self.noise.run_sd(np.log(inputs["N"])) if "N" in inputs else self.noise.run_sd(np.array(0.0))
        return np.maximum(sd, self.residual_sd)

    def derive(self) -> dict[str, Array]:
        return self.fit.law.derive(self.values)


def interval(samples: Array, level: float = 0.9) -> tuple[Array, Array]:
    """Returns the central percentile interval along the first axis; draws that failed (nan) are ignored."""
    with np.errstate(all="ignore"):
        lo, hi = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(lo), np.asarray(hi)


def interval_ends(draws: Array, level: float) -> dict[str, float | None]:
    """The ends `lo` and `hi` of the interval of the draws (draws,) of a quantity; None without draws."""
    lo, hi = map(float, interval(draws, level)) if len(draws) else (None, None)
    return {"lo": lo, "hi": hi}


def student_quantile(df: int, level: float) -> float:
    """The quantile t with P(|T| <= t) = level for `df` degrees of freedom of Student's t; nan for df = 0."""
    return float(stdtrit(df, 0.5 + level / 2))


def percent(level: float) -> str:
    """Formats a confidence level: `90%`, `99.5%`."""
    return f"{100 * level:.6g}%"


def bootstrap(
    fit: Fit, count: int, seed: int, noise: VarianceComponents, layout: Layout, strata: NDArray | None = None,
    clusters: NDArray | None = None, method: str | None = None,
) -> Draws:  # fmt: skip
    """Refits `count` resampled tables; the same seed gives the same draws.

    With method=None, whole `clusters` are resampled if there are at least 20, and rows are resampled within `strata` if
    there are at least 25 independent rows; otherwise noise is drawn from the variance components and added to the fit
    ("cluster t" with clusters). benchmarks/coverage.py measures these limits. On 300 ladders of 6 to 14 trunks
    (benchmarks/resampling.py), "cluster t" is the narrowest method whose nominal 90 % intervals of exponents cover .86
    to .94: it covers .87 with 1.10 times the width of an oracle; pairs bootstrap .88 (1.21), pairs + t .94 (1.52), CR2
    + t .85 (.95), wild + t .83 (.93).
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
    with activity(f"refitting {count:,} resampled tables", 3, "passes") as work:
        theta, value = descend(fit.problem, np.repeat(fit.theta[None], count, 0), targets, weights)
        work.done = 1
        other, low = descend(fit.problem, _second_start(fit, count), targets, weights)
        work.done = 2
        lower = low < value
        theta[lower] = other[lower]
        theta, value = finish(fit.problem, theta, targets, weights)
    return Draws(fit, fit.problem.values(theta[np.isfinite(value)]), method, noise, fit.noise)


def _choose(num_rows: int, clusters: NDArray | None, method: str | None) -> tuple[str, bool]:
    """Returns the bootstrap method, and whether it resamples rows or clusters."""
    if method is not None and method not in METHODS:
        raise ValueError(f"bootstrap method {method!r} must be one of {', '.join(METHODS)}")
    if method in ("cluster t", "cluster bootstrap") and clusters is None:
        raise ValueError(f"bootstrap method {method!r} needs clusters, but the rows are independent")
    if clusters is None:
        return "bootstrap", num_rows >= FEW_ROWS
    if method == "bootstrap":
        raise ValueError(
            "bootstrap method 'bootstrap' needs independent rows, but `clusters` groups these rows: use 'cluster t' or "
            "'cluster bootstrap'"
        )
    many = len(np.unique(clusters)) >= FEW_CLUSTERS
    method = method or ("cluster bootstrap" if many else "cluster t")
    return method, method == "cluster bootstrap"


def _second_start(fit: Fit, count: int) -> Array:
    """Returns starting points on both sides of the fit along its least certain direction, (count, params)."""
    variances, directions = np.linalg.eigh(fit.covariance()[0])
    step = APART * np.sqrt(max(float(variances[-1]), 0.0)) * directions[:, -1]
    return fit.theta + np.where(np.arange(count) % 2, 1.0, -1.0)[:, None] * np.clip(step, -3.0, 3.0)


def strata_of(sizes: Array) -> NDArray:
    """Returns the strata of resampled rows: model sizes of at least three rows on average, else one stratum."""
    _, member = np.unique(np.round(np.log(sizes), 3), return_inverse=True)
    return member if len(sizes) >= 3 * (member.max() + 1) else np.zeros(len(sizes), dtype=int)


def _counts(rng: np.random.Generator, count: int, strata: NDArray) -> Array:
    """Returns how often each row is drawn when every stratum is resampled to its own size, (count, rows)."""
    weights = np.zeros((count, len(strata)))
    for name in np.unique(strata):
        rows = np.flatnonzero(strata == name)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
    return weights


STEPS = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 11.0, 18.0, 30.0])
FAR = np.log(1e3)  # largest offset of a profile, for parameters on a log scale
SEARCHES = 2  # of the gap in which a profile crosses its threshold
SHARES = np.array([0.25, 0.5, 0.75])  # where a search divides the gap


@dataclass(frozen=True)
class Profile:
    """The profile of one parameter: values, statistic at each, interval, and the reason if it is not identified.

    path  all parameters (points, params) at the values whose statistic is below the threshold
    """

    name: str
    values: Array
    statistic: Array
    threshold: float
    lo: float
    hi: float
    reason: str = ""
    path: Array = field(default_factory=lambda: np.zeros((0, 0)))


def profiles(fit: Fit, level: float = 0.9, half_widths: Mapping[str, float] | None = None) -> dict[str, Profile]:
    """Returns the profile of every fitted parameter, by name.

    For squared loss the statistic is (n - p) (S / S0 - 1) with the objective S, compared with F(1, n - p). The Huber
    objective grows like |r| in its tails, so the ratio is raised to the power 1 + (fraction of residuals above delta);
    this is 2 for lad, as for a Laplace likelihood. A parameter is not identified if the profile is below its threshold
    down to 1/1000 of a linear parameter or beyond the search range of a shape.

    half_widths  half-widths of intervals by another method, in solver coordinates; the threshold of a parameter is then
                 the height at this distance of the profile of a linear law. Parameters that the rows do not determine
                 keep that of F, since their profile has no height.
    """
    problem = fit.problem
    spare = problem.num_rows - problem.num_params
    if spare < 1:
        few = f"{problem.num_rows} rows are too few for {problem.num_params} parameters"
        return {name: _blank(name, fit, few) for name in fit.kept}
    spread = fit.covariance()[0]
    power = 1.0 if problem.loss_fn == "squared" else 1.0 + float(np.mean(np.abs(fit.residuals) > problem.delta))
    if problem.loss_fn == "lad":
        power = 2.0
    usual = float(fdtri(1, spare, level))
    by_name, undetermined = {}, fit.undetermined()[:, problem.active]
    with activity("profile likelihoods", len(fit.kept), "parameters") as work:
        for j, name in enumerate(work.track(fit.kept)):
            width = None if depends(undetermined[:, j]) else (half_widths or {}).get(name)
            threshold = usual if width is None else width**2 / max(spread[j, j], 1e-300)
            by_name[name] = _profile(fit, j, name, spread, spare, power, threshold)
    return by_name


def _profile(fit: Fit, j: int, name: str, spread: Array, spare: int, power: float, threshold: float) -> Profile:
    """Returns the profile of parameter `name`: the law is refitted with it fixed at values around the fit.

    A grid of values tells between which of them the statistic crosses the threshold. There it is computed at more
    values, since the profile may bend sharply within a gap of the grid.

    j          column of the parameter in fit.theta
    spread     covariance of the parameters in solver coordinates, (params, params)
    spare      rows less fitted parameters, n - p
    power      exponent of the ratio of objectives in the statistic (see `profiles`)
    threshold  statistic at the ends of the interval
    """
    log = bool(fit.law.log[fit.problem.active][j])
    width = float(np.sqrt(max(spread[j, j], 1e-24)))
    far = FAR if log else 30.0 * width
    steps = np.minimum(STEPS * width, far)
    steps = np.unique(np.concatenate([steps, far * np.array([0.25, 0.5, 1.0])])) if log else np.unique(steps)
    offsets = np.concatenate([-steps[::-1], steps])
    along = fit.theta + np.clip(offsets[:, None] * spread[j] / max(spread[j, j], 1e-24), -30, 30)
    alone = np.broadcast_to(fit.theta, along.shape)
    theta, stat = _refits(fit, j, fit.theta[j] + offsets, np.stack([along, alone]), spare, power)
    theta, stat = _in_order(j, (fit.theta[None], theta), (np.zeros(1), stat))
    for _ in range(SEARCHES):
        gaps = [_gap(theta[:, j], stat, threshold, fit.theta[j], sign) for sign in (-1, 1)]
        ends = theta[[gap for gap in gaps if gap]]
        if not len(ends):
            break
        inner, outer = (np.repeat(ends[:, side], len(SHARES), axis=0) for side in (0, 1))
        between = inner + np.tile(SHARES, len(ends))[:, None] * (outer - inner)
        refits, heights = _refits(fit, j, between[:, j], np.stack([between, inner, outer]), spare, power)
        theta, stat = _in_order(j, (theta, refits), (stat, heights))
    lo, hi = (_crossing(theta[:, j], stat, threshold, fit.theta[j], sign) for sign in (-1, 1))
    natural = np.exp if log else np.asarray
    values = natural(theta[:, j])
    lo, hi, value = float(natural(lo)), float(natural(hi)), float(natural(fit.theta[j]))
    reason = _reason(fit, name, float(values[0]), float(values[-1]), lo, hi, value)
    path = fit.problem.values(theta[(stat <= threshold) & (theta[:, j] != fit.theta[j])])
    return Profile(name, values, stat, threshold, lo, hi, reason, path)


def _refits(fit: Fit, j: int, at: Array, starts: Array, spare: int, power: float) -> tuple[Array, Array]:
    """Refits with parameter j fixed `at` each value; returns the best parameters of its starts and the statistics.

    starts  (starts, values, params), of which parameter j is replaced
    """
    starts = starts.copy()
    starts[:, :, j] = at
    theta, _ = descend(fit.problem, starts.reshape(-1, starts.shape[2]), fixed=j)
    theta, value = finish(fit.problem, theta, fixed=j)
    value = value.reshape(len(starts), -1)
    best = theta.reshape(starts.shape)[value.argmin(0), np.arange(len(at))]
    ratio = np.maximum(value.min(0) / max(fit.value, 1e-300), 1.0)
    with np.errstate(over="ignore"):
        return best, np.where(np.isfinite(ratio), spare * (ratio**power - 1), np.inf)


def _in_order(j: int, thetas: Sequence[Array], stats: Sequence[Array]) -> tuple[Array, Array]:
    """Returns the refits of several batches in the order of parameter j."""
    theta, stat = np.concatenate(thetas), np.concatenate(stats)
    order = np.argsort(theta[:, j])
    return theta[order], stat[order]


def _gap(at: Array, stat: Array, threshold: float, centre: float, sign: int) -> tuple[int, int] | None:
    """Returns the last refit below the threshold and the first above it on one side of the fit, or None."""
    side = [i for i in np.argsort(sign * at) if sign * (at[i] - centre) >= 0]
    return next(((a, b) for a, b in pairwise(side) if stat[b] > threshold), None)


def _crossing(at: Array, stat: Array, threshold: float, centre: float, sign: int) -> float:
    """Returns where the interpolated square root of the profile crosses that of the threshold on one side, or inf."""
    gap = _gap(at, stat, threshold, centre, sign)
    if gap is None:
        return sign * np.inf
    a, b = gap
    low, high = np.sqrt(stat[a]), np.sqrt(min(stat[b], 1e12))
    share = (np.sqrt(threshold) - low) / max(high - low, 1e-300)
    return float(at[a] + np.clip(share, 0, 1) * (at[b] - at[a]))


def _reason(fit: Fit, name: str, least: float, most: float, lo: float, hi: float, value: float) -> str:
    """Returns why the profile does not identify the parameter, or "" if it rises on both sides."""
    kind = fit.law.params[name]
    below = np.isfinite(lo) and (lo > 0 or not kind.log)
    if not below and not np.isfinite(hi):
        return f"its profile likelihood is flat from {least:.3g} to {most:.3g}"
    if not below:
        return f"its profile likelihood is flat below {hi:.3g}" + (
            ", so it cannot be distinguished from 0" if isinstance(kind, Linear) and kind.log else ""
        )
    if not np.isfinite(hi):
        return f"its profile likelihood is flat above {lo:.3g}"
    if isinstance(kind, Shape) and not kind.lo * (1 - 1e-9) <= value <= kind.hi * (1 + 1e-9) and kind.log:
        return f"the fitted value {value:.3g} is outside the search range {format_interval(kind.lo, kind.hi, 'g')}"
    return ""


def _blank(name: str, fit: Fit, reason: str) -> Profile:
    value = fit.params[name]
    return Profile(name, np.array([value]), np.zeros(1), 0.0, float("-inf"), float("inf"), reason)
