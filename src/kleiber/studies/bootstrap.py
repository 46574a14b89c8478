"""Uncertainty by refitting: pairs within strata, parametric noise for small tables, noise shared within a trunk.

One call refits every draw (`solve.descend`), warm-started at the fit. Intervals are percentiles of predictions and of
derived quantities; those of A and B mean little, since they trade off. What no resampling covers is the law's misfit:
read the backtest beside the interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.fit import Fit
from kleiber.studies.law import Array
from kleiber.studies.newton import finish
from kleiber.studies.solve import convert, descend

SMALL = 25  # rows below which pairs leave too few distinct rows
ENOUGH_CLUSTERS = 20  # trunks below which resampling whole trunks is anti-conservative


@dataclass(frozen=True)
class Draws:
    """Refitted parameters (draws, params), how they were drawn, and the noise of one new run on the fit's scale."""

    fit: Fit
    values: Array
    kind: str
    noise: Array
    correlation: float = 0.0

    def predict(self, inputs: Mapping[str, Array]) -> Array:
        """The target at new inputs by draw, (draws, rows)."""
        return self.fit.law.predict(inputs, self.values)

    def predict_runs(self, inputs: Mapping[str, Array], seed: int = 0, scale: Array | None = None) -> Array:
        """Like `predict` for one new run: the law's draw plus one run's noise, times the row's `scale` where known."""
        answer = self.fit.law.evaluate(inputs, self.values)
        space = self.fit.problem.space
        rng = np.random.default_rng([seed, 1])
        noisy = convert(answer, self.fit.law.returns, space) + self.noise[:, None] * (
            rng.normal(size=answer.shape) * (1.0 if scale is None else scale)
        )
        return {"log": np.exp, "log10": lambda a: 10.0**a, "linear": np.asarray}[space](noisy)

    def derive(self) -> dict[str, Array]:
        return self.fit.law.derive(self.values)


def interval(samples: Array, level: float = 0.9) -> tuple[Array, Array]:
    """Central percentile interval along the first axis; nan draws count as failed and are left out."""
    with np.errstate(all="ignore"):
        lo, hi = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(lo), np.asarray(hi)


def bootstrap(
    fit: Fit, count: int = 1000, seed: int = 0, strata: NDArray | None = None, clusters: NDArray | None = None,
    kind: str | None = None, trunk_sd: Array | None = None,
) -> Draws:  # fmt: skip
    """Refit `count` resamples; the same seed gives the same draws.

    `kind`: pairs (rows, within `strata`, when there are 25 or more), parametric (Gaussian noise of the residuals' sd
    sqrt(RSS/(n-p)) added to the fit, whose intervals then follow the t spread), clusters (whole trunks, from 20 of
    them). With fewer `clusters` the parametric noise is correlated within each by the residuals' own correlation; with
    `trunk_sd` (by row) measured between seeds, that much is added, alike within a cluster: a fit's size term absorbs
    what the branches of a trunk share, so residuals do not show it.
    """
    num_rows = fit.problem.num_rows
    if kind is None:
        few = clusters is not None and len(np.unique(clusters)) < ENOUGH_CLUSTERS
        kind = "parametric" if num_rows < SMALL or few else "pairs" if clusters is None else "clusters"
    rng = np.random.default_rng(seed)
    starts = np.repeat(fit.theta[None], count, axis=0)
    targets = weights = None
    noise, correlation = np.full(count, fit.noise), 0.0
    if kind == "parametric":
        if not np.isfinite(fit.noise):
            raise ValueError(
                f"{num_rows} rows for {fit.problem.num_params} parameters leave no residual to measure noise by"
            )
        measured = trunk_sd is not None and clusters is not None
        correlation = 0.0 if clusters is None or measured else within_cluster(fit.residuals, clusters)
        spare = num_rows - fit.problem.num_params
        spread = fit.noise * np.sqrt(spare / rng.chisquare(spare, count))  # the sd is itself uncertain: t, not normal
        targets = (fit.residuals + fit.problem.observed)[None] + spread[:, None] * shared_noise(
            rng, count, num_rows, clusters, correlation
        )
        noise = spread
        if trunk_sd is not None and clusters is not None:
            targets = targets + trunk_sd * shared_noise(rng, count, num_rows, clusters, 1.0)
            noise = np.sqrt(spread**2 + float(np.mean(trunk_sd**2)))
            correlation = float(np.mean(trunk_sd**2) / (np.mean(trunk_sd**2) + fit.noise**2))
    elif kind == "pairs":
        weights = _counts(rng, count, np.zeros(num_rows) if strata is None else strata)
    elif kind == "clusters" and clusters is not None:
        names, member = np.unique(clusters, return_inverse=True)
        weights = _counts(rng, count, np.zeros(len(names)))[:, member]
    else:
        raise ValueError(f"bootstrap kind {kind!r}: pairs, parametric, or clusters with a cluster column")
    theta, _ = descend(fit.problem, starts, targets, weights, rounds=50, tolerance=1e-6)
    theta, value = finish(fit.problem, theta, targets, weights)
    good = np.isfinite(value)
    label = f"{kind} (correlation {correlation:.2f} within clusters)" if correlation else kind
    return Draws(fit, fit.problem.values(theta[good]), label, noise[good], correlation)


def within_cluster(residuals: Array, clusters: NDArray) -> float:
    """Intraclass correlation of the residuals, (MSB - MSW) / (MSB + (m - 1) MSW), clipped to [0, .95].

    The one-way ANOVA estimator with m the mean cluster size adjusted for imbalance.
    """
    names, member = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(member).astype(np.float64)
    if len(names) < 2 or sizes.max() < 2:
        return 0.0
    means = np.bincount(member, residuals) / sizes
    between = (sizes * (means - residuals.mean()) ** 2).sum() / (len(names) - 1)
    inside = ((residuals - means[member]) ** 2).sum() / max(len(residuals) - len(names), 1)
    m = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(names) - 1)
    return float(np.clip((between - inside) / max(between + (m - 1) * inside, 1e-300), 0.0, 0.95))


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


def shared_noise(
    rng: np.random.Generator, count: int, rows: int, clusters: NDArray | None, correlation: float
) -> Array:
    """Unit noise, of which a share `correlation` of the variance is common to a cluster."""
    own = rng.normal(size=(count, rows))
    if clusters is None or not correlation:
        return own
    names, member = np.unique(clusters, return_inverse=True)
    shared = rng.normal(size=(count, len(names)))[:, member]
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
