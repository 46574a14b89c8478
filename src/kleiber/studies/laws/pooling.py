"""Pools the rows of a large table: rows with equal inputs are replicates, and become one row with their mean.

The mean is weighted by the standard errors of the rows, if there are any, and taken on the scale of the residuals. It
has the standard error of a mean, so that a fit weights it by its number of rows. A squared-loss fit of the means has
the same parameters as the fit of all rows; huber and lad apply to the means. Tables of at most MOST_ROWS rows are left
as they are. Their number is limited because tests of the noise use matrices (rows, rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.laws.filters import column_of
from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.problem import from_space, relative_sigma, rho, to_space
from kleiber.studies.laws.table import Table, cells, label

MOST_ROWS = 5_000  # of a fit: two minutes and 0.8 GB; larger tables are pooled, or refused


@dataclass(frozen=True)
class Pooled:
    """A table with a row for each cell, in place of one with a row for each run.

    table   its rows have the standard errors of means, up to a common factor
    cell    (runs,) row of `table` into which each run is pooled
    trunk   (runs,) trunk of each run; every run is a trunk of its own without clusters
    weight  number of runs of equal noise that a row is worth on average, as a harmonic mean
    """

    table: Table
    cell: NDArray[np.intp]
    trunk: NDArray[np.intp]
    weight: float


def pool(table: Table, law: Law, space: str, cluster: str | None = None) -> Pooled | None:
    """Pools the runs of each cell, apart for each value of the column `cluster`; None for at most MOST_ROWS runs.

    Raises ValueError if more than MOST_ROWS rows would remain.
    """
    if len(table) <= MOST_ROWS:
        return None
    trunk = trunks(table, cluster)
    cell, first = cells_of_rows(table.inputs(law), None if cluster is None else trunk)
    scale = scale_of(table, space)
    weight = np.ones(len(table)) if scale is None else scale**-2.0
    weights = np.bincount(cell, weight)
    target = from_space(np.bincount(cell, weight * to_space(table.target, space)) / weights, space)
    columns = {role: column[first] for role, column in table.columns.items()}
    unit = {"log": target, "log10": target * np.log(10.0), "linear": np.ones(len(target))}[space]
    columns |= {"L": target, "sigma": unit / np.sqrt(weights)}
    roles = {"sigma": "1 / sqrt(rows)", **table.roles}
    return Pooled(Table(table.frame.iloc[first], columns, roles), cell, trunk, float(1 / np.mean(1 / weights)))


def cells_of_rows(
    inputs: Mapping[str, Array], trunk: NDArray | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns the cell of each row, and the first row of each cell; up to MOST_ROWS, every row is a cell.

    trunk  rows of different trunks are in different cells

    Raises ValueError for more than MOST_ROWS cells.
    """
    num_rows = len(next(iter(inputs.values())))
    if num_rows <= MOST_ROWS:
        return np.arange(num_rows), np.arange(num_rows)
    cell = cells({**inputs, **({} if trunk is None else {"trunk": trunk.astype(np.float64)})})
    _, first = np.unique(cell, return_index=True)
    if len(first) > MOST_ROWS:
        names = ", ".join([*inputs, *([] if trunk is None else ["--cluster"])])
        raise ValueError(
            f"the {num_rows:,} rows have {len(first):,} different values of {names}, and a fit can use at most "
            f"{MOST_ROWS:,}: select rows with --where, or round {names} in the table so that rows with equal values "
            "are pooled"
        )
    return cell, first


def trunks(table: Table, cluster: str | None) -> NDArray[np.intp]:
    """Returns the number of the trunk of each row, in the order of the names in the column `cluster`.

    Raises ValueError for a row without a name, which would be noise of a trunk or of its own.
    """
    if cluster is None:
        return np.arange(len(table))
    names = table.frame[column_of(table.frame, cluster, "--cluster")]
    nameless = np.flatnonzero(names.isna())
    if len(nameless):
        row = label(table.frame.index[nameless[0]])
        raise ValueError(f"--cluster {cluster}: row {row} has no value: fill it, or leave the row out with --where")
    return pd.factorize(names.astype(str), sort=True)[0]


def on_rows(fitted: Fit, table: Table) -> Fit:
    """Returns the fitted parameters with the rows of a table, as before they were averaged or pooled."""
    scale, inputs = scale_of(table, fitted.problem.space), table.inputs(fitted.law)
    problem = replace(fitted.problem, inputs=inputs, target=table.target, scale=scale)
    residuals = problem.predict(fitted.theta[None])[0] - problem.observed
    return Fit(problem, fitted.theta, float(rho(residuals, problem.loss_fn, problem.delta).sum()))


def scale_of(table: Table, space: str) -> Array | None:
    """Returns the divisors of the residuals of a table (`problem.relative_sigma`); None without standard errors."""
    return None if table.sigma is None else relative_sigma(table.sigma, table.target, space)
