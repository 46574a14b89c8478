"""Reads tables of runs: csv, jsonl, parquet, and folders of kleiber's runs or W&B's, as the columns that a law takes.

A role is a symbol of a law (N, D, C, L, ...); `--map N=COL` assigns a column to it. A role without a mapping takes the
column of the same name. Every excluded row is recorded with the rule that excludes it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.records.regular_files import DamagedFile
from kleiber.studies.laws.filters import column_of, keep
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.table_files import READERS

DERIVED = {
    "C": (("N", "D"), lambda N, D: 6 * N * D),
    "D": (("C", "N"), lambda C, N: C / (6 * N)),
    "M": (("D", "N"), lambda D, N: D / N),
}
NOT_FINITE = "not finite"  # beginning of the rule that excludes a row without a number
POSITIVE = ("N", "D", "C", "M", "lr", "batch", "decay")  # roles whose logarithm is taken

# Roles of the columns of a folder of runs, as in `study=scaling`.
OF_RUNS = {"N": "active", "D": "tokens", "L": "loss", "C": "flops"}
SWEPT_OF_RUNS = {"lr": "lr", "batch": "batch_tokens"}
# Patterns of the names that these columns have in a W&B folder of kleiber's runs.
WANDB_PATTERNS = {
    "trunk": "run",
    "active": r"params/active",
    "flops": r"total/flops/model",
    "lr": r"optimizer\.lr",
    "loss": r"val/.+/loss",
}
LOSSES = re.compile(r"val/.+/loss(?:/[^/]+)?")  # of runs, those of a run of several stages by stage


@dataclass
class Table:
    """Rows ready to be fitted.

    frame     the rows of the original table
    columns   values by role, (rows,) each
    roles     column name by role
    excluded  {row, rule} of each excluded row
    """

    frame: pd.DataFrame
    columns: dict[str, Array]
    roles: dict[str, str]
    excluded: list[dict[str, object]] = field(default_factory=list)
    whole: pd.DataFrame | None = None  # with the excluded rows, which `split` assigns to groups

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def target(self) -> Array:
        """The target: the column of role L."""
        return self.columns["L"]

    @property
    def sigma(self) -> Array | None:
        """Standard errors of the target, or None. Raises ValueError if one is not positive and finite."""
        sigma = self.columns.get("sigma")
        if sigma is None:
            return None
        good = np.isfinite(sigma) & (sigma > 0)
        if not good.all():
            bad = int(np.argmin(good))
            raise ValueError(
                f"--sigma {self.roles['sigma']}: the standard error {sigma[bad]:g} of row "
                f"{label(self.frame.index[bad])} must be finite and > 0"
            )
        return sigma

    def inputs(self, law: Law) -> dict[str, Array]:
        """Returns the law's inputs by name. Raises ValueError if one has no column and cannot be computed."""
        missing = [name for name in law.inputs if name not in self.columns]
        if missing:
            maps = ",".join(f"{name}=COL" for name in missing)
            names = ", ".join(map(str, self.frame.columns))
            raise ValueError(
                f"law {law.name!r} needs the inputs {', '.join(law.inputs)}; add --map {maps}, where COL is one of "
                f"{names}"
            )
        return {name: self.columns[name] for name in law.inputs}

    def drop(self, rows: NDArray, rule: str) -> "Table":
        """Returns the table without the rows of a mask, each recorded under `rule`."""
        gone = [{"row": label(i), "rule": rule} for i in self.frame.index[rows]]
        kept = {name: column[~rows] for name, column in self.columns.items()}
        return Table(self.frame.loc[~rows], kept, self.roles, [*self.excluded, *gone], self.whole)

    def split(self, column: str) -> dict[str, "Table"]:
        """Splits the table by the values of a column, in their order; each part has its own excluded rows.

        Raises ValueError if a row has no value.
        """
        name = column_of(self.frame, column, "--by")
        if (empty := self.frame[name].isna().to_numpy(dtype=bool)).any():
            row = label(self.frame.index[int(np.argmax(empty))])
            raise ValueError(f"--by {column}: row {row} has no value in this column; exclude it with --where")
        of = (self.frame if self.whole is None else self.whole)[name]
        groups: dict[str, Table] = {}
        for value in sorted(self.frame[name].unique(), key=lambda v: (isinstance(v, str), v)):
            mask = (self.frame[name] == value).to_numpy(dtype=bool)
            kept = {role: values[mask] for role, values in self.columns.items()}
            gone = [entry for entry in self.excluded if of.get(entry["row"]) == value]
            groups[str(value)] = Table(self.frame.loc[mask], kept, self.roles, gone, self.whole)
        return groups

    def hash(self) -> str:
        """Returns the sha256 of the columns by role, which is the same for the same rows."""
        digest = hashlib.sha256()
        for role in sorted(self.columns):
            digest.update(role.encode() + np.ascontiguousarray(self.columns[role]).tobytes())
        return digest.hexdigest()


def label(index: object) -> object:
    return int(index) if isinstance(index, (int, np.integer)) else str(index)


def read(path: str | Path) -> pd.DataFrame:
    """Reads the rows of a csv, jsonl or parquet file, or of a folder of runs, of kleiber or else of W&B (offline).

    Raises ValueError if that fails.
    """
    path = Path(path)
    if path.is_dir():
        from kleiber.records import catalog
        from kleiber.records.wandb_file import read_wandb_runs

        frame = catalog.frame(catalog.read_runs(path))
        frame = frame if len(frame) else with_columns_of_runs(pd.DataFrame(read_wandb_runs(path)))
        if not len(frame):
            raise ValueError(f"{path} contains no runs: neither a folder with a summary.json nor a .wandb file")
        return frame
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.suffix not in READERS:
        raise ValueError(
            f"{path} must be a .csv, .tsv, .jsonl or .parquet file or a folder of runs; its suffix is {path.suffix!r}"
        )
    try:
        frame = READERS[path.suffix](path)
    except DamagedFile:
        raise
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    if not len(frame):
        raise ValueError(f"{path}: the table has no rows")
    return frame


def with_columns_of_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of a W&B folder, with the columns that it would have as a folder of runs, where it lacks them.

    A column that two columns could fill, such as the loss with two validation texts, is left to `--map`.
    """
    for name, pattern in WANDB_PATTERNS.items():
        matching = [column for column in frame.columns if re.fullmatch(pattern, str(column))]
        if name not in frame.columns and len(matching) == 1:
            frame = frame.assign(**{name: frame[matching[0]]})
    return frame


def load(
    frame: pd.DataFrame, roles: Mapping[str, str], filters: Sequence[str] = (), needed: Iterable[str] = ()
) -> Table:
    """Selects the columns of all roles and the rows of all filters.

    needed  roles that a column of the same name fills if `roles` maps no column to them; also N, D, C and L

    Rows that a filter or a missing number excludes are recorded with the rule. Raises ValueError for a missing column
    (with the nearest name), for a value that is not a number or not positive (with its row), and if no row remains.
    """
    frame = frame.reset_index(drop=True)
    named = dict(roles)
    for role in (*needed, "N", "D", "C", "L"):
        if role not in named and role in frame.columns:
            named[role] = role
    named["L"] = loss_column(frame, named.get("L"))
    columns = {role: numbers_of(frame, column_of(frame, name, f"--map {role}={name}")) for role, name in named.items()}
    for role, (parts, rule) in DERIVED.items():
        if role not in columns and all(part in columns for part in parts):
            with np.errstate(all="ignore"):  # a size of 0 is refused below, unless a filter excludes its row
                columns[role] = rule(*(columns[part] for part in parts))
    kept = Table(frame, columns, named, whole=frame)
    for text in filters:
        kept = kept.drop(~keep(kept.frame, text, named), f"where: {text}")
    for role in ("L", *needed):
        if role in kept.columns:
            kept = kept.drop(~np.isfinite(kept.columns[role]), f"{NOT_FINITE}: {role} ({named.get(role, 'derived')})")
    if not len(kept):
        raise ValueError(
            f"none of the {len(frame)} rows remains after "
            f"{', '.join(map(repr, filters)) or 'excluding missing numbers'}"
        )
    for role in POSITIVE:
        if role in kept.columns and (role in needed or role == "C"):
            _check_positive(kept, role)
    return kept


def loss_column(frame: pd.DataFrame, name: str | None) -> str:
    """Returns the column of the loss: `name`, or "loss" for None.

    Raises ValueError, with the mapping to write, where it is missing and runs have losses of several texts or stages.
    """
    if name in (None, "loss") and not ("loss" in frame.columns and len(frame["loss"].dropna())):
        losses = [str(column) for column in frame.columns if LOSSES.fullmatch(str(column))]
        if losses:
            choices = " or ".join(f"--map L={column}" for column in losses)
            raise ValueError(f"the runs have several validation losses: add {choices}")
    return column_of(
        frame, name or "loss", "add --map L=COL with the column of the loss" if name is None else f"--map L={name}"
    )


def _check_positive(table: Table, role: str) -> None:
    """Raises ValueError for a value <= 0 of a role; it names the first such row."""
    low = table.columns[role] <= 0
    if low.any():
        row = int(np.argmax(low))
        name = f"{role} ({table.roles.get(role, 'computed')})"
        raise ValueError(
            f"{name} must be > 0, but it is {table.columns[role][row]:g} in row {label(table.frame.index[row])}: "
            f"correct the row, or exclude it with --where"
        )


def numbers_of(frame: pd.DataFrame, name: str) -> Array:
    """Returns a column as numbers. Raises ValueError, which names the row, for a text that is none."""
    column = pd.Series(frame[name])
    if not pd.api.types.is_numeric_dtype(column):
        if isinstance(column.dtype, pd.CategoricalDtype):  # each text once: equal rows of a long one fill the memory
            values = pd.Series(pd.to_numeric(pd.Series(column.cat.categories), errors="coerce"))
            read = values.reindex(column.cat.codes).set_axis(column.index)
        else:
            read = pd.Series(pd.to_numeric(column, errors="coerce"))
        bad = (read.isna() & column.notna()).to_numpy(dtype=bool)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"column {name!r}: {column.iloc[row]!r} in row {row} is not a number")
        column = read
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def cells(inputs: Mapping[str, Array]) -> NDArray[np.intp]:
    """Numbers the cells; rows with equal inputs (to 1e-9) are replicates and have the same number."""
    units = {name: 10.0 ** (_magnitude(column) - 9) for name, column in inputs.items()}
    stacked = np.column_stack([np.round(column / units[name]) * units[name] for name, column in inputs.items()])
    return number_rows(stacked)


def cells_without(inputs: Mapping[str, Array], along: str) -> NDArray[np.intp]:
    """Numbers the sets of rows that are equal in every input but `along`; one set if there is no other input."""
    others = {name: column for name, column in inputs.items() if name != along}
    return cells(others) if others else np.zeros(len(inputs[along]), dtype=np.intp)


def number_rows(rows: Array) -> NDArray[np.intp]:
    """Numbers equal rows of a matrix (rows, columns) alike, from 0, in lexicographic order."""
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    starts = np.concatenate([[0], (ordered[1:] != ordered[:-1]).any(1)])
    number = np.empty(len(rows), dtype=np.intp)
    number[order] = np.cumsum(starts)
    return number


def round_down(values: Array, tolerance: float) -> Array:
    """Replaces each value by the smallest of those that it exceeds by at most the relative `tolerance`."""
    starts: list[float] = []
    for value in np.unique(values):
        if not starts or value > (1 + tolerance) * starts[-1]:
            starts.append(value)
    return np.array(starts)[np.searchsorted(starts, values, "right") - 1]


def _magnitude(column: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(column != 0, np.floor(np.log10(np.abs(np.where(column == 0, 1, column)))), 0)
