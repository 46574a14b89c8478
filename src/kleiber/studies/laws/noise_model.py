"""A fitted law with the noise of its runs: means over seeds, and the variance between and within trunks.

The branches of a trunk share noise, so the rows of a ladder are not independent samples. Trunks of the same size are
averaged over seeds before the fit. The variances between and within trunks are estimated from the single runs, and
every interval is computed from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import fdtrc, fdtri

from kleiber.studies.laws.fit import Fit, fit
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.problem import Pooled, pool, relative_sigma, scale_of, trunks
from kleiber.studies.laws.table import Table, cells, cells_without
from kleiber.studies.laws.uncertainty import Draws, Profile, bootstrap, interval, profiles, strata_of
from kleiber.studies.laws.variance_components import Layout, TrunkNoise, VarianceComponents, estimate, trunk_noise

EXTRA = ("C", "Nnoemb", "Cexact")
MISFIT = 0.05  # level of the test whether sizes scatter more than seeds explain; if so, the sizes are the samples


@dataclass(frozen=True)
class Runs:
    """The rows of single runs, before averaging over seeds.

    row    index of the fitted row into which each is averaged
    scale  divisor of each residual, if the rows have standard errors (`problem.relative_sigma`)
    """

    inputs: dict[str, Array]
    target: Array
    trunk: NDArray
    row: NDArray
    scale: Array | None = None

    def of(self, rows: NDArray) -> "Runs":
        """Returns the runs behind some rows of the fit (a mask or positions), with `row` renumbered."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else np.asarray(rows)
        number = np.full(int(self.row.max()) + 1, -1)
        number[positions] = np.arange(len(positions))
        kept = number[self.row] >= 0
        inputs = {name: column[kept] for name, column in self.inputs.items()}
        scale = None if self.scale is None else self.scale[kept]
        return Runs(inputs, self.target[kept], self.trunk[kept], number[self.row[kept]], scale)


@dataclass(frozen=True)
class NoiseModel:
    """A fit, the single runs behind its rows, and their noise.

    layout    which rows of the fit share a trunk
    clusters  the trunk, or group of averaged trunks, of each row; None if rows are independent
    columns   compute and other columns, by role, (rows,) each
    seeds     noise between and within trunks of equal size; None if no size has two seeds
    averaged  whether the rows are means over seeds
    pooled    number of runs that were pooled into the rows (`problem.pool`); None for a table of few rows
    """

    fit: Fit
    runs: Runs
    layout: Layout
    clusters: NDArray | None = None
    columns: dict[str, Array] = field(default_factory=dict)
    seeds: TrunkNoise | None = None
    averaged: bool = False
    pooled: int | None = None

    @classmethod
    def of(
        cls, fitted: Fit, clusters: NDArray | None = None, columns: Mapping[str, Array] | None = None
    ) -> "NoiseModel":
        """Builds the model of a fit whose rows are single runs, independent or in clusters."""
        problem = fitted.problem
        rows = np.arange(problem.num_rows)
        groups = rows if clusters is None else clusters
        layout = Layout(groups, np.ones(len(rows)), _log_size(problem.inputs))
        runs = Runs(dict(problem.inputs), problem.target, groups, rows, problem.scale)
        return cls(fitted, runs, layout, clusters, dict(columns or {}))

    @property
    def compute(self) -> Array | None:
        """C of each row; None if some row has no C."""
        compute = self.columns.get("C")
        return compute if compute is not None and np.isfinite(compute).all() else None

    @property
    def along(self) -> tuple[str, Array] | None:
        """Name and values of the column that backtests cut: compute C, or size N if C is unknown; None without both."""
        if self.compute is not None:
            return "C", self.compute
        sizes = self.fit.problem.inputs.get("N")
        return None if sizes is None else ("N", sizes)

    def run_scale(self, rows: NDArray) -> Array | None:
        """Returns the noise of some rows in units of that of a run, as `Draws.predict_runs` takes it; None for 1."""
        scale = self.fit.problem.rows(rows).scale
        return scale if self.pooled is None or scale is None else scale / np.sqrt(self.layout.averaged[rows])

    def on_rows(self, fitted: Fit, rows: NDArray) -> "NoiseModel":
        """Returns the model of a fit to some of the rows (a mask or positions)."""
        clusters = None if self.clusters is None else self.clusters[rows]
        return replace(self, fit=fitted, runs=self.runs.of(rows), layout=self.layout.rows(rows), clusters=clusters)

    def components(self) -> VarianceComponents | None:
        """Estimates the variance components from the single runs; None without degrees of freedom.

        If sizes scatter more than their seeds explain, all seeds of a size share a misfit of the law, and the
        components are estimated from the averaged rows.
        """
        fitted, runs, layout = self.fit, self.runs, self.layout
        single = Fit(fitted.problem.on(runs.inputs, runs.target, runs.scale), fitted.theta)
        fine = estimate(single.jacobian, -single.residuals, runs.trunk, _log_size(runs.inputs))
        if fine is None or self.seeds is None or self.clusters is None:
            return fine
        coarse = estimate(fitted.jacobian, -fitted.residuals, layout.trunk, layout.log_size)
        if coarse is None or not coarse.between > 0:
            return fine
        trunks = 1 / float(np.mean(1 / layout.averaged))
        expected = (self.seeds.within**2 + coarse.rows_per_trunk * self.seeds.between**2) / trunks
        ratio = (coarse.within + coarse.rows_per_trunk * coarse.between) / max(expected, 1e-300)
        if fdtrc(coarse.df_between, self.seeds.df, ratio) >= MISFIT:
            return fine
        return replace(coarse, between=coarse.between * trunks, within=coarse.within * trunks)

    def draws(self, count: int, seed: int) -> Draws | None:
        """Refits `count` resampled tables; None if the noise is unknown."""
        components = self.components() if count else None
        if components is None:
            return None
        inputs = self.fit.problem.inputs
        strata = strata_of(inputs["N"]) if "N" in inputs else None
        return bootstrap(self.fit, count, seed, components, self.layout, strata, self.clusters)

    def profiles(self, draws: Draws | None, level: float) -> dict[str, Profile]:
        """Returns the profiles of all parameters, with thresholds that match the interval widths implied by the noise.

        Bootstrap refits can only increase these widths: along a flat profile, refits stay near their starting point and
        so give intervals that are too narrow.
        """
        widths = self._half_widths(level)
        if draws is not None:
            spare = self.fit.problem.num_rows - self.fit.problem.num_params
            least = widths
            if least is None:  # those of a linear fit to independent rows
                half = np.sqrt(fdtri(1, max(spare, 1), level) * np.diag(self.fit.covariance()[0]))
                least = dict(zip(self.fit.kept, half.tolist(), strict=True))
            with np.errstate(divide="ignore"):
                lo, hi = interval(self.fit.problem.coordinates(draws.values), level)
            half_widths = zip(self.fit.kept, ((hi - lo) / 2).tolist(), strict=True)
            widths = {name: max(width, least[name]) for name, width in half_widths}
        return profiles(self.fit, level, widths)

    def _half_widths(self, level: float) -> dict[str, float] | None:
        """Returns the half-width of each parameter's interval from the variance components, in solver coordinates.

        It is the half-width of the profile, multiplied by how much shared noise inflates the standard error of a linear
        fit. None if rows are independent and equally noisy, since the factor is then 1.
        """
        fitted, noise = self.fit, self.components()
        if noise is None or (self.clusters is None and noise.slope == 0):
            return None
        influence = np.linalg.pinv(fitted.problem.exact_jacobian(fitted.theta[None])[0])
        variance, df = noise.variance(influence, self.layout)
        spread = np.diag(fitted.covariance()[0])
        independent = np.maximum((influence**2).sum(1) * fitted.noise**2, 1e-300)
        widths = np.sqrt(fdtri(1, df, level) * spread * variance / independent)
        return dict(zip(fitted.kept, widths.tolist(), strict=True))


def fit_with_noise(
    table: Table, law: Law, loss_fn: str | None, delta: float, space: str | None, cluster: str | None
) -> NoiseModel:
    """Fits a table, pooled if it is large; if `cluster` names the trunk of each row, seeds of a size are averaged."""
    pooled = pool(table, law, space or law.space, cluster)
    model = _fit_rows(table if pooled is None else pooled.table, law, loss_fn, delta, space, cluster)
    return model if pooled is None else _with_runs(model, table, pooled)


def _with_runs(model: NoiseModel, table: Table, pooled: Pooled) -> NoiseModel:
    """Returns the model of pooled rows with the runs of `table` behind them, whose scatter is the noise of a run.

    A pooled row is worth at most as many runs as were pooled into it, and fewer if the rows scatter more than that:
    then the law does not hold exactly, and more runs of the same cells do not help.
    """
    fitted, scale = model.fit, scale_of(table, model.fit.problem.space)
    runs = Runs(table.inputs(fitted.law), table.target, pooled.trunk, model.runs.row[pooled.cell], scale)
    model = replace(model, runs=runs, pooled=len(table), seeds=None)
    noise, most = model.components(), model.layout.averaged * pooled.weight
    if noise is not None and fitted.noise > 0:
        most = np.clip((noise.between + noise.within) / fitted.noise**2, 1.0, most)
    return replace(model, layout=replace(model.layout, averaged=most))


def _fit_rows(
    table: Table, law: Law, loss_fn: str | None, delta: float, space: str | None, cluster: str | None
) -> NoiseModel:
    """Fits the rows of a table, after averaging over the seeds of a size if there are clusters."""
    inputs, loss = table.inputs(law), table.target
    trunk, row, clusters = np.arange(len(loss)), np.arange(len(loss)), None
    columns = {name: table.columns[name] for name in EXTRA if name in table.columns}
    seeds, averaged, means, mean_loss, counts = None, False, inputs, loss, np.ones(len(loss))
    if cluster:
        clusters = trunk = trunks(table, cluster)
        if "D" in inputs and len(np.unique(cells(inputs))) < len(loss) and (loss > 0).all():
            averaged = True
            seeds = trunk_noise(inputs, loss, trunk)
            means, mean_loss, clusters = two_way_means(inputs, loss, trunk)
            row, counts = _averaged_rows(inputs, trunk, means, clusters)
            _, first = np.unique(row, return_index=True)
            columns = {name: column[first] for name, column in columns.items()}
    scale = run_scale = None
    if table.sigma is not None:
        run_scale = scale_of(table, space or law.space)
        squares = np.bincount(row, table.sigma**2)
        sigma = np.sqrt(squares) / np.bincount(row)
        scale = relative_sigma(sigma, mean_loss, space or law.space)
        # Scaled means have equal noise, whatever the seeds behind them: `counts` converts a run's noise into theirs.
        counts = np.full(len(mean_loss), float(np.mean(table.sigma**2) / np.mean(sigma**2)))
    fitted = fit(law, means, mean_loss, loss_fn, delta, space, scale)
    groups = np.arange(len(mean_loss)) if clusters is None else clusters
    layout = Layout(groups, counts, _log_size(means))
    runs = Runs(dict(inputs), loss, trunk, row, run_scale)
    return NoiseModel(fitted, runs, layout, clusters, columns, seeds, averaged)


def _log_size(inputs: Mapping[str, Array]) -> Array:
    """Returns log N of each row; zeros for a law without N, since the noise then has no trend over size."""
    rows = len(next(iter(inputs.values())))
    return np.log(inputs["N"]) if "N" in inputs and (inputs["N"] > 0).all() else np.zeros(rows)


def _averaged_rows(
    inputs: dict[str, Array], trunk: NDArray, means: dict[str, Array], groups: NDArray
) -> tuple[NDArray, Array]:
    """Returns the index of the averaged row of each row, and the number of trunks averaged into each averaged row."""
    head = len(groups)
    cell = cells({name: np.concatenate([means[name], inputs[name]]) for name in means})
    number = np.full(int(cell.max()) + 1, -1)
    number[cell[:head]] = np.arange(head)
    row = number[cell[head:]]
    counts = {group: len(np.unique(trunk[groups[row] == group])) for group in np.unique(groups)}
    return row, np.array([counts[group] for group in groups], dtype=np.float64)


def two_way_means(
    inputs: Mapping[str, Array], loss: Array, clusters: NDArray
) -> tuple[dict[str, Array], Array, NDArray]:  # fmt: skip
    """Averages over the seeds of a size with the model ln L = a_D + u_seed: the mean of a_D + u_seed.

    A plain mean would be biased at values of D that only some seeds reached. Rows of a size are equal in every input
    but D. Trunks of a size that are not linked by shared values of D, directly or through other trunks, cannot be
    compared and are averaged separately. Returns the averaged inputs, the losses, and the group of trunks of each row;
    the rows of a group share the noise of its trunks and are one cluster.
    """
    picked: list[int] = []
    means: list[float] = []
    groups: list[int] = []
    for group, rows in enumerate(_linked_rows(cells_without(inputs, "D"), inputs["D"], clusters)):
        _, first, at = np.unique(cells({"D": inputs["D"][rows]}), return_index=True, return_inverse=True)
        _, seed = np.unique(clusters[rows], return_inverse=True)
        design = np.column_stack([np.eye(len(first))[at], np.eye(int(seed.max()) + 1)[seed]])
        effects = np.linalg.lstsq(design, np.log(loss[rows]), rcond=None)[0]
        means += list(effects[: len(first)] + effects[len(first) :].mean())
        groups += [group] * len(first)
        picked += list(rows[first])
    return {name: column[picked] for name, column in inputs.items()}, np.exp(np.array(means)), np.array(groups)


def _linked_rows(size: NDArray, values: Array, clusters: NDArray) -> list[NDArray[np.intp]]:
    """Returns the rows of each group of trunks of equal size that are linked by shared values."""
    groups = []
    for number in np.unique(size):
        rows = np.flatnonzero(size == number)
        at, (_, trunk) = cells({"": values[rows]}), np.unique(clusters[rows], return_inverse=True)
        links = coo_array((np.ones(len(rows)), (trunk, trunk.max() + 1 + at)), shape=(trunk.max() + at.max() + 2,) * 2)
        _, component = connected_components(links, directed=False)
        groups += [rows[component[trunk] == number_of_group] for number_of_group in np.unique(component[trunk])]
    return groups
