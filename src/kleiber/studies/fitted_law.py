"""A law fitted to a table of runs: what `kleiber fit` prints and writes, and what `kleiber.fit` returns."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.records.files import read_json
from kleiber.studies.laws import (
    analysis,
    hyperparameter_record,
    laws_json,
    optimum_prediction,
    prediction,
    serving,
    table,
)
from kleiber.studies.laws.filters import check_roles, parse_point
from kleiber.studies.laws.headline import failures
from kleiber.studies.laws.hyperparameters import HyperparameterLaw
from kleiber.studies.laws.law import Function, Law, as_law
from kleiber.studies.laws.noise_model import EXTRA
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

SCHEMA = Path(table.__file__).with_name("law.schema.json")


@dataclass(frozen=True)
class FittedLaw:
    """A law with its estimates, intervals, backtests and verdicts. Prints as `kleiber fit` does.

    record  content of laws.json
    form    the law itself, whose `predict` takes any parameters
    rows    the table it was fitted to; None for a law that was read from laws.json
    """

    record: Json
    form: Law
    rows: table.Table | None = None

    @property
    def params(self) -> dict[str, Json]:
        """Estimate of each parameter: value, lo, hi, identified, method."""
        return self.record["params"]

    @property
    def derived(self) -> dict[str, Json]:
        """Estimate of each derived quantity, such as the exponent a_opt of the optimal allocation."""
        return self.record["derived"]

    @property
    def verdicts(self) -> list[Json]:
        """What limits the law: code, level (note, warn or refuse) and text of each verdict."""
        return self.record["verdicts"]

    @property
    def accepted(self) -> bool:
        """Whether the law is not refused and all of its parameters are identified."""
        return analysis.accepted(self.record)

    def predict(self, max_decades: float = prediction.MAX_DECADES, **inputs: float) -> Json:
        """Predicts the target at one point, such as `predict(N=1e8, D=2e9)`.

        For law="hyperparameter" these are the optimal hyperparameters, see `laws.optimum_prediction.predict`. Otherwise
        returns value, lo and hi (confidence interval of the law), decades (distance from the fitted rows, in factors of
        10) and, unless the law was fitted with bootstrap=0, run_lo and run_hi (prediction interval of a new run).
        Raises ValueError for other inputs than the law has, and for a point that is farther than `max_decades`.
        """
        answer = predict(self.record, self.form, inputs, max_decades)
        if "refused" in answer:
            raise ValueError(f"{inputs}: {answer['refused']}; a larger max_decades predicts anyway")
        return answer

    def allocate(
        self, serve: float, L: float | None = None, C: float | None = None, max_params: float | None = None,
        max_decades: float = prediction.MAX_DECADES,
    ) -> Json:  # fmt: skip
        """Returns the model with the least FLOPs of training and of serving `serve` tokens, see `serving.allocate`.

        L, C        the loss to reach, or the FLOPs of training and serving: one of them
        max_params  largest number of parameters
        """
        at = {name: value for name, value in {"L": L, "C": C}.items() if value is not None}
        demand = serving.check_demand(self.form, at, serve, max_params)
        return serving.allocate(self.record, self.form, demand, max_decades)

    def figures(self) -> dict[str, Callable[[], Chart]]:
        """Functions that draw the figures of the law, by name. Those of the fitted rows need `rows`.

        Raises ValueError if a plotting package is not installed.
        """
        from kleiber.studies import law_report

        return law_report.charts_of(self.rows, self.form, self.record)

    def plot(self, figure: str | None = None) -> Chart:
        """Draws one of `figures()`; None: the first, which shows observed and predicted values where there are rows.

        Raises ValueError for a figure that this law does not have.
        """
        charts = self.figures()
        name = figure or next(iter(charts), "")
        if name not in charts:
            raise ValueError(f"figure={figure!r} must be one of {', '.join(charts) or 'none: this law has no figure'}")
        return charts[name]()

    def write(self, path: str | Path) -> None:
        """Writes laws.json, which `load_law` and `kleiber predict` read."""
        laws_json.write(self.record, path)

    def __str__(self) -> str:
        from kleiber.studies.law_report import lines

        return "\n".join(lines(self.record))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def load(path: str | Path, law: str | None = None) -> FittedLaw:
    """Reads a law from laws.json.

    law  FILE.py:FUNCTION, if the law was fitted with it and you trust the file

    Raises ValueError for a file that is missing or has other content than one law.
    """
    checked = laws_json.read(path, law)
    if "laws" in checked:
        raise ValueError(f"{path} has one law for each value of {checked['by']}: fit each of them to a file of its own")
    record = read_json(Path(path))
    missing = [key for key in read_json(SCHEMA)["$defs"]["law"]["required"] if key not in record]
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing; create the file with `kleiber fit --json`")
    return FittedLaw(record, laws_json.law_of(checked, law))


def fit(
    rows: str | Path | pd.DataFrame,
    law: str | Function | Law = "chinchilla",
    *,
    map: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    fix: Mapping[str, float] | None = None,
    sigma: str | None = None,
    delta: float | None = None,
    **options: object,
) -> FittedLaw:
    """Fits a scaling law to a table of runs.

    rows     DataFrame, or path of a .csv, .jsonl or .parquet file or of a folder of runs
    law      name of a shipped law, FILE.py:FUNCTION, or a function of inputs and keyword-only parameters
    map      column by role, such as {"N": "params", "D": "tokens", "L": "loss"}
    where    filters of rows, such as "loss < 4 and N >= 1e8"
    fix      parameters that are held at a value
    sigma    column of the standard errors of the target
    delta    Huber delta on the scale of the residuals; None: 0.001
    options  further fields of `kleiber.studies.laws.analysis.Options`: loss_fn, space, bootstrap, cluster, seed, level,
             backtest, predict, exclude, rank, max_decades, at

    Raises ValueError for wrong options and unusable rows.
    """
    fields = analysis.Options.__dataclass_fields__
    for name in options:
        if name not in fields:
            raise ValueError(f"{name} is not an option of fit: use one of {', '.join(fields)}")
    source = rows if isinstance(rows, pd.DataFrame) else Path(rows)
    form = law if isinstance(law, Law) else laws_json.law_by_option(law) if isinstance(law, str) else as_law(law)
    form = form.fix(dict(fix or {}))
    if isinstance(source, Path) and source.is_dir():
        options.setdefault("cluster", "trunk")
    settings = analysis.Options(**{"delta": 1e-3 if delta is None else delta, **options})  # type: ignore[arg-type]
    check_options(form, settings, delta, sigma)
    selected = select_rows(source, map or {}, where, form, sigma)
    return fit_table(selected, form, law if isinstance(law, str) else form.name, settings)


def select_rows(
    source: Path | pd.DataFrame, columns: Mapping[str, str], where: Sequence[str], law: Law, sigma: str | None = None,
    measured: bool = True,
) -> table.Table:  # fmt: skip
    """Returns the columns of the law's inputs and target; of a folder only finished runs, with default columns.

    columns   column by role
    sigma     column of the standard errors, if there are any
    measured  whether the table must have the target; without one, the table of a law of N and D has no role L

    Raises ValueError for an unknown role, a missing column and unusable rows.
    """
    roles = dict.fromkeys([*law.inputs, *law.swept, "N", "D", "C", "L", *EXTRA])
    check_roles(columns, roles)
    from_runs = isinstance(source, Path) and source.is_dir()
    usual, finished = (table.OF_RUNS, ("status = finished",)) if from_runs else ({}, ())
    frame = source if isinstance(source, pd.DataFrame) else table.read(source)
    errors = {"sigma": sigma} if sigma else {}
    swept = [role for role in law.swept if role in columns or role in frame.columns]
    if from_runs and law.swept:
        usual = {**usual, **table.SWEPT_OF_RUNS}
        swept = list(dict.fromkeys([*swept, *table.SWEPT_OF_RUNS]))
    if not measured and not (from_runs or law.swept or "L" in columns or {"L", "loss"} & set(frame.columns)):
        unmeasured = table.load(frame.assign(L=1.0), {**columns, "L": "L"}, where, law.inputs)
        unmeasured.roles.pop("L")
        return unmeasured
    return table.load(frame, {**usual, **columns, **errors}, (*finished, *where), (*law.inputs, *swept))


def fit_table(rows: table.Table, form: Law, name: str, options: analysis.Options) -> FittedLaw:
    """Fits one table. A law from a file is recorded under its `name`, FILE.py:FUNCTION.

    Raises ValueError for unusable rows, and if laws are to be ranked that cannot be.
    """
    if isinstance(form, HyperparameterLaw):
        form, record = hyperparameter_record.analyze(rows, form, options)
        return FittedLaw(laws_json.without_nonfinite(record), form, rows)
    record = analysis.analyze(rows, replace(form, name=name) if ".py:" in name else form, options)
    if options.rank and not record.get("ranking"):
        raise ValueError(
            f"--rank ranks laws of N and D by their error at the largest compute; {name} is not such a law, or this "
            "table has too few rows or no compute: remove --rank"
        )
    return FittedLaw(laws_json.without_nonfinite(record), form, rows)


def fit_groups(
    rows: table.Table, by: str | None, form: Law, name: str, options: analysis.Options
) -> dict[str, FittedLaw]:
    """Fits each group of rows with the same value of the column `by`; None: all rows, as the group "".

    Raises ValueError, which names the group, for unusable rows.
    """
    laws = {}
    for group, part in (rows.split(by) if by else {"": rows}).items():
        try:
            laws[group] = fit_table(part, form, name, options)
        except ValueError as error:
            raise ValueError(f"{by} = {group}: {error}" if by else str(error)) from error
    return laws


def check_options(form: Law, options: analysis.Options, delta: float | None, sigma: str | None) -> None:
    """Raises ValueError for options that contradict each other or have no effect on this law.

    delta, sigma  the values of --delta and --sigma, if they were given
    """
    analysis.check_options(form, options, delta)
    if not isinstance(form, HyperparameterLaw):
        return
    refused = {
        "--fix": form.fixed, "--sigma": sigma, "--at": options.at, "--rank": options.rank, "--loss-fn": options.loss_fn,
        "--space": options.space, "--exclude": options.exclude != "none",
        "--cluster": options.cluster not in (None, "trunk"),
    }  # fmt: skip
    without_effect = [name for name, value in refused.items() if value]
    if without_effect:
        raise ValueError(
            f"{', '.join(without_effect)} has no effect on the law {form.name}, which has a fit of its own: remove it"
        )


def predict(record: Row, form: Law, at: Mapping[str, float], max_decades: float = prediction.MAX_DECADES) -> Json:
    """Predicts at one point from an entry of laws.json: the target of the law, or the optimal hyperparameters.

    The key "failures" lists what the law failed at when it was fitted, see `laws.headline.failures`.
    """
    if isinstance(form, HyperparameterLaw):
        return optimum_prediction.predict(record, form, at, max_decades)
    return {**prediction.predict(record, form, at, max_decades), "failures": failures(record)}


def predict_point(record: Row, form: Law, words: Sequence[str], max_decades: float) -> tuple[Json, list[str]]:
    """Predicts at the point that words such as N=1e9 name; returns the answer and its lines, failures included."""
    answer = predict(record, form, parse_point(",".join(words)), max_decades)
    if "refused" in answer:
        raise ValueError(f"{' '.join(words)}: {answer['refused']}; add --force to predict anyway")
    cautions = [f"caution: {failure}" for failure in answer.get("failures", ())]
    lines = optimum_prediction if isinstance(form, HyperparameterLaw) else prediction
    return answer, [lines.prediction_line(answer, record["level"]), *cautions]


def compare(record: Row, form: Law, rows: table.Table, max_decades: float) -> tuple[Json, list[str]]:
    """Predicts the rows of a table that a recorded law was not fitted to, and compares them with their losses.

    Returns the content of `kleiber predict --on --json`, and the printed lines. The content has mae, bias and coverage
    where the table has the losses, and predictions, each with value, and lo and hi, the prediction interval of a new
    run; law_lo and law_hi are the confidence interval of the law. Raises ValueError for rows more than `max_decades`
    outside the fitted rows.
    """
    if isinstance(form, HyperparameterLaw):
        _, groups, _ = hyperparameter_record.read_groups(rows, form)
        comparison = optimum_prediction.compare_with_sweep(record, form, groups, max_decades)
        lines = [optimum_prediction.group_line(row) for row in comparison["groups"]]
        predictions = [{"value": row["lr"], "lo": None, "hi": None, **row} for row in comparison["groups"]]
        content = {"coverage": comparison["coverage"], "excess": comparison["mare"], "predictions": predictions}
        return content, [*lines, optimum_prediction.summary_line(comparison, len(groups))]
    measured = "L" in rows.roles
    comparison = prediction.compare_with_rows(record, form, rows, max_decades)
    if not measured:
        cells = comparison["cells"]
        lines = [prediction.prediction_line(cell, record["level"]) for cell in cells]
        return {"predictions": [_with_band(cell, measured) for cell in cells]}, lines
    errors = np.array([cell["value"] - cell["target"] for cell in comparison["cells"]])
    content = {
        "mae": float(np.abs(errors).mean()), "bias": float(errors.mean()), "coverage": comparison["run_coverage"],
        "predictions": [_with_band(cell, measured) for cell in comparison["cells"]],
    }  # fmt: skip
    return content, prediction.comparison_lines(comparison, record["level"])


def _with_band(cell: Row, measured: bool) -> Json:
    """Returns a predicted cell with lo and hi, the prediction interval of a new run, and law_lo and law_hi."""
    row: Json = {"at": cell["at"], "value": cell["value"], "lo": cell.get("run_lo"), "hi": cell.get("run_hi")}
    row |= {"law_lo": cell["lo"], "law_hi": cell["hi"], "decades": cell["decades"]}
    return row | ({"observed": cell["target"], "runs": cell["runs"]} if measured else {})


def select_group(collection: Row, words: Sequence[str]) -> tuple[Json, list[str]]:
    """Returns the law of the group that COLUMN=VALUE in `words` chooses, and the other words.

    Raises ValueError if no word, or more than one, chooses a group.
    """
    by, laws = collection["by"], collection["laws"]
    chosen = [argument.partition("=")[2] for argument in words if argument.partition("=")[0] == by]
    if len(chosen) != 1 or chosen[0] not in laws:
        raise ValueError(f"this file has one law for each value of {by}: add {by}=VALUE, one of {', '.join(laws)}")
    return laws[chosen[0]], [argument for argument in words if argument.partition("=")[0] != by]
