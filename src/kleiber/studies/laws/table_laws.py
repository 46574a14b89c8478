"""Laws with a table, a record and predictions of their own: fits, writes, reads and applies them for the commands.

A package offers such a law as LAWS = {"mixture": "law.mixture"} in its `__init__.py`, where the function
`mixture` returns a `TableLaw`. Its record has a schema of its own, kleiber.mixture/1.

Errors about a table name the row and the column.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, ValidationError

from kleiber.config.errors import ExitCode
from kleiber.config.extensions import import_offer, offers
from kleiber.records import catalog
from kleiber.records.files import read_json, write_text
from kleiber.records.regular_files import make_folder, read_bytes
from kleiber.records.terminal import print_line
from kleiber.studies.laws import laws_json
from kleiber.studies.laws.filters import check_roles, column_of, keep, number, parse_map, parse_values
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import label, numbers_of, read
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.studies.laws.verdicts import Verdict, verdict_lines, with_verdicts
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

MAX_BYTES = laws_json.MAX_BYTES
RESAMPLES = 1000  # of the rows, for the interval of a rank correlation
FIT_OPTIONS = ("source", "law", "map", "where", "bootstrap", "seed", "level", "json", "report")
PREDICT_OPTIONS = ("laws_json", "at", "on", "map", "where", "max_decades", "force", "json")
CHOICES = ("form", "route", "schedule", "steps")  # options that only some of these laws have
LAWS = "LAWS"  # what packages offer


@dataclass(frozen=True)
class Settings:
    """How a law is fitted: its form or route (None: chosen by held-out errors), refits, their seed and the level."""

    form: str | None = None
    route: str | None = None
    bootstrap: int = 1000
    seed: int = 0
    level: float = 0.9


def required(frame: pd.DataFrame, roles: Mapping[str, str], role: str) -> str:
    """Returns the column of a role, by default that of the same name. Raises ValueError for a missing column."""
    column = roles.get(role, role)
    return column_of(frame, column, f"--map {role}={column}" if role in roles else f"add --map {role}=COL")


def numbers(frame: pd.DataFrame, column: str) -> Array:
    """Returns a column as finite numbers. Raises ValueError, with row and column, for any other value."""
    values = numbers_of(frame, column)
    check_range(frame, column, values, "a value must be a finite number", np.isfinite(values))
    return values


def constant_or_column(frame: pd.DataFrame, roles: Mapping[str, str], role: str) -> Array | None:
    """Returns the values of an optional role, whose mapping is a column or a number; None if it is not mapped."""
    if role not in roles:
        return None
    constant = number(roles[role]) if roles[role] not in frame.columns else None
    if constant is not None:
        return np.full(len(frame), constant)
    return numbers(frame, required(frame, roles, role))


def check_range(frame: pd.DataFrame, column: str, values: Array, rule: str, good: NDArray[np.bool_]) -> None:
    """Raises ValueError for the first value that breaks a rule, with its row and column."""
    if not good.all():
        position = int(np.argmin(good))
        raise ValueError(
            f"{rule}, but it is {values[position]:g} in {row_of(frame, position)}, column {column!r}: correct the row, "
            "or leave it out with --where"
        )


def row_of(frame: pd.DataFrame, position: int) -> str:
    """Returns how errors name the row at a position, by its number in the file from 0."""
    return f"row {label(frame.index[position])}"


class TableRecord(laws_json.RecordPart):
    """What a prediction needs of every record; each law adds its schema and what else it reads."""

    roles: dict[str, str]
    level: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    refused: bool
    verdicts: list[Verdict]


def leaf_table(runs: Sequence[catalog.Run], roles: Mapping[str, str]) -> pd.DataFrame:
    """Returns a row for each leaf of the finished runs, with the columns arm, and parts/NAME for data=mixture."""
    rows = []
    for run in runs:
        parts, arm = run.config.get("data", {}).get("parts"), (run.config.get("study") or {}).get("arm")
        weights = {f"parts/{name}": weight for name, weight in parts.items()} if isinstance(parts, Mapping) else {}
        rows += [row | weights | {"arm": arm} for row in run.leaf_rows() if run.finished]
    return pd.DataFrame(rows)


def compare_rows(record: Row, rows: Sequence[Row], measured: Array) -> tuple[Json, list[str]]:
    """Returns the comparison of predicted rows with their measurements, see `compare`, and its printed lines."""
    answer = compare(rows, measured)
    return answer, comparison_lines(answer, len(rows), record["level"])


@dataclass(frozen=True)
class TableLaw:
    """A law that takes its table as it is.

    roles    of columns that --map may name
    options  those of CHOICES that the law has; --schedule and --steps are inputs of `predict_point`
    record   what a prediction needs of the record, and nothing else is read from a file
    fit      a table, columns by role and settings to the record less its verdicts, and these; raises ValueError for
             unusable rows
    lines    the printed lines of a record
    predict_rows   record, table and roles to {at, value, lo, hi} of each row, and the measured values or nan
    predict_point  record and inputs by name to such a prediction
    prediction_lines  the printed lines of a prediction by a record
    summarize  record, predicted rows and measured values to what compares them, and its printed lines
    read_runs  runs of a folder and columns by role to the table of a fit
    figures    predicted rows of the fitted table to functions that draw the figures of a page, by name
    """

    roles: tuple[str, ...]
    options: tuple[str, ...]
    record: type[TableRecord]
    fit: Callable[[pd.DataFrame, Mapping[str, str], Settings], tuple[Json, list[Verdict]]]
    lines: Callable[[Row], list[str]]
    predict_rows: Callable[[Row, pd.DataFrame, Mapping[str, str]], tuple[list[Json], Array]]
    predict_point: Callable[[Row, Row], Json]
    prediction_lines: Callable[[Row, Row], list[str]]
    summarize: Callable[[Row, Sequence[Row], Array], tuple[Json, list[str]]] = compare_rows
    read_runs: Callable[[Sequence[catalog.Run], Mapping[str, str]], pd.DataFrame] = leaf_table
    figures: Callable[[Sequence[Row]], dict[str, Callable[[], Chart]]] = lambda rows: {}

    def fit_table(self, frame: pd.DataFrame, roles: Mapping[str, str], settings: Settings) -> Json:
        """Fits the law to a table; returns its record. Raises ValueError for unusable rows."""
        record, verdicts = self.fit(frame, roles, settings)
        return laws_json.without_nonfinite(with_verdicts(record, verdicts) | {"roles": dict(roles)})


def law_named(name: str) -> TableLaw:
    """Returns the law that a package offers under a name."""
    law = import_offer(LAWS, name, f"--law {name}")()
    assert isinstance(law, TableLaw), f"an offer of {LAWS} must return a TableLaw, and {law!r} is none"
    return law


def parameter_lines(names: Sequence[str], values: Sequence[float], draws: Array, level: float, width: int) -> list[str]:
    """Returns the printed lines of parameters; `draws` (draws, names) are those of refits, if there are any."""
    ends, texts = np.transpose(interval(draws, level)) if len(draws) else (), [""] * len(names)
    for j, (lo, hi) in enumerate(ends):
        texts[j] = f"   {percent(level)} {format_interval(lo, hi, '.4g')}"
    return [f"  {name:<{width}} {value:.5g}{text}" for name, value, text in zip(names, values, texts, strict=True)]


def predictions(at: Sequence[Row], value: Array, draws: Array, level: float) -> list[Json]:
    """Returns {at, value, lo, hi} of each row; `draws` (draws, rows) are those of new runs, without which ends are
    None."""
    ends = np.transpose(interval(draws, level)).tolist() if len(draws) else [(None, None)] * len(value)
    rows = zip(at, value.tolist(), ends, strict=True)
    return [{"at": place, "value": middle, "lo": lo, "hi": hi} for place, middle, (lo, hi) in rows]


def run_fit(options: Row, written: Sequence[str]) -> ExitCode | None:
    """Runs `kleiber fit`, if a law of this kind is chosen, and returns the exit code; else returns None.

    options  values of the arguments of the command by name
    written  names of those that stand on the command line

    Raises ValueError for wrong options and unusable rows.
    """
    law, laws = options["law"], offers(LAWS)
    if law in laws:
        settings = Settings(*(options[name] for name in ("form", "route", "bootstrap", "seed", "level")))
        table = (options["map"], options["where"] or ())
        return fit(options["source"], law, *table, settings, options["json"], options["report"], written)
    check_choices(options)
    if near := difflib.get_close_matches(law, laws, n=1, cutoff=0.8):
        raise ValueError(f"--law {law}: did you mean {near[0]!r}?")
    return None


def check_choices(options: Row) -> None:
    """Raises ValueError for an option of CHOICES, which a law of another kind does not have."""
    if chosen := [f"--{name}" for name in CHOICES if options.get(name) is not None]:
        raise ValueError(f"{' and '.join(chosen)} must have --law {' or '.join(offers(LAWS))}, or be removed")


def check_options(law: str, options: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises ValueError for options that were written and have no effect on this law."""
    allowed = (*allowed, *law_named(law).options)
    unused = [f"--{name.replace('_', '-')}" for name in options if name not in allowed]
    if unused:
        raise ValueError(f"{', '.join(unused)} has no effect on the law {law}: remove it")


def select(
    source: Path, roles: Mapping[str, str], filters: Sequence[str],
    read_runs: Callable[[Sequence[catalog.Run], Mapping[str, str]], pd.DataFrame] = leaf_table,
) -> pd.DataFrame:  # fmt: skip
    """Returns the rows of a table, or of the runs of a folder, that satisfy all filters, with their numbers in it."""
    frame = read_runs(catalog.read_runs(source), roles) if source.is_dir() else read(source)
    frame = (frame if len(frame) else read(source)).reset_index(drop=True)
    for text in filters:
        frame = frame.loc[keep(frame, text, roles)]
    if not len(frame):
        raise ValueError(f"{source}: no row remains after --where {' and '.join(map(repr, filters))}")
    return frame


def roles_of(law: str, text: str | None) -> dict[str, str]:
    """Returns the columns by role of --map. Raises ValueError for a role that the law does not have."""
    roles = parse_map(text)
    check_roles(roles, law_named(law).roles)
    return roles


def fit(
    source: Path, name: str, map: str | None, filters: Sequence[str], settings: Settings, out: Path | None,
    page: Path | None = None, options: Sequence[str] = (),
) -> ExitCode:  # fmt: skip
    """Fits a law to a table, prints it and writes its record to `out`; returns 3 if the law is refused.

    page     file of the page of --report
    options  names of the options that were written

    Raises ValueError for wrong options and unusable rows.
    """
    check_options(name, options, FIT_OPTIONS)
    if not 0 < settings.level < 1:
        raise ValueError(f"--level {settings.level:g} must be > 0 and < 1")
    law, roles = law_named(name), roles_of(name, map)
    frame = select(source, roles, filters, law.read_runs)
    record = law.fit_table(frame, roles, settings)
    if out is not None:
        laws_json.write(record, out)
    if page is not None:
        write_page(page, f"{name} on {source.name}", law, record, frame)
    print_line("\n".join([*law.lines(record), *verdict_lines(record)]))
    return ExitCode.UNDECIDED if record["refused"] else ExitCode.DONE


def write_page(page: Path, title: str, law: TableLaw, record: Row, frame: pd.DataFrame) -> None:
    """Writes the page of a fit to a table: figures, verdicts and the printed lines."""
    from kleiber.charts.page import render_page

    charts = law.figures(law.predict_rows(record, frame, record["roles"])[0])
    drawn = {name: draw() for name, draw in charts.items()}
    make_folder(page.parent)
    write_text(page, render_page(title, drawn, verdicts=record["verdicts"], text="\n".join(law.lines(record))))
    print_line(f"report: {page}")


def read_record(path: Path) -> Json | None:
    """Returns the record of a law of this kind; None where the file contains another law or no JSON.

    Raises ValueError for missing and wrong keys.
    """
    try:
        schema = read_json(path, MAX_BYTES).get("schema")
    except ValueError:
        return None  # the reader of other laws explains what is wrong
    law = next((law for law in offers(LAWS) if schema == f"kleiber.{law}/1"), None)
    if law is None:
        return None
    try:
        content = law_named(law).record.model_validate_json(read_bytes(path, MAX_BYTES))
        return content.model_dump(by_alias=True) | {"law": law}
    except ValidationError as error:
        raise ValueError(f"{path}: {laws_json.problems(error)}; create the file with `kleiber fit --json`") from None


def predict(
    record: Row, words: Sequence[str], options: Row, max_decades: float, written: Sequence[str]
) -> tuple[Json, list[str]]:  # fmt: skip
    """Predicts a point, or the rows of the table --on; returns what --json writes, and the printed lines.

    words    inputs of a point as NAME=NUMBER
    options  values of the arguments of the command by name
    written  names of those that stand on the command line

    Raises ValueError for wrong options, unusable rows, and points more than `max_decades` outside the fitted runs.
    """
    law = law_named(record["law"])
    check_options(record["law"], written, PREDICT_OPTIONS)
    if options["on"] is None:
        inputs = {name: options[name] for name in CHOICES if options.get(name) is not None}
        answer = law.predict_point(record, parse_values(words, "predict") | inputs)
        rows, lines = [answer], law.prediction_lines(record, answer)
    else:
        roles = {**record["roles"], **roles_of(record["law"], options["map"])}
        frame = select(options["on"], roles, options["where"] or (), law.read_runs)
        rows, measured = law.predict_rows(record, frame, roles)
        comparison, summary = law.summarize(record, rows, measured)
        answer = comparison | {"predictions": rows}
        numbered = zip(frame.index, rows, strict=False)  # a law that has no lines of rows may predict some of them
        lines = [f"row {label(i)}: {line}" for i, row in numbered for line in law.prediction_lines(record, row)]
        lines += summary
    for row in rows:
        if row.get("decades", 0.0) > max_decades:
            raise ValueError(
                f"{', '.join(f'{name}={value:g}' for name, value in row['at'].items())}: {row['decades']:.1f} decades "
                f"outside the rows, above the limit of {max_decades:g}; add --force to predict anyway"
            )
    return answer, lines


def compare(rows: Sequence[Row], measured: Array) -> Json:
    """Returns mean absolute error, bias, coverage and rank correlation over the rows with a measurement; else nothing.

    bias      mean of prediction minus measurement
    spearman  rank correlation with its 90% interval over resampled rows; from three rows on
    """
    measurable = np.flatnonzero(np.isfinite(measured)).tolist()
    if not len(measurable):
        return {}
    target, value = measured[measurable], np.array([rows[i]["value"] for i in measurable])
    answer: Json = {"mae": float(np.abs(value - target).mean()), "bias": float((value - target).mean())}
    inside = [rows[i]["lo"] <= measured[i] <= rows[i]["hi"] for i in measurable if rows[i]["lo"] is not None]
    answer["coverage"] = float(np.mean(inside)) if len(inside) == len(measurable) else None
    if len(measurable) >= 3:
        answer["spearman"] = rank_correlation(value, target)
    return answer


def rank_correlation(value: Array, target: Array, seed: int = 0) -> Json:
    """Returns Spearman's rank correlation of two columns, with its 90% interval over resampled rows."""
    drawn = np.random.default_rng(seed).integers(len(value), size=(RESAMPLES, len(value)))

    def correlation(rows: np.ndarray) -> Array:
        ranks = [pd.DataFrame(column[rows].T).rank().to_numpy() for column in (value, target)]
        left, right = (each - each.mean(0) for each in ranks)
        with np.errstate(invalid="ignore"):
            return (left * right).sum(0) / np.sqrt((left**2).sum(0) * (right**2).sum(0))

    middle = correlation(np.arange(len(value))[None])[0]
    ends = [float(end) for end in np.nanquantile(correlation(drawn), [0.05, 0.95])]
    return laws_json.without_nonfinite({"value": float(middle), "lo": ends[0], "hi": ends[1]})


def comparison_lines(answer: Row, count: int, level: float) -> list[str]:
    """Returns the printed lines of `compare` over a number of rows."""
    if "mae" not in answer:
        return []
    out = f"{count} rows: mean absolute error {answer['mae']:.4g}, bias {answer['bias']:+.4g}"
    if answer["coverage"] is not None:
        out += f"; {percent(level)} prediction interval contains {answer['coverage']:.0%} of them"
    rank = answer.get("spearman")
    if rank and rank["value"] is not None:
        out += f"; rank correlation {rank['value']:.3f} 90% {format_interval(rank['lo'], rank['hi'], '.3f')}"
    return [out]
