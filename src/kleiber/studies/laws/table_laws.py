"""Laws that decide from a table: `mixture` and `downstream`. Fits, writes, reads and applies them for the commands.

Each law is a module with `ROLES`, `fit_table`, `lines`, and a module of predictions with `predict_rows`,
`predict_point`, `prediction_line` and `RECORD`. Their records have a schema of their own, such as kleiber.mixture/1.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from kleiber.config.errors import ExitCode
from kleiber.records import catalog
from kleiber.records.files import read_json, write_json
from kleiber.records.regular_files import read_bytes
from kleiber.records.terminal import print_line
from kleiber.studies.laws import downstream, downstream_prediction, laws_json, mixture, mixture_prediction
from kleiber.studies.laws.filters import check_roles, keep, parse_map, parse_values
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import label, read
from kleiber.studies.laws.table_roles import Settings
from kleiber.studies.laws.uncertainty import percent
from kleiber.studies.laws.verdicts import verdict_lines
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

FITTING: dict[str, ModuleType] = {"downstream": downstream, "mixture": mixture}
PREDICTING: dict[str, ModuleType] = {"downstream": downstream_prediction, "mixture": mixture_prediction}
MAX_BYTES = laws_json.MAX_BYTES
RESAMPLES = 1000  # of the rows, for the interval of a rank correlation
FIT_OPTIONS = ("source", "law", "map", "where", "bootstrap", "seed", "level", "json", "form", "route")
PREDICT_OPTIONS = ("laws_json", "at", "on", "map", "where", "max_decades", "force", "json")


def run(options: Row, written: Sequence[str]) -> ExitCode | None:
    """Runs `kleiber fit` or `predict`, if a law of this kind is chosen, and returns the exit code; else returns None.

    options  values of the arguments of the command by name
    written  names of those that stand on the command line

    Raises ValueError for wrong options and unusable rows.
    """
    table = (options["map"], options["where"] or ())
    if "source" in options:
        if options["law"] not in FITTING:
            if options["form"] or options["route"]:
                raise ValueError(f"--form and --route are options of --law {' and '.join(FITTING)}: remove them")
            if near := difflib.get_close_matches(options["law"], FITTING, n=1, cutoff=0.8):
                raise ValueError(f"--law {options['law']}: did you mean {near[0]!r}?")
            return None
        choices = (options[name] for name in ("form", "route", "bootstrap", "seed", "level"))
        return fit(options["source"], options["law"], *table, Settings(*choices), options["json"], written)
    if (record := read_record(options["laws_json"])) is None:
        return None
    if record["refused"] and not options["force"]:
        print_line("\n".join(verdict_lines(record)), err=True)
        print_line("a refused law predicts nothing: add --force to predict anyway", err=True)
        return ExitCode.UNDECIDED
    most = float("inf") if options["force"] else options["max_decades"]
    predict(record, options["at"] or (), options["on"], *table, most, options["json"], written)
    return ExitCode.DONE


def check_options(law: str, options: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises ValueError for options that were written and have no effect on this law."""
    unused = [f"--{name.replace('_', '-')}" for name in options if name not in allowed]
    if law != "downstream" and "route" in options:
        unused.append("--route")
    if unused:
        raise ValueError(f"{', '.join(unused)} has no effect on the law {law}: remove it")


def select(source: Path, roles: Mapping[str, str], filters: Sequence[str]) -> pd.DataFrame:
    """Returns the rows of a table that satisfy all filters, with their numbers in the file."""
    frame = (_runs_table(source) if source.is_dir() else read(source)).reset_index(drop=True)
    for text in filters:
        frame = frame.loc[keep(frame, text, roles)]
    if not len(frame):
        raise ValueError(f"{source}: no row remains after --where {' and '.join(map(repr, filters))}")
    return frame


def _runs_table(folder: Path) -> pd.DataFrame:
    """Returns the finished runs of a folder as `read` does, with the columns arm, and parts/NAME for data=mixture."""
    rows = []
    for run in catalog.read_runs(folder):
        parts, arm = run.config.get("data", {}).get("parts"), (run.config.get("study") or {}).get("arm")
        weights = {f"parts/{name}": weight for name, weight in parts.items()} if isinstance(parts, Mapping) else {}
        rows += [row | weights | {"arm": arm} for row in run.leaf_rows() if run.finished]
    return pd.DataFrame(rows) if rows else read(folder)


def roles_of(law: str, text: str | None) -> dict[str, str]:
    """Returns the columns by role of --map. Raises ValueError for a role that the law does not have."""
    roles = parse_map(text)
    check_roles(roles, FITTING[law].ROLES)
    return roles


def fit(
    source: Path, law: str, map: str | None, filters: Sequence[str], settings: Settings, out: Path | None,
    options: Sequence[str] = (),
) -> ExitCode:  # fmt: skip
    """Fits a law to a table, prints it and writes its record to `out`; returns 3 if the law is refused.

    options  names of the options that were written

    Raises ValueError for wrong options and unusable rows.
    """
    check_options(law, options, FIT_OPTIONS)
    if not 0 < settings.level < 1:
        raise ValueError(f"--level {settings.level:g} must be > 0 and < 1")
    roles = roles_of(law, map)
    frame = select(source, roles, filters)
    record = laws_json.without_nonfinite(FITTING[law].fit_table(frame, roles, settings) | {"roles": roles})
    if out is not None:
        laws_json.write(record, out)
    print_line("\n".join([*FITTING[law].lines(record), *verdict_lines(record)]))
    return ExitCode.UNDECIDED if record["refused"] else ExitCode.DONE


def read_record(path: Path) -> Json | None:
    """Returns the record of a law of this kind; None where the file contains another law or no JSON.

    Raises ValueError for missing and wrong keys.
    """
    try:
        schema = read_json(path, MAX_BYTES).get("schema")
    except ValueError:
        return None  # the reader of other laws explains what is wrong
    laws = {f"kleiber.{law}/1": module for law, module in PREDICTING.items()}
    if not isinstance(schema, str) or schema not in laws:
        return None
    model: type[BaseModel] = laws[schema].RECORD
    try:
        return model.model_validate_json(read_bytes(path, MAX_BYTES)).model_dump(by_alias=True) | {"law": schema[8:-2]}
    except ValidationError as error:
        raise ValueError(f"{path}: {laws_json.problems(error)}; create the file with `kleiber fit --json`") from None


def predict(
    record: Row, words: Sequence[str], on: Path | None, map: str | None, filters: Sequence[str], max_decades: float,
    out: Path | None, options: Sequence[str] = (),
) -> None:  # fmt: skip
    """Predicts a point or the rows of a table, prints the predictions and writes them to `out`.

    Raises ValueError for wrong options, unusable rows, and points more than `max_decades` outside the fitted runs.
    """
    law, module = record["law"], PREDICTING[record["law"]]
    check_options(law, options, PREDICT_OPTIONS)
    if on is None:
        if map is not None or filters:
            raise ValueError("--map and --where select from the table of --on TABLE, but --on is missing")
        answer = module.predict_point(record, parse_values(words, "predict"))
        rows, lines = [answer], module.prediction_lines(record, answer)
    elif words:
        raise ValueError(f"{' '.join(words)} and --on {on}: give either a point or a table, not both")
    else:
        roles = {**record["roles"], **roles_of(law, map)}
        frame = select(on, roles, filters)
        rows, measured = module.predict_rows(record, frame, roles)
        answer = compare(rows, measured) | {"predictions": rows}
        numbered = zip(frame.index, rows, strict=True)
        lines = [f"row {label(i)}: {line}" for i, row in numbered for line in module.prediction_lines(record, row)]
        lines += comparison_lines(answer, record["level"])
    for row in rows:
        if row.get("decades", 0.0) > max_decades:
            raise ValueError(
                f"{', '.join(f'{name}={value:g}' for name, value in row['at'].items())}: {row['decades']:.1f} decades "
                f"outside the rows, above the limit of {max_decades:g}; add --force to predict anyway"
            )
    if out is not None:
        write_json(out, answer)
    print_line("\n".join(lines))


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


def comparison_lines(answer: Row, level: float) -> list[str]:
    """Returns the printed lines of `compare`."""
    if "mae" not in answer:
        return []
    out = f"{len(answer['predictions'])} rows: mean absolute error {answer['mae']:.4g}, bias {answer['bias']:+.4g}"
    if answer["coverage"] is not None:
        out += f"; {percent(level)} prediction interval contains {answer['coverage']:.0%} of them"
    rank = answer.get("spearman")
    if rank and rank["value"] is not None:
        out += f"; rank correlation {rank['value']:.3f} 90% {format_interval(rank['lo'], rank['hi'], '.3f')}"
    return [out]
