"""`kleiber runs`: a list of runs, with any of their columns, filtered and sorted.

The columns are those of the table of runs (`kleiber.records.catalog.Columns`), `folder`, every metric of a run, and
every key of its config, such as `model.depth`. Configs are read only when a key of theirs is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kleiber.config.errors import ConfigError, Status, did_you_mean, listed
from kleiber.config.nested import flatten
from kleiber.records.catalog import Columns, Run, counts
from kleiber.records.diff import as_number
from kleiber.records.regular_files import DamagedFile
from kleiber.records.terminal import columns, print_rich, printable, warn_once
from kleiber.types import Json, Row

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 130  # columns of the table in a pipe
BORDER = 3  # columns between two cells


@dataclass(frozen=True)
class Selection:
    """Which runs and columns are listed.

    status   only runs with this status; None for all
    where    only runs that satisfy this filter, such as `loss < 4 and model.depth in [2, 4]`
    sort     column by which the runs are sorted; `-COLUMN` sorts in descending order. None: by path
    limit    at most this many runs, after sorting
    columns  columns to list; none: those of `Columns`, the metrics and the folder
    """

    status: str | None = None
    where: str | None = None
    sort: str | None = None
    limit: int | None = None
    columns: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in list(Status):
            near = did_you_mean(self.status, map(str, Status))
            raise ValueError(f"--status {self.status} must be one of {', '.join(Status)}.{near}")

    def apply(self, runs: Sequence[Run]) -> list[Run]:
        """Returns the selected runs in order. Raises ValueError for a column that no run has, and for a bad filter."""
        kept = [run for run in runs if self.status in (None, run.status)]
        key = (self.sort or "").removeprefix("-")
        if kept and (self.where or key):
            table = as_frame(_rows(kept, [key] if key else [], with_config=self.where is not None))
            if self.where:
                from kleiber.studies.laws.filters import keep

                table = table.take(keep(table, self.where, option="--filter").nonzero()[0])
            if key:
                ascending = not str(self.sort).startswith("-")
                table = table.sort_values(key, ascending=ascending, na_position="last", kind="stable")
            kept = [kept[int(place)] for place in table.index]
        return kept[: self.limit]

    def rows(self, runs: Sequence[Run], among: Sequence[Run] = ()) -> list[Json]:
        """Returns a row of plain values for each of the runs: the chosen columns, or all but those of the config.

        among  all runs, of which `runs` were selected; a column that another of them has is empty

        Raises ValueError for a column that no run has.
        """
        rows = _rows(runs, self.columns, among=among)
        return [{name: row.get(name) for name in self.columns} if self.columns else row for row in rows]


def _rows(
    runs: Sequence[Run], asked: Sequence[str], with_config: bool = False, among: Sequence[Run] = ()
) -> list[Json]:
    """Returns a row for each run, with the keys of the configs where an asked column is none of the others.

    Raises ValueError for an asked column that no run has.
    """
    rows = [{**run.row(), "folder": str(run.folder)} for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    if with_config or not names.keys() >= set(asked):
        rows = [{**config_columns(run), **row} for run, row in zip(runs, rows, strict=True)]
        order = dict.fromkeys([*Columns.__annotations__, "folder", *names])  # keys of the config come last
        rows = [{name: row[name] for name in [*order, *row] if name in row} for row in rows]
    missing = [name for name in asked if not any(name in row for row in rows)]
    if missing and len(among) > len(runs):
        _rows(among, missing)
        return rows
    for name in missing:
        check_column(name, rows)
    return rows


def config_columns(run: Run) -> Json:
    """Returns the numbers and texts of a run's config by dotted key; other values, such as null, as JSON text."""
    try:
        values = flatten(run.config)
    except ConfigError as error:  # a run without a readable config is listed all the same
        if isinstance(error, DamagedFile):
            warn_once(str(error))
        return {}
    return {key: value if type(value) in (int, float, str) else json.dumps(value) for key, value in values.items()}


def as_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns rows as a table of numeric columns and columns of text.

    A column of numbers, quantities such as `20M`, and missing values (None, or `null` of a config) is numeric.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    for name in table.columns:
        present = [value for value in table[name].dropna() if value != "null"]
        if present and all(as_number(value) is not None for value in present):
            table[name] = pd.to_numeric(table[name].map(as_number), errors="coerce")
        elif not all(isinstance(value, str) for value in present):
            table[name] = table[name].map(str, na_action="ignore")
    return table


def check_column(name: str, rows: Sequence[Row]) -> None:
    """Raises ValueError, with the nearest column, where no row has a column of this name."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    if rows and name not in names:
        raise ValueError(f"{name} is not a column of these runs.{did_you_mean(name, names)} Columns: {listed(names)}")


def print_table(runs: Sequence[Run]) -> None:
    """Prints a table with a line per run, under the number of runs with each status.

    A narrow terminal has fewer columns, so that the names of runs stay whole.
    """
    from rich.table import Table
    from rich.text import Text

    rows = table_rows(runs)
    table = Table(title=counts(runs), title_justify="left")
    heads = fitting_columns(rows, columns() or WIDTH)
    for head in heads:
        is_text = head in ("run", "status")
        table.add_column(head, overflow="fold", justify="left" if is_text else "right", no_wrap=head != "run")
    for run, row in zip(runs, rows, strict=True):
        cells = {name: Text(printable(text)) for name, text in row.items()}
        cells["status"] = Text(str(run.status), style=run.status.color)
        table.add_row(*(cells[head] for head in heads))
    print_rich(table, WIDTH)


def table_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Returns the cells of the table of runs, by the heads of its columns."""
    costs = [run.stage.get("cost") or {} for run in runs]
    currencies = {cost["currency"] for cost in costs if cost.get("currency")}
    units = {"watt_hours": "Wh"}
    if any(run.row()["price"] is not None for run in runs):
        units["price"] = "/".join(sorted(currencies))
    rows = []
    for run in runs:
        row = run.row()
        cells = {"run": run.name, "status": str(run.status), "loss": values(run.metrics, "loss")}
        cells["bits/byte"] = values(run.metrics, "bits_per_byte")
        for name in ("params", "tokens", "seconds"):
            cells[name] = "" if row[name] is None else f"{row[name]:,.0f}"
        rows.append(cells | {unit: "" if row[name] is None else f"{row[name]:.3g}" for name, unit in units.items()})
    return rows


def fitting_columns(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Returns the heads of the columns that fit into `width`; status, loss and the name of the run always stay."""
    heads = [*rows[0]] if rows else ["run", "status", "loss"]
    widths = {head: max([len(head), *(len(row[head]) for row in rows)]) + BORDER for head in heads}
    spare = [head for head in [*heads[7:], "bits/byte", "params", "tokens", "seconds"] if head in heads]
    while spare and sum(widths[head] for head in heads) + 1 > width:
        heads.remove(spare.pop(0))
    return heads


def print_columns(runs: Sequence[Run], rows: Sequence[Row]) -> None:
    """Prints a table of rows with all their columns, under the number of runs with each status."""
    from rich.table import Table
    from rich.text import Text

    from kleiber.charts.page import page_table

    content = page_table(rows)
    table = Table(title=counts(runs), title_justify="left")
    for number, name in enumerate(content.columns):
        is_number = any(cells[number].is_number for cells in content.cells)
        table.add_column(Text(printable(name)), overflow="fold", justify="right" if is_number else "left")
    for cells in content.cells:
        table.add_row(*(Text(printable(cell.text)) for cell in cells))
    print_rich(table, WIDTH)


def values(metrics: Mapping[str, float | None], name: str) -> str:
    """Returns a table cell: the values of `val/<task>/<name>` of all tasks, separated by spaces."""
    matching = [value for key, value in metrics.items() if key.startswith("val/") and key.endswith("/" + name)]
    return " ".join(f"{value:.4f}" for value in matching if value is not None)


def to_json(rows: Sequence[Row]) -> str:
    """Returns rows as a JSON list; a number that is not finite becomes null."""
    return json.dumps([{key: finite(value) for key, value in row.items()} for row in rows], indent=1)


def finite(value: object) -> object:
    """Returns a value, or None for NaN and infinite numbers, which JSON cannot represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
