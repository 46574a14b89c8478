"""Tables of runs: csv, jsonl, parquet or a folder of runs, read into the float64 columns that a law takes.

Roles are the law's symbols (N, D, C, L, ...); `--map N=COL` assigns a column to a role. No column is guessed, and every
row that is left out is recorded with its rule.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.laws.filters import column_of, keep
from kleiber.studies.laws.law import Array, Law

DERIVED = {
    "C": (("N", "D"), lambda N, D: 6 * N * D),
    "D": (("C", "N"), lambda C, N: C / (6 * N)),
    "M": (("D", "N"), lambda D, N: D / N),
}


# Roles of the columns of a folder of runs, as in `study=scaling`.
OF_RUNS = {"N": "active", "D": "tokens", "L": "loss", "C": "flops"}


@dataclass
class Table:
    """Rows ready for a fit: `columns` by role, `frame` the original rows beside them, `excluded` (row, rule) pairs."""

    frame: pd.DataFrame
    columns: dict[str, Array]
    roles: dict[str, str]
    excluded: list[dict[str, object]] = field(default_factory=list)
    whole: pd.DataFrame | None = None  # with the excluded rows, which `split` assigns to groups

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def target(self) -> Array:
        """The column of role L."""
        return self.columns["L"]

    @property
    def sigma(self) -> Array | None:
        """Standard errors of the targets; None without such a column. ValueError for a row without one."""
        sigma = self.columns.get("sigma")
        if sigma is None:
            return None
        good = np.isfinite(sigma) & (sigma > 0)
        if not good.all():
            bad = int(np.argmin(good))
            raise ValueError(
                f"--sigma {self.roles['sigma']}: row {label(self.frame.index[bad])} is {sigma[bad]:g}; the standard "
                "error of a loss must be finite and > 0"
            )
        return sigma

    def inputs(self, law: Law) -> dict[str, Array]:
        """The law's inputs by name; ValueError for roles that no column and no derivation supplies."""
        missing = [name for name in law.inputs if name not in self.columns]
        if missing:
            maps = ",".join(f"{name}=COL" for name in missing)
            names = ", ".join(map(str, self.frame.columns))
            raise ValueError(f"law {law.name!r} needs {', '.join(law.inputs)}; add --map {maps}. Columns: {names}")
        return {name: self.columns[name] for name in law.inputs}

    def drop(self, rows: NDArray, rule: str) -> "Table":
        """The table without the rows where the mask `rows` is true, each recorded under `rule`."""
        gone = [{"row": label(i), "rule": rule} for i in self.frame.index[rows]]
        kept = {name: column[~rows] for name, column in self.columns.items()}
        return Table(self.frame.loc[~rows], kept, self.roles, [*self.excluded, *gone], self.whole)

    def split(self, column: str) -> dict[str, "Table"]:
        """One table per value of a column, in order of the values, each with its own excluded rows.

        ValueError for a row without a value.
        """
        name = column_of(self.frame, column, "--by")
        if (empty := self.frame[name].isna().to_numpy(dtype=bool)).any():
            row = label(self.frame.index[int(np.argmax(empty))])
            raise ValueError(f"--by {column}: row {row} has no value there; leave it out with --where")
        of = (self.frame if self.whole is None else self.whole)[name]
        groups: dict[str, Table] = {}
        for value in sorted(self.frame[name].unique(), key=lambda v: (isinstance(v, str), v)):
            mask = (self.frame[name] == value).to_numpy(dtype=bool)
            kept = {role: values[mask] for role, values in self.columns.items()}
            gone = [entry for entry in self.excluded if of.get(entry["row"]) == value]
            groups[str(value)] = Table(self.frame.loc[mask], kept, self.roles, gone, self.whole)
        return groups

    def hash(self) -> str:
        """sha256 over the columns the fit read, by role: the same rows give the same hash."""
        digest = hashlib.sha256()
        for role in sorted(self.columns):
            digest.update(role.encode() + np.ascontiguousarray(self.columns[role]).tobytes())
        return digest.hexdigest()


def label(index: object) -> object:
    return int(index) if isinstance(index, (int, np.integer)) else str(index)


def read(path: str | Path) -> pd.DataFrame:
    """Raw rows of a csv, jsonl or parquet file or of a folder of runs; ValueError when it cannot be read."""
    path = Path(path)
    if path.is_dir():
        from kleiber.records import catalog

        frame = catalog.frame(catalog.read_runs(path))
        if not len(frame):
            raise ValueError(f"{path}: no runs in this folder (a run has a summary.json)")
        return frame
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    readers = {
        ".csv": pd.read_csv,
        ".jsonl": lambda p: pd.read_json(p, lines=True),
        ".parquet": pd.read_parquet,
    }
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: a table is .csv, .jsonl, .parquet or a folder of runs, not {path.suffix or 'without suffix'!r}"
        )
    try:
        frame = readers[path.suffix](path)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error
    if not len(frame):
        raise ValueError(f"{path}: the table has no rows")
    return frame


def parse_map(text: str | None, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """`N=params,D=tokens` (and the synonyms --params, --data, --loss, --compute) as a dict role -> column."""
    roles = {role: column for role, column in (extra or {}).items() if column}
    for item in filter(None, (text or "").split(",")):
        role, equals, column = item.partition("=")
        if not equals or not role.strip() or not column.strip():
            raise ValueError(f"--map {item!r}: must be ROLE=COLUMN, such as N=params,D=tokens,L=loss")
        if roles.get(role.strip(), column.strip()) != column.strip():
            raise ValueError(f"--map {item!r}: {role.strip()} is already {roles[role.strip()]!r}")
        roles[role.strip()] = column.strip()
    return roles


def load(
    frame: pd.DataFrame, roles: Mapping[str, str], filters: Sequence[str] = (), needed: Iterable[str] = ()
) -> Table:
    """Applies roles and filters; a role of `needed` without a mapping is the column of that name.

    Rows that a filter or a missing number removes are recorded with the rule. Errors: ValueError for an absent column
    (with the nearest), for a value that is no number (with its row) and when no row is left.
    """
    frame = frame.reset_index(drop=True)
    named = dict(roles)
    for role in (*needed, "N", "D", "C", "L"):
        if role not in named and role in frame.columns:
            named[role] = role
    if "L" not in named:
        named["L"] = column_of(frame, "loss", "no loss mapped: add --map L=COL")
    columns = {role: _numbers(frame, column_of(frame, name, f"--map {role}={name}")) for role, name in named.items()}
    for role, (parts, rule) in DERIVED.items():
        if role not in columns and all(part in columns for part in parts):
            columns[role] = rule(*(columns[part] for part in parts))
    table = Table(frame, columns, named, whole=frame)
    gone = np.zeros(len(frame), dtype=bool)
    for text in filters:
        out = ~keep(frame, text, named)
        table.excluded += [{"row": label(i), "rule": f"where: {text}"} for i in frame.index[out & ~gone]]
        gone |= out
    rest = {role: column[~gone] for role, column in columns.items()}
    kept = Table(frame.loc[~gone], rest, named, table.excluded, frame)
    for role in ("L", *needed):
        if role in kept.columns:
            kept = kept.drop(~np.isfinite(kept.columns[role]), f"not finite: {role} ({named.get(role, 'derived')})")
    if not len(kept):
        raise ValueError(
            f"no rows left of {len(frame)} after {', '.join(map(repr, filters)) or 'dropping missing numbers'}"
        )
    return kept


def _numbers(frame: pd.DataFrame, name: str) -> Array:
    column = pd.Series(frame[name])
    if not pd.api.types.is_numeric_dtype(column):
        read = pd.Series(pd.to_numeric(column, errors="coerce"))
        bad = (read.isna() & column.notna()).to_numpy(dtype=bool)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"column {name!r}, row {row}: {column.iloc[row]!r} is not a number")
        column = read
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def cells(inputs: Mapping[str, Array]) -> NDArray[np.intp]:
    """The number of the cell of each row: rows with equal inputs (to 1e-9) are replicates of a cell."""
    units = {name: 10.0 ** (_magnitude(column) - 9) for name, column in inputs.items()}
    stacked = np.column_stack([np.round(column / units[name]) * units[name] for name, column in inputs.items()])
    _, member = np.unique(stacked, axis=0, return_inverse=True)
    return member.reshape(-1)


def _magnitude(column: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(column != 0, np.floor(np.log10(np.abs(np.where(column == 0, 1, column)))), 0)
