"""A fitted table with the noise of its runs: seeds averaged within a size, the variance of trunks and rows measured.

With branches of trunks in the table the rows are no independent samples. Seeds of one size are averaged before the fit;
the variances between and within trunks are measured on the single runs, and every interval is drawn from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from kleiber.studies.laws.bootstrap import Draws, bootstrap, strata_of
from kleiber.studies.laws.filters import column_of
from kleiber.studies.laws.fit import Fit, fit, refit
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.replicates import TrunkNoise, cells, trunk_noise, two_way_means
from kleiber.studies.laws.solve import relative_sigma
from kleiber.studies.laws.table import Table
from kleiber.studies.laws.variance_components import Layout, VarianceComponents, estimate

EXTRA = ("C", "Nnoemb", "Cexact")
MISFIT = 0.05  # level of the test by which sizes that scatter more than their seeds count as the samples


@dataclass(frozen=True)
class Runs:
    """The single rows behind the rows of a fit.

    row    the row of the fit that each is averaged into
    scale  of its residual, where standard errors are known (`solve.relative_sigma`)
    """

    inputs: dict[str, Array]
    target: Array
    trunk: NDArray
    row: NDArray
    scale: Array | None = None

    def of(self, rows: NDArray) -> "Runs":
        """Those behind some rows of the fit (a mask or positions), which are renumbered."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else np.asarray(rows)
        number = np.full(int(self.row.max()) + 1, -1)
        number[positions] = np.arange(len(positions))
        kept = number[self.row] >= 0
        inputs = {name: column[kept] for name, column in self.inputs.items()}
        scale = None if self.scale is None else self.scale[kept]
        return Runs(inputs, self.target[kept], self.trunk[kept], number[self.row[kept]], scale)


@dataclass(frozen=True)
class NoiseModel:
    """A fit, the runs behind its rows, and what is known of their noise.

    layout    how the rows of the fit share trunks
    clusters  the trunk, or size, of each row; None where rows are independent
    columns   compute and other columns by row
    seeds     noise between and within trunks of equal size; None without two seeds of one
    averaged  whether rows are means over seeds
    """

    fit: Fit
    runs: Runs
    layout: Layout
    clusters: NDArray | None = None
    columns: dict[str, Array] = field(default_factory=dict)
    seeds: TrunkNoise | None = None
    averaged: bool = False

    @classmethod
    def of(
        cls, found: Fit, clusters: NDArray | None = None, columns: Mapping[str, Array] | None = None
    ) -> "NoiseModel":
        """The model of a fit whose rows are single runs, independent or in clusters."""
        problem = found.problem
        rows = np.arange(problem.num_rows)
        groups = rows if clusters is None else clusters
        layout = Layout(groups, np.ones(len(rows)), _log_size(problem.inputs))
        runs = Runs(dict(problem.inputs), problem.target, groups, rows, problem.scale)
        return cls(found, runs, layout, clusters, dict(columns or {}))

    @property
    def compute(self) -> Array | None:
        known = self.columns.get("C")
        return known if known is not None and np.isfinite(known).all() else None

    @property
    def along(self) -> tuple[str, Array] | None:
        """What a backtest cuts by, with its name: compute C, else size N where the law has it; None for neither."""
        if self.compute is not None:
            return "C", self.compute
        sizes = self.fit.problem.inputs.get("N")
        return None if sizes is None else ("N", sizes)

    def components(self, found: Fit | None = None, rows: NDArray | None = None) -> VarianceComponents | None:
        """Variance components of the fit, or of `found`, a fit of some of the `rows`.

        On the single runs; on the averaged rows where sizes scatter more than their seeds say, since the law's misfit
        is then shared by all seeds of a size and the size is the sample.
        """
        found = self.fit if found is None else found
        runs = self.runs if rows is None else self.runs.of(rows)
        layout = self.layout if rows is None else self.layout.rows(rows)
        problem = replace(found.problem, inputs=runs.inputs, target=runs.target, scale=runs.scale)
        jacobian = np.nan_to_num(problem.jacobian(found.theta[None])[0])
        residuals = problem.observed - problem.predict(found.theta[None])[0]
        fine = estimate(jacobian, residuals, runs.trunk, _log_size(runs.inputs))
        if fine is None or self.seeds is None or self.clusters is None:
            return fine
        mean_jacobian = np.nan_to_num(found.problem.jacobian(found.theta[None])[0])
        coarse = estimate(mean_jacobian, -found.residuals, layout.trunk, layout.log_size)
        if coarse is None or not coarse.between > 0:
            return fine
        trunks = 1 / float(np.mean(1 / layout.averaged))
        expected = (self.seeds.within**2 + coarse.rows_per_trunk * self.seeds.between**2) / trunks
        ratio = (coarse.within + coarse.rows_per_trunk * coarse.between) / max(expected, 1e-300)
        if fdtrc(coarse.df_between, self.seeds.df, ratio) >= MISFIT:
            return fine
        return replace(coarse, between=coarse.between * trunks, within=coarse.within * trunks)

    def draws(self, count: int, seed: int, found: Fit | None = None, rows: NDArray | None = None) -> Draws | None:
        """Refits of `count` resampled tables for the fit, or for `found`, a fit of some of the `rows`; None when
        nothing measures noise."""
        found = self.fit if found is None else found
        if count < 1:
            return None
        components = self.components(found, rows)
        if components is None:
            return None
        layout = self.layout if rows is None else self.layout.rows(rows)
        clusters = None if self.clusters is None else self.clusters if rows is None else self.clusters[rows]
        strata = strata_of(found.problem.inputs["N"]) if "N" in found.problem.inputs else None
        return bootstrap(found, count, seed, components, layout, strata, clusters)

    def on(self, rows: NDArray) -> Fit:
        """The same law fitted to some rows."""
        return refit(self.fit, rows)


def fit_with_noise(
    table: Table, law: Law, loss_fn: str | None, delta: float, space: str | None, cluster: str | None
) -> NoiseModel:
    """Fits the table; with a column naming the trunk of each row, its seeds are averaged within a size first."""
    inputs, loss = table.inputs(law), table.target
    trunk, row, clusters = np.arange(len(loss)), np.arange(len(loss)), None
    columns = {name: table.columns[name] for name in EXTRA if name in table.columns}
    seeds, averaged, means, mean_loss, counts = None, False, inputs, loss, np.ones(len(loss))
    if cluster:
        names = table.frame[column_of(table.frame, cluster, "--cluster")]
        _, trunk = np.unique(names.astype(str).to_numpy(), return_inverse=True)
        clusters = trunk
        if "D" in inputs and len(np.unique(cells(inputs))) < len(loss) and (loss > 0).all():
            averaged = True
            seeds = trunk_noise(inputs, loss, trunk)
            means, mean_loss, clusters = two_way_means(inputs, loss, trunk)
            row, counts = _averaged(inputs, trunk, means, clusters)
            _, first = np.unique(row, return_index=True)
            columns = {name: column[first] for name, column in columns.items()}
    scale = run_scale = None
    if table.sigma is not None:
        run_scale = scale_of(table, space or law.space)
        squares = np.bincount(row, table.sigma**2)
        sigma = np.sqrt(squares) / np.bincount(row)
        scale = relative_sigma(sigma, mean_loss, space or law.space)
        # Scaled means are alike in noise, whatever the seeds behind them: `counts` turns a run's noise into theirs.
        counts = np.full(len(mean_loss), float(np.mean(table.sigma**2) / np.mean(sigma**2)))
    found = fit(law, means, mean_loss, loss_fn, delta, space, scale)
    groups = np.arange(len(mean_loss)) if clusters is None else clusters
    layout = Layout(groups, counts, _log_size(means))
    runs = Runs(dict(inputs), loss, trunk, row, run_scale)
    return NoiseModel(found, runs, layout, clusters, columns, seeds, averaged)


def scale_of(table: Table, space: str) -> Array | None:
    """`solve.relative_sigma` of the table's own rows; None without a column of standard errors."""
    return None if table.sigma is None else relative_sigma(table.sigma, table.target, space)


def _log_size(inputs: Mapping[str, Array]) -> Array:
    """log N of each row; zeros for laws without N, whose noise is taken for the same everywhere."""
    rows = len(next(iter(inputs.values())))
    return np.log(inputs["N"]) if "N" in inputs and (inputs["N"] > 0).all() else np.zeros(rows)


def _averaged(
    inputs: dict[str, Array], trunk: NDArray, means: dict[str, Array], groups: NDArray
) -> tuple[NDArray, Array]:
    """For each row of the table the averaged row it belongs to, and for each averaged row the trunks of its group."""
    head = len(groups)
    cell = cells({name: np.concatenate([means[name], inputs[name]]) for name in means})
    number = np.full(int(cell.max()) + 1, -1)
    number[cell[:head]] = np.arange(head)
    row = number[cell[head:]]
    counts = {group: len(np.unique(trunk[groups[row] == group])) for group in np.unique(groups)}
    return row, np.array([counts[group] for group in groups], dtype=np.float64)
