"""The problem that a fit solves: a law, its rows, the scale of the residuals and the loss function.

The rows of a large table are pooled (`pool`): rows with equal inputs are replicates, and become one row with their
mean. The mean is weighted by the standard errors of the rows, if there are any, and taken on the scale of the
residuals. It has the standard error of a mean, so that a fit weights it by its number of rows. A squared-loss fit of
the means has the same parameters as the fit of all rows; huber and lad apply to the means. The number of rows is
limited because tests of the noise use matrices (rows, rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.laws.filters import column_of
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.table import Table, cells, label

LOSSES = ("huber", "lad", "squared")
SPACES = ("log", "linear", "log10")
TO_SPACE = {"log": np.log, "log10": np.log10, "linear": np.asarray}
EIGHTH = {2e-3: 8 / 5, 4e-3: -4 / 5, 6e-3: 8 / 35, 8e-3: -1 / 35}  # weights of central differences, by step
MOST_ROWS = 5_000  # of a fit: two minutes and 0.8 GB; larger tables are pooled, or refused
TOGETHER = 20_000  # a Jacobian with fewer elements is computed in one call


@dataclass(frozen=True)
class Problem:
    """A law, its rows and the objective sum_i rho(s(L_hat_i) - s(L_i)) with loss function rho and scale s (`space`).

    active  mask of the parameters that are fitted; a dropped term is 0
    scale   (rows,) divides predictions and observations if the rows have standard errors (`relative_sigma`)
    """

    law: Law
    inputs: Mapping[str, Array]
    target: Array
    loss_fn: str
    delta: float
    space: str
    active: NDArray[np.bool_] = field(repr=False)
    scale: Array | None = field(default=None, repr=False)

    @property
    def num_rows(self) -> int:
        return len(self.target)

    @property
    def num_params(self) -> int:
        return int(self.active.sum())

    @property
    def observed(self) -> Array:
        """The target on the scale of the residuals."""
        return self.scaled(to_space(self.target, self.space))

    def scaled(self, values: Array) -> Array:
        """Divides values (..., rows) by `scale`, if there is one."""
        return values if self.scale is None else values / self.scale

    def rows(self, keep: NDArray) -> "Problem":
        """Returns the same problem on some of its rows (a mask or positions)."""
        inputs = {name: column[keep] for name, column in self.inputs.items()}
        return replace(
            self, inputs=inputs, target=self.target[keep], scale=None if self.scale is None else self.scale[keep]
        )

    def on(self, inputs: Mapping[str, Array], target: Array, scale: Array | None) -> "Problem":
        """Returns the same problem with other rows."""
        return replace(self, inputs=inputs, target=target, scale=scale)

    def values(self, theta: Array) -> Array:
        """Converts solver coordinates (draws, active params) to parameters in natural units (draws, params)."""
        full = np.zeros((len(theta), len(self.active)))
        log = self.law.log[self.active]
        full[:, self.active] = np.where(log, np.exp(clip(np.where(log, theta, 0.0), -700, 700)), theta)
        return full

    def coordinates(self, values: Array) -> Array:
        """Inverts `values`."""
        kept = np.atleast_2d(values)[:, self.active]
        log = self.law.log[self.active]
        return np.where(log, np.log(np.where(log, np.maximum(kept, 1e-300), 1.0)), kept)

    def predict(self, theta: Array) -> Array:
        """Predicts on the scale of the residuals, (draws, rows)."""
        answer = self.law.evaluate(self.inputs, self.values(theta))
        return self.scaled(convert(answer, self.law.returns, self.space))

    @np.errstate(all="ignore")  # a wild trial step is rejected by its infinite objective
    def jacobian(self, theta: Array, apart: float = 6e-6) -> Array:
        """Returns d prediction / d coordinate by central differences of step `apart`, (draws, rows, active params)."""
        draws, params = theta.shape
        steps = np.eye(params)[:, None, :] * (apart * np.maximum(1.0, np.abs(theta)))[None]
        together = params if draws * self.num_rows * params <= TOGETHER else 1
        parts = []
        for j in range(0, params, together):
            step = steps[j : j + together]
            shifted = np.concatenate([theta + step, theta - step]).reshape(-1, params)
            ahead, behind = self.predict(shifted).reshape(2, len(step), draws, -1)
            parts.append((ahead - behind) / (2 * step.sum(2)[:, :, None]))
        return np.concatenate(parts).transpose(1, 2, 0)

    def exact_jacobian(self, theta: Array) -> Array:
        """Returns the Jacobian by differences of order eight: 300 times less rounding error at four times the cost."""
        return np.sum([share * self.jacobian(theta, apart=apart) for apart, share in EIGHTH.items()], axis=0)


def clip(values: Array, lo: float, hi: float) -> Array:
    """Limits values to [lo, hi] as np.clip does, in a third of the time for small arrays."""
    return np.minimum(np.maximum(values, lo), hi)


def zero_where_not_finite(values: Array) -> Array:
    """Replaces NaN and infinity by 0; returns the same array where there are none."""
    finite = np.isfinite(values)
    return values if finite.all() else np.where(finite, values, 0.0)


def to_space(loss: Array, space: str) -> Array:
    """Transforms losses to the scale of the residuals: log L, log10 L or L."""
    with np.errstate(all="ignore"):
        return TO_SPACE[space](loss)


def from_space(values: Array, space: str) -> Array:
    """Inverts `to_space`."""
    return {"log": np.exp, "log10": lambda a: 10.0**a, "linear": np.asarray}[space](values)


def relative_sigma(sigma: Array, target: Array, space: str) -> Array:
    """Returns standard errors on the scale of the residuals, divided by their root mean square.

    On a log scale the standard error is sigma / L. The division keeps the mean size of the residuals, so that a Huber
    delta keeps its meaning and equal standard errors have no effect.
    """
    error = {"log": sigma / target, "log10": sigma / (target * np.log(10.0)), "linear": sigma}[space]
    return error / np.sqrt(np.mean(error**2))


def convert(answer: Array, returns: str, space: str) -> Array:
    """Converts the value of a law from the scale it returns to the scale of the residuals."""
    if returns == space:
        return answer
    if returns == "log10" and space == "log":
        return answer * np.log(10.0)
    return to_space(10.0**answer if returns == "log10" else answer, space)


def rho(r: Array, loss_fn: str, delta: float) -> Array:
    """Returns the loss of each residual: Huber, lad |r| or squared r^2; inf if r is not finite.

    Huber is r^2 / 2 up to delta, and delta (|r| - delta / 2) above.
    """
    size = np.abs(r)
    with np.errstate(all="ignore"):
        if loss_fn == "squared":
            out = size**2
        elif loss_fn == "lad":
            out = size
        else:
            out = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    finite = np.isfinite(out)
    return out if finite.all() else np.where(finite, out, np.inf)


def influence(r: Array, loss_fn: str, delta: float) -> Array:
    """Returns the weights rho'(r) / r, up to a factor, of iteratively reweighted least squares."""
    if loss_fn == "squared":
        return np.ones_like(r)
    return 1 / np.maximum(1.0, np.abs(r) / delta)


def checked_problem(
    law: Law, inputs: Mapping[str, Array], target: Array, loss_fn: str | None, delta: float, space: str | None,
    scale: Array | None = None,
) -> Problem:  # fmt: skip
    """Checks the rows and the objective and builds the `Problem`; all columns become float64 (6 N D overflows int64).

    Raises ValueError for an unknown loss function or scale, a missing input, a value that is not finite, a target that
    is not positive on a log scale, and fewer rows than parameters.
    """
    loss_fn, space = loss_fn or law.loss_fn, space or law.space
    if loss_fn not in LOSSES:
        raise ValueError(f"--loss-fn {loss_fn!r} must be one of {', '.join(LOSSES)}")
    if space not in SPACES:
        raise ValueError(f"--space {space!r} must be one of {', '.join(SPACES)}")
    if loss_fn == "huber" and not delta > 0:
        raise ValueError(f"--delta {delta} must be > 0; for absolute residuals, the limit of 0, use --loss-fn lad")
    missing = [name for name in law.inputs if name not in inputs]
    if missing:
        raise ValueError(
            f"law {law.name!r} needs the inputs {', '.join(law.inputs)}, but `inputs` lacks {', '.join(missing)}: add "
            "an array with one value per row"
        )
    columns = {name: np.asarray(inputs[name], dtype=np.float64) for name in inputs}
    target = np.asarray(target, dtype=np.float64)
    for name, column in {**columns, "target": target}.items():
        if not np.isfinite(column).all():
            raise ValueError(f"{name} is not finite in row {int(np.argmin(np.isfinite(column)))}: exclude this row")
    if space != "linear" and (target <= 0).any():
        raise ValueError(
            f"the target {target.min():g} in row {int(np.argmin(target))} must be > 0 for --space {space}: exclude "
            "this row, or use --space linear"
        )
    if len(target) < len(law.params):
        raise ValueError(
            f"law {law.name!r} has {len(law.params)} parameters, but the table has only {len(target)} rows: add rows "
            "or use a law with fewer parameters"
        )
    return Problem(law, columns, target, loss_fn, delta, space, np.ones(len(law.params), dtype=bool), scale)


def scale_of(table: Table, space: str) -> Array | None:
    """Returns the divisors of the residuals of a table (`problem.relative_sigma`); None without standard errors."""
    return None if table.sigma is None else relative_sigma(table.sigma, table.target, space)


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
