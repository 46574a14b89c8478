"""Uncertainty by refitting resampled tables: trunks or rows drawn again, or noise with the variances measured.

One call refits every draw (`solve.descend`), from the fit and from a point along its least certain direction.
Intervals are percentiles of parameters, predictions and derived quantities. What no resampling covers is the law's
misfit: `extrapolation` adds it to predictions beyond the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.initial_guess import finish
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.solve import convert, descend, from_space
from kleiber.studies.laws.variance_components import Layout, VarianceComponents

FEW_ROWS = 25  # independent rows below which pairs leave too few distinct ones
FEW_CLUSTERS = 20  # trunks below which resampling whole trunks is anti-conservative
APART = 2.0  # standard deviations from the fit at which the second start of a refit lies
METHODS = ("cluster t", "cluster bootstrap", "bootstrap")


@dataclass(frozen=True)
class Draws:
    """Refitted parameters (draws, params), how they were drawn, and the noise that they were drawn with.

    method  "cluster t": variance components of trunks with their degrees of freedom; "cluster bootstrap": whole trunks
            resampled; "bootstrap": rows resampled, or noise added to the fit where rows are few
    noise   variance components of single runs
    residual_sd  of the rows of the fit, which holds misfit and outliers as well; a new run scatters by no less
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
        """Like `predict` for one new run: the law's draw plus one run's noise, times the row's `scale` where known."""
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
    """Central percentile interval along the first axis; nan draws count as failed and are left out."""
    with np.errstate(all="ignore"):
        lo, hi = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(lo), np.asarray(hi)


def bootstrap(
    fit: Fit, count: int, seed: int, noise: VarianceComponents, layout: Layout, strata: NDArray | None = None,
    clusters: NDArray | None = None, method: str | None = None,
) -> Draws:  # fmt: skip
    """Refit `count` resampled tables; the same seed gives the same draws.

    `method` None chooses by what was found to cover (benchmarks/coverage.py): whole `clusters` resampled from 20 of
    them, rows resampled within `strata` from 25 independent ones, else noise drawn from the variance components and
    added to the fit ("cluster t" with clusters). On 300 ladders of 6 to 14 trunks (benchmarks/resampling.py) that is
    the narrowest whose nominal 90 % intervals of exponents cover .86 to .94 on average: .87 at 1.10 x the width of an
    oracle, pairs .88 at 1.21 x, pairs + t .94 at 1.52 x, CR2 + t .85 at .95 x, wild + t .83 at .93 x.
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
        raise ValueError(f"bootstrap method {method!r}: one of {', '.join(METHODS)}")
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
    """Points to either side of the fit along the direction in which it is least certain, (count, params)."""
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
