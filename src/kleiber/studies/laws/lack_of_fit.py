"""Lack of fit: F tests whether the residuals of a law exceed the noise of its runs, and where they do.

Independent rows have one stratum: the means of replicates against the law, with the variance of replicates as noise.
Branches of a trunk share noise, so their replicates are not independent. Trunks have two strata, in each of which a
trunk is one sample: their means against the law over sizes, and their slopes along D by size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.table import cells, cells_without
from kleiber.studies.laws.transients import least_squares_fit
from kleiber.types import Json

LEVEL = 0.01  # of all strata together, as for slopes in `asymptotics`; with few trunks the tests reject twice as often
FEWEST_SIZES = 3  # sizes with two trunks or more, below which misfit cannot be distinguished from noise
LEAST_DF = 0.5  # degrees of freedom of the misfit below which the law fits whatever the trunks are
REPLICATES, MEANS, SLOPES = "replicates", "means of trunks", "slopes of trunks along D"


@dataclass(frozen=True)
class Stratum:
    """An F test of one stratum: the degrees of freedom of the misfit and of the noise, and the p-value."""

    name: str
    statistic: float
    df_misfit: float
    df_noise: float
    p_value: float


@dataclass(frozen=True)
class LackOfFit:
    """The tests of all strata, and where the law misfits. Residuals are observed minus predicted.

    noise   standard deviation of replicates: of rows, or of the means of the trunks of a size
    misfit  standard deviation of the misfit of a cell beyond the noise, from the strata that show it; otherwise 0
    unit    "relative" to the loss, or the "target" for a fit on the linear scale
    cells   inputs, mean residual and number of runs of each cell
    slopes  inputs, mean slope of the residual per doubling of D and number of trunks of each size; empty without trunks
    """

    noise: float
    misfit: float
    unit: str
    strata: tuple[Stratum, ...]
    cells: list[Json]
    slopes: list[Json]

    @property
    def failed(self) -> list[Stratum]:
        """The strata that show lack of fit: LEVEL is divided equally among all strata."""
        return [stratum for stratum in self.strata if stratum.p_value < LEVEL / len(self.strata)]

    def least_run_sd(self, space: str) -> float:
        """Returns the standard deviation of noise and misfit on the scale of the residuals; 0 without lack of fit."""
        unit = np.log(10.0) if space == "log10" else 1.0
        return float(np.hypot(self.noise, self.misfit)) / unit if self.failed else 0.0

    def record(self) -> Json:
        """Returns the entry `lack_of_fit` of laws.json; only laws with lack of fit list cells and slopes."""
        entry = asdict(self) | {"strata": [asdict(stratum) for stratum in self.strata], "level": LEVEL}
        where = {name: entry.pop(name) for name in ("cells", "slopes")}
        return entry | {"found": bool(self.failed)} | (where if self.failed else {})


@dataclass(frozen=True)
class OneWay:
    """One-way analysis, by size, of a value of each trunk.

    between   weighted sum of squares of the means of the sizes
    noise     variance of a value of weight 1 between the trunks of a size
    repeated  number of sizes with two trunks or more
    weight    mean weight of a size
    """

    between: float
    noise: float
    num_sizes: int
    repeated: int
    df_noise: int
    weight: float

    def stratum(self, name: str, df: float) -> Stratum:
        """Returns the F test of the sizes with `df` degrees of freedom."""
        return _stratum(name, self.between / df, self.noise, df, self.df_noise)

    def misfit(self, df: float) -> float:
        """Returns the variance of the sizes beyond the noise."""
        return max(self.between / df - self.noise, 0.0) / self.weight


def lack_of_fit(model: NoiseModel) -> LackOfFit | None:
    """Tests the lack of fit of a law; None if the rows do not suffice, for the reason that `why_not_tested` gives."""
    if why_not_tested(model):
        return None
    return _of_trunks(model) if _has_branches(model) else _of_replicates(_on_runs(model.fit, model))


def why_not_tested(model: NoiseModel) -> str:
    """Returns why lack of fit cannot be tested, or ""."""
    runs, law = model.runs, model.fit.law
    if not _has_branches(model):
        cell = cells({name: runs.inputs[name] for name in law.inputs})
        if len(np.unique(cell)) == len(cell):
            return "no point was trained with two seeds"
        spare = len(np.unique(cell)) - model.fit.problem.num_params
        return "" if spare >= 1 else "the law has as many parameters as there are points"
    if "D" not in law.inputs:
        return "the branches of a trunk do not differ in the tokens D of the law"
    size = cells_without(runs.inputs, "D")
    pairs = np.unique(np.column_stack([runs.trunk, size]), axis=0)
    if len(pairs) > len(np.unique(runs.trunk)):
        return "the branches of a trunk differ in more than the tokens D"
    several = int((np.bincount(pairs[:, 1]) >= 2).sum())
    if several < FEWEST_SIZES:
        return f"only {several} sizes have two trunks or more, and {FEWEST_SIZES} are needed"
    return ""


def _has_branches(model: NoiseModel) -> bool:
    return model.clusters is not None and len(np.unique(model.runs.trunk)) < len(model.runs.trunk)


def _on_runs(fitted: Fit, model: NoiseModel) -> Fit:
    """Returns the same parameters on the single runs behind the rows of the fit."""
    return Fit(fitted.problem.on(model.runs.inputs, model.runs.target, model.runs.scale), fitted.theta)


def _of_replicates(single: Fit) -> LackOfFit:
    """Tests the means of replicates against the law."""
    member = cells({name: single.problem.inputs[name] for name in single.law.inputs})
    sizes = np.bincount(member)
    df_noise, df = len(member) - len(sizes), len(sizes) - single.problem.num_params
    residuals, weight = _residuals(single)
    means = _means(residuals, weight, member)
    noise = float((weight * (residuals - means[member]) ** 2).sum()) / df_noise
    squares = float((np.bincount(member, weight) * means**2).sum()) / df
    strata = (_stratum(REPLICATES, squares, noise, df, df_noise),)
    test = LackOfFit(float(np.sqrt(noise)), 0.0, _unit(single), strata, _cells(single), [])
    misfit = float(np.sqrt(max(squares - noise, 0.0) / np.mean(sizes)))
    return replace(test, misfit=misfit) if test.failed else test


def _of_trunks(model: NoiseModel) -> LackOfFit | None:
    """Tests the means and the slopes of trunks in the residuals of a least-squares fit.

    The residuals of cells and the slopes of sizes are those of the law as it was fitted, which predictions use.
    """
    least, law = least_squares_fit(model.fit), _on_runs(model.fit, model)
    single, size = _on_runs(least, model), cells_without(model.runs.inputs, "D")
    _, first, trunk = np.unique(model.runs.trunk, return_index=True, return_inverse=True)
    residuals, weight = _residuals(single)
    doublings = np.log2(model.runs.inputs["D"])
    centred = doublings - _means(doublings, weight, trunk)[trunk]
    spread = np.bincount(trunk, weight * centred**2).astype(np.float64)
    slopes = _slopes(residuals, weight, centred, trunk)
    means = _one_way(_means(residuals, weight, trunk), np.ones(len(spread)), size[first])
    sloped = spread > 0
    overall = float(np.average(slopes, weights=spread)) if sloped.any() else 0.0
    tilts = _one_way(slopes[sloped] - overall, spread[sloped], size[first][sloped])
    tests = [
        (MEANS, means, means.num_sizes - _params_of_sizes(least), 1.0),
        (SLOPES, tilts, tilts.num_sizes - 1.0, float(np.mean(centred**2))),
    ]
    tests = [entry for entry in tests if entry[2] >= LEAST_DF and entry[1].repeated >= FEWEST_SIZES]
    if not tests:
        return None
    strata = tuple(table.stratum(name, df) for name, table, df, _ in tests)
    by_size = _slopes_by_size(law, _slopes(*_residuals(law), centred, trunk), spread, first, size[first])
    test = LackOfFit(float(np.sqrt(means.noise)), 0.0, _unit(law), strata, _cells(law), by_size)
    failed = {stratum.name for stratum in test.failed}
    variance = sum(table.misfit(df) * leverage for name, table, df, leverage in tests if name in failed)
    return replace(test, misfit=float(np.sqrt(variance)))


def _slopes(residuals: Array, weight: Array, centred: Array, trunk: NDArray[np.intp]) -> Array:
    """Returns the slope of the residuals of each trunk over centered doublings of its tokens; 0 without branches."""
    spread = np.bincount(trunk, weight * centred**2)
    return np.bincount(trunk, weight * centred * residuals) / np.where(spread > 0, spread, 1.0)


def _one_way(values: Array, weight: Array, size: NDArray[np.intp]) -> OneWay:
    """Analyzes a value of each trunk by its size."""
    _, size = np.unique(size, return_inverse=True)
    means, weights = _means(values, weight, size), np.bincount(size, weight)
    df = len(values) - len(means)
    within = float((weight * (values - means[size]) ** 2).sum())
    repeated, between = int((np.bincount(size) >= 2).sum()), float((weights * means**2).sum())
    return OneWay(between, within / max(df, 1), len(means), repeated, df, float(weights.mean()))


def _params_of_sizes(least: Fit) -> float:
    """Returns how many parameters the differences between sizes determine: the trace of the projection on sizes."""
    _, size = np.unique(cells_without(least.problem.inputs, "D"), return_inverse=True)
    jacobian = least.jacobian / np.maximum(np.linalg.norm(least.jacobian, axis=0), 1e-300)
    basis, values, _ = np.linalg.svd(jacobian, full_matrices=False)
    basis = basis[:, values > 1e-9 * values.max()]
    rows = np.bincount(size).astype(np.float64)
    return float(sum((np.bincount(size, column) ** 2 / rows).sum() for column in basis.T))


def _residuals(single: Fit) -> tuple[Array, Array]:
    """Returns observed minus predicted, relative to the loss unless the scale is linear, and the weight of each run."""
    scale = np.ones(single.problem.num_rows) if single.problem.scale is None else single.problem.scale
    unit = np.log(10.0) if single.problem.space == "log10" else 1.0
    return -single.residuals * scale * unit, scale**-2.0


def _unit(single: Fit) -> str:
    return "target" if single.problem.space == "linear" else "relative"


def _means(values: Array, weight: Array, member: NDArray[np.intp]) -> Array:
    return np.bincount(member, weight * values) / np.bincount(member, weight)


def _stratum(name: str, squares: float, noise: float, df_misfit: float, df_noise: float) -> Stratum:
    statistic = squares / max(noise, 1e-300)
    return Stratum(name, statistic, df_misfit, float(df_noise), float(fdtrc(df_misfit, df_noise, statistic)))


def _cells(single: Fit) -> list[Json]:
    """Returns the inputs, the mean residual and the number of runs of each cell."""
    inputs = {name: single.problem.inputs[name] for name in single.law.inputs}
    member = cells(inputs)
    means, first = _means(*_residuals(single), member), np.unique(member, return_index=True)[1]
    return [
        {name: float(column[row]) for name, column in inputs.items()} | {"residual": float(mean), "runs": int(runs)}
        for row, mean, runs in zip(first, means, np.bincount(member), strict=True)
    ]


def _slopes_by_size(
    single: Fit, slopes: Array, spread: Array, first: NDArray[np.intp], size: NDArray[np.intp]
) -> list[Json]:
    """Returns the inputs but D, the mean slope and the number of trunks of each size that has branches.

    first, size  the first row and the size of each trunk
    """
    rows = []
    for number in np.unique(size[spread > 0]):
        trunks = np.flatnonzero((size == number) & (spread > 0))
        at = {name: float(single.problem.inputs[name][first[trunks[0]]]) for name in single.law.inputs if name != "D"}
        slope = float(np.average(slopes[trunks], weights=spread[trunks]))
        rows.append(at | {"slope": slope, "trunks": len(trunks)})
    return rows
