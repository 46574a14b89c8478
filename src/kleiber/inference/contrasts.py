"""Contrasts of groups of runs, estimated together: shared variance, pairing by seed, and joint intervals.

A contrast is a weighted sum of the means of groups, such as the mean of an arm less that of the plain arm. Contrasts of
one measure are a family: their groups share a prior for the variance, and their intervals hold together.

The F test of the seed, over groups that were run with equal seeds, decides whether differences are paired by seed.
A paired difference is free of what runs of one seed have in common, and has fewer degrees of freedom. It pays where the
seed explains part of the variance. It does by design where the groups go on from one base, or are measured on the same
runs; there is nothing to test then.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtrc

from kleiber.inference.joint import design_correlation, level_of_each, quantile
from kleiber.inference.moderation import Prior, estimate_prior, moderate, pooled_variance

Cell = Mapping[Hashable, float]  # the values of a group at one setting, by seed
Groups = Mapping[Hashable, Sequence[Cell]]  # cells of each group, such as an arm at rates near its best one
MODERATED, SEPARATE = "moderated", "separate"
LEAST_DF = 12  # of the variances of all groups, such as of two arms at three rates with three seeds
VARIANCES = (MODERATED, SEPARATE)
PAYS = 0.05  # p value of the F test below which differences are paired


def seed_effect(table: ArrayLike) -> tuple[float, float]:
    """Returns the F of the seed and its p value: mean square between seeds over that of the residuals.

    table  groups x seeds, complete

    (nan, 1) for fewer than two groups or seeds, and where nothing varies.
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2:
        return math.nan, 1.0
    groups, seeds = values.shape
    by_seed = values.mean(0) - values.mean()
    residuals = values - values.mean(1, keepdims=True) - by_seed
    between = groups * float((by_seed**2).sum()) / (seeds - 1)
    within = float((residuals**2).sum()) / ((seeds - 1) * (groups - 1))
    if within == 0:
        return (math.inf, 0.0) if between > 0 else (math.nan, 1.0)
    return between / within, float(fdtrc(seeds - 1, (seeds - 1) * (groups - 1), between / within))


def pays(table: ArrayLike) -> bool:
    """Returns whether the seed explains part of the variance, so that differences are better paired."""
    return seed_effect(table)[1] < PAYS


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the means of groups.

    weights  by group
    values   the result of each sample, such as a seed, that all groups have; their mean is the estimate
    """

    weights: Mapping[Hashable, float]
    values: Sequence[float]

    @property
    def size(self) -> float:
        """Returns the variance of a value in units of that of a group."""
        return sum(weight**2 for weight in self.weights.values())

    @property
    def is_difference(self) -> bool:
        """Returns whether what all groups have in common cancels."""
        return len(self.weights) > 1 and math.isclose(sum(self.weights.values()), 0, abs_tol=1e-9)


@dataclass(frozen=True)
class Spread:
    """The standard error of a contrast and what it rests on.

    error  standard error; nan without two samples
    df     degrees of freedom
    prior  to which the variance was shrunk; None for a variance of its own
    paired whether it is that of the differences within samples
    cells  number of cells whose variances the prior was estimated from
    added  degrees of freedom that a further sample of every group adds
    fixed  standard error from what all samples share, such as the items of a test, which further samples do not lower
    """

    error: float
    df: float
    prior: Prior | None
    paired: bool
    cells: int = 0
    added: float = 1.0
    fixed: float = 0.0

    def half_width(self, level: float) -> float:
        """Returns the half-width of the interval at a level of its own; nan without degrees of freedom."""
        if not self.df > 0:
            return math.nan
        return math.hypot(quantile(self.df, level) * self.error, quantile(math.inf, level) * self.fixed)

    def with_samples(self, count: int, further: int) -> Spread:
        """Returns the spread that `further` samples beside `count` would leave, with the variance as it is."""
        error = self.error * math.sqrt(count / (count + further))
        return replace(self, error=error, df=self.df + further * self.added)


@dataclass(frozen=True)
class Family:
    """The contrasts of a measure with their spreads.

    levels  level of the interval of each, with which all of them hold together
    """

    spreads: Sequence[Spread]
    levels: Sequence[float] = field(default_factory=tuple)


def estimate_family(
    contrasts: Sequence[Contrast], groups: Groups, level: float, variance: str = MODERATED, paired: bool = False
) -> Family:
    """Returns the standard errors of contrasts, and the level of each interval with which all hold together.

    contrasts  of one measure, each with at least two samples
    groups     cells of the groups, of those of the contrasts and of others of the study; without those of a contrast,
               its variance is that of its differences within samples
    level      at which the intervals hold together
    variance   moderated: shrunk to that of the other groups; separate: Student's t of each contrast, and Bonferroni
    paired     whether samples pair the groups by design, as those of one base do: variances of groups are then those
               of randomized blocks. Tested otherwise
    """
    if variance == SEPARATE:
        each = 1 - (1 - level) / max(len(contrasts), 1)
        return Family([separate_spread(contrast) for contrast in contrasts], [each] * len(contrasts))
    spreads: dict[int, Spread] = {}
    levels: dict[int, float] = {}
    kinds = [[at for at, each in enumerate(contrasts) if each.is_difference == kind] for kind in (False, True)]
    for kind in filter(None, kinds):
        part = [contrasts[at] for at in kind]
        residuals, share = within_samples(groups) if paired else (groups, 1.0)
        if paired and all(name in residuals for each in part for name in each.weights) and share > 0:
            shared = [replace(spread, paired=True) for spread in unpaired_spreads(part, residuals, share)]
        else:
            shared = paired_spreads(part) if is_paired(part, groups, paired) else unpaired_spreads(part, groups)
        error = (1 - level) * len(part) / len(contrasts)  # levels and differences share the error by their numbers
        each = joint_level(part, shared, 1 - error)
        spreads |= dict(zip(kind, shared, strict=True))
        levels |= dict.fromkeys(kind, each)
    return Family([spreads[at] for at in range(len(contrasts))], [levels[at] for at in range(len(contrasts))])


def separate_spread(contrast: Contrast) -> Spread:
    """Returns the standard error of a contrast from its own samples alone: that of Student's t."""
    variance, df = pooled_variance([contrast.values])
    return Spread(math.sqrt(variance / len(contrast.values)) if df else math.nan, df, None, True)


def is_paired(contrasts: Sequence[Contrast], groups: Groups, paired: bool) -> bool:
    """Returns whether contrasts are estimated within samples: by design, without cells, or where the F test says so.

    Also with few degrees of freedom, where the test and the variances of groups say too little: with three seeds of two
    groups .15 of the intervals at .9 were wrong in simulations, paired ones .10.

    A level, which is no difference, is paired with nothing: its samples are those of its one group.
    """
    names = {name for contrast in contrasts for name in contrast.weights}
    if paired or not all(any(len(cell) > 1 for cell in groups.get(name, ())) for name in names):
        return True
    if contrasts[0].is_difference and degrees(groups) < LEAST_DF:
        return True
    return contrasts[0].is_difference and pays(seed_table([groups[name] for name in groups]))


def degrees(groups: Groups) -> int:
    """Returns the degrees of freedom of the variances of all groups together."""
    return sum(pooled_variance([[*cell.values()] for cell in cells])[1] for cells in groups.values())


def seed_table(groups: Sequence[Sequence[Cell]]) -> NDArray:
    """Returns the mean over the cells of each group by seed, groups x seeds, of the seeds that all cells have."""
    seeds = set.intersection(*(set(cell) for cells in groups for cell in cells))
    order = [seed for seed in groups[0][0] if seed in seeds]
    return np.array([[np.mean([cell[seed] for cell in cells]) for seed in order] for cells in groups])


def paired_spreads(contrasts: Sequence[Contrast]) -> list[Spread]:
    """Returns the standard errors from differences within samples; each variance is shrunk to those of the others."""
    variances = [pooled_variance([contrast.values]) for contrast in contrasts]
    sizes = np.array([contrast.size for contrast in contrasts])
    s2, df = np.array([each for each, _ in variances]) / sizes, np.array([count for _, count in variances], dtype=float)
    prior = estimate_prior(s2, df)
    # Variances of contrasts with a group in common are correlated and have fewer degrees of freedom together.
    squares = float((correlation_of(contrasts) ** 2 * np.sqrt(np.outer(df, df))).sum())
    shrunk, moderated = moderate(s2, df, prior, float(df.sum() ** 2) / squares)
    counts = np.array([len(contrast.values) for contrast in contrasts])
    errors = np.sqrt(shrunk * sizes / counts)
    return [
        Spread(error, each, informative(prior), True, len(contrasts), added_df(each, prior, count))
        for error, each, count in zip(errors.tolist(), moderated.tolist(), counts.tolist(), strict=True)
    ]


def within_samples(groups: Groups) -> tuple[Groups, float]:
    """Returns the cells of groups without what all of a sample have in common, and the share of df that is left.

    The residuals of randomized blocks: cells and samples are main effects. The share is 0 where fewer than LEAST_DF
    degrees of freedom are left, which say too little; df = values - cells - samples + 1 for connected cells.
    """
    cells = [(name, cell) for name, each in groups.items() for cell in each if len(cell) > 1]
    samples = list(dict.fromkeys(sample for _, cell in cells for sample in cell))
    places = [(at, samples.index(sample)) for at, (_, cell) in enumerate(cells) for sample in cell]
    if not places:
        return {}, 0.0
    rows, columns = np.array(places).T
    design = np.column_stack([rows[:, None] == np.arange(len(cells)), columns[:, None] == np.arange(len(samples))])
    values = np.array([value for _, cell in cells for value in cell.values()])
    solved, _, rank, _ = np.linalg.lstsq(design.astype(float), values, rcond=None)
    left = len(values) - int(rank)
    if left < LEAST_DF:
        return {}, 0.0
    residuals = iter((values - design @ solved).tolist())
    blocks: dict[Hashable, list[Cell]] = {}
    for name, cell in cells:
        blocks.setdefault(name, []).append({sample: next(residuals) for sample in cell})
    return blocks, left / (len(values) - len(cells))


def unpaired_spreads(contrasts: Sequence[Contrast], groups: Groups, share: float = 1.0) -> list[Spread]:
    """Returns the standard errors from variances of groups, each of which is shrunk to those of the others.

    share  of the degrees of freedom that is left where effects of samples were removed from the cells
    """
    names = [name for name, cells in groups.items() if any(len(cell) > 1 for cell in cells)]
    variances = [pooled_variance([[*cell.values()] for cell in groups[name]]) for name in names]
    s2, df = np.array([each / share for each, _ in variances]), np.array([count * share for _, count in variances])
    prior = estimate_prior(s2, df)
    shrunk, moderated = moderate(s2, df, prior, float(df.sum()))
    by_name = {name: (float(a), float(b)) for name, a, b in zip(names, shrunk, moderated, strict=True)}
    cells = sum(len(groups[name]) for name in names)
    return [of_groups(contrast, by_name, prior, cells) for contrast in contrasts]


def of_groups(
    contrast: Contrast, variances: Mapping[Hashable, tuple[float, float]], prior: Prior, cells: int
) -> Spread:
    """Returns the standard error of a contrast of independent groups, with Satterthwaite's degrees of freedom.

    variances  variance and degrees of freedom of each group
    """
    count = len(contrast.values)
    parts = [(weight**2 * variances[name][0] / count, variances[name][1]) for name, weight in contrast.weights.items()]
    total = sum(part for part, _ in parts)
    least = min(each for _, each in parts)
    df = least if math.isinf(prior.df) or total == 0 else total**2 / sum(part**2 / each for part, each in parts)
    return Spread(math.sqrt(total), df, informative(prior), False, cells, added_df(df, prior, count))


def added_df(df: float, prior: Prior, count: int) -> float:
    """Returns the degrees of freedom that a further sample of every group adds; those of a finite prior stay."""
    return df / (count - 1) if math.isinf(prior.df) else max(1.0, (df - prior.df) / (count - 1))


def informative(prior: Prior) -> Prior | None:
    """Returns the prior, or None where it says nothing."""
    return prior if prior.df > 0 else None


def correlation_of(contrasts: Sequence[Contrast]) -> NDArray:
    """Returns the correlation of contrasts by the groups that they share, of groups with equal variances."""
    names = list(dict.fromkeys(name for contrast in contrasts for name in contrast.weights))
    weights = [[contrast.weights.get(name, 0.0) for name in names] for contrast in contrasts]
    return design_correlation(weights, np.ones(len(names)))


def joint_level(contrasts: Sequence[Contrast], spreads: Sequence[Spread], level: float) -> float:
    """Returns the level of each interval with which all hold together: the multivariate t of their design.

    Where they share one variance, its degrees of freedom are those of the t; otherwise each has its own quantile.
    """
    priors = [spread.prior for spread in spreads]
    shared = all(prior is not None and math.isinf(prior.df) for prior in priors)
    return level_of_each(correlation_of(contrasts), spreads[0].df if shared else math.inf, level)
