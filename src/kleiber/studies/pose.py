"""From a table to a fit with what its noise is made of: seeds averaged within a size, trunks told apart.

With branches of trunks in the table the rows are no independent samples. Seeds are averaged by two-way means, the
variance between trunks is measured from the seeds, and both go on to every interval. It refuses to average in silence:
`Posed.averaged` says so.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.bootstrap import Draws, bootstrap, strata_of
from kleiber.studies.fit import Fit, fit, refit
from kleiber.studies.law import Array, Law
from kleiber.studies.replicates import TrunkNoise, cells, trunk_noise, two_way_means
from kleiber.studies.solve import relative_sigma
from kleiber.studies.table import Table
from kleiber.studies.where import column_of

EXTRA = ("C", "Nnoemb", "Cexact")


@dataclass(frozen=True)
class Posed:
    """A fit, the cluster of each row, its compute and other columns, and the noise between trunks.

    trunk_sd  sd of what the rows of a cluster share, by row; None where it was not measured
    """

    fit: Fit
    clusters: NDArray | None = None
    columns: dict[str, Array] = field(default_factory=dict)
    trunk_sd: Array | None = None
    noise: TrunkNoise | None = None
    averaged: bool = False

    @property
    def compute(self) -> Array | None:
        found = self.columns.get("C")
        return found if found is not None and np.isfinite(found).all() else None

    @property
    def along(self) -> tuple[str, Array] | None:
        """What a backtest cuts by, with its name: compute C, else size N where the law has it; None for neither."""
        if self.compute is not None:
            return "C", self.compute
        sizes = self.fit.problem.inputs.get("N")
        return None if sizes is None else ("N", sizes)

    def draws(self, count: int, seed: int, found: Fit | None = None, rows: NDArray | None = None) -> Draws | None:
        """Bootstrap draws of the fit, or of `found`, a fit of some of the `rows`; None when nothing measures noise."""
        found = self.fit if found is None else found
        if count < 1 or not np.isfinite(found.noise):
            return None
        strata = strata_of(found.problem.inputs["N"]) if "N" in found.problem.inputs else None
        groups, shared = (None if a is None else a if rows is None else a[rows] for a in (self.clusters, self.trunk_sd))
        return bootstrap(found, count, seed, strata, groups, trunk_sd=shared)

    def on(self, rows: NDArray) -> Fit:
        """The same law fitted to some rows."""
        return refit(self.fit, rows)


def pose(table: Table, law: Law, loss_fn: str | None, delta: float, space: str | None, cluster: str | None) -> Posed:
    """Fit the table; with a column naming the trunk of each row, its seeds are averaged within a size first."""
    inputs, loss, clusters = table.inputs(law), table.target, None
    columns = {name: table.columns[name] for name in EXTRA if name in table.columns}
    shared, noise, averaged, sigma = None, None, False, table.sigma
    if cluster:
        names = table.frame[column_of(table.frame, cluster, "--cluster")]
        _, clusters = np.unique(names.astype(str).to_numpy(), return_inverse=True)
        if "D" in inputs and len(np.unique(cells(inputs))) < len(loss) and (loss > 0).all():
            before, averaged = (inputs, clusters), True
            noise = trunk_noise(inputs, loss, clusters)
            inputs, loss, clusters = two_way_means(inputs, loss, clusters)
            first, seeds, sigma = _members(before[0], before[1], inputs, sigma)
            columns = {name: column[first] for name, column in columns.items()}
            if noise is not None:
                shared = noise.between / np.sqrt(seeds)
    scale = None if sigma is None else relative_sigma(sigma, loss, space or law.space)
    if scale is not None and shared is not None:
        shared = shared / scale
    found = fit(law, inputs, loss, loss_fn, delta, space, scale)
    return Posed(found, clusters, columns, shared, noise, averaged)


def scale_of(table: Table, space: str) -> Array | None:
    """`solve.relative_sigma` of the table's own rows; None without a column of standard errors."""
    return None if table.sigma is None else relative_sigma(table.sigma, table.target, space)


def _members(
    inputs: dict[str, Array], clusters: NDArray, means: dict[str, Array], sigma: Array | None
) -> tuple[NDArray, Array, Array | None]:
    """For each averaged row its first row in the table, the number of trunks of its size, and the standard error of the
    mean of its rows, sqrt(sum sigma^2) / n.
    """
    names = list(inputs)
    both = {name: np.concatenate([means[name], inputs[name]]) for name in names}
    cell = cells(both)
    head = len(means[names[0]])
    first = np.array([int(np.flatnonzero(cell[head:] == one)[0]) for one in cell[:head]])
    others = {name: column for name, column in both.items() if name != "D"}
    size = cells(others) if others else np.zeros(len(cell), dtype=int)
    seeds = np.array([len(np.unique(clusters[size[head:] == one])) for one in size[:head]], dtype=np.float64)
    if sigma is not None:
        mine = cell[:head, None] == cell[None, head:]
        sigma = np.sqrt((mine * sigma**2).sum(1)) / mine.sum(1)
    return first, seeds, sigma
