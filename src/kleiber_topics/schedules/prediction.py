"""Predictions of a law of schedules from its record: the loss along a curve of learning rates, with two intervals.

The interval of the law holds if the law does. The band of a new run also has the noise of a curve, the error of the law
for a schedule that it was not fitted to, and its error outside the fitted steps and sums of rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, FiniteFloat, model_validator

from kleiber.config import build, read_choice
from kleiber.studies import (
    POWER,
    Array,
    TableRecord,
    decades_outside,
    distance_text,
    numbers,
    percent,
    required,
    select,
    student_quantile,
)
from kleiber.types import Config, Json, NonNegative, Row, format_interval
from kleiber_topics.schedules.curves import read_curves
from kleiber_topics.schedules.forms import FORMS, RatePath, rate_path, rate_sums

GRID = 2_000  # steps at which the rates of a schedule are computed
SHOWN = 100  # points of a predicted curve that the record of a prediction has
BAND_DRAWS = 200  # parameters that a band is computed from
SAME_PEAK = 1.1  # a cosine that is logged first after its warm-up has a smaller peak
FREE = 1_000  # degrees of freedom of the noise that a band assumes
AWAY = 0.01  # error of the log loss one decade of steps outside the rows


def losses_of(record: Row, path: RatePath, peak: float) -> dict[str, Array]:
    """Returns value, lo, hi (of the law), run_lo, run_hi (of a new run) and decades at each point of a path."""
    form = FORMS[record["form"]]
    value = form.losses(path, values_of(record))[0]
    peaks = np.full(len(path.steps), peak)
    far = decades_outside(record["domain"], {"step": path.steps, "lr_sum": path.sums, "lr": peaks})
    out = {"value": value, "decades": far}
    draws = np.array(record["draws"])[:BAND_DRAWS]
    if not len(draws):
        return out
    tail = (1 - record["level"]) / 2
    lo, hi = np.quantile(form.losses(path, draws), [tail, 1 - tail], axis=0)
    lo, hi = np.minimum(lo, value), np.maximum(hi, value)
    extra = student_quantile(FREE, record["level"]) * run_sd(record["scatter"], far)
    below, above = np.hypot(np.log(value / lo), extra), np.hypot(np.log(hi / value), extra)
    return out | {"lo": lo, "hi": hi, "run_lo": value * np.exp(-below), "run_hi": value * np.exp(above)}


def values_of(record: Row) -> Array:
    """Returns the fitted parameters of a record, (1, params)."""
    return np.array([list(record["params"].values())])


def run_sd(scatter: Mapping[str, float], decades: Array) -> Array:
    """Returns the standard deviation of the log loss of a new run around the law."""
    return np.sqrt(scatter["noise"] ** 2 + scatter["transfer"] ** 2 + (AWAY * decades**POWER) ** 2)


def predict_schedule(record: Row, steps: Array, rates: Array) -> Json:
    """Predicts the loss after the last step of a schedule, and the curve until there.

    steps, rates  at which the learning rate is known, and its values

    Returns at (steps and the peak rate lr), value, lo, hi, run_lo, run_hi, decades, and curve, a list of the same
    numbers at up to 100 steps inside the fitted range. Raises ValueError for steps that are too few.
    """
    if len(steps) < 2 or not rates.max() > 0 or not (np.diff(steps) > 0).all() or not (rates >= 0).all():
        raise ValueError("a schedule needs two or more increasing steps, and learning rates >= 0 that are not all 0")
    peak = float(rates.max())
    begin = min(max(record["domain"]["step"][0], float(steps[0])), float(steps[-1]))
    begin = max(begin, float(steps[1]) if rate_sums(steps, rates)[0] == 0 else begin)
    at = np.unique(np.linspace(begin, float(steps[-1]), SHOWN))
    columns = losses_of(record, rate_path(steps, rates, at), peak)
    last = {name: float(column[-1]) for name, column in columns.items()}
    shown = {"step": at, "lr": np.interp(at, steps, rates), **columns}
    curve = [{name: float(column[i]) for name, column in shown.items()} for i in range(len(at))]
    empty = {"lo": None, "hi": None}
    return {"at": {"steps": float(steps[-1]), "lr": peak}, **empty, **last, "curve": curve}


def predict_rows(record: Row, frame: pd.DataFrame, roles: Mapping[str, str]) -> tuple[list[Json], Array]:
    """Predicts the rows of curves; returns the predictions, and the measured losses or nan.

    Of a curve with losses, only their rows are predicted. Each has run, at (step and peak rate), value, lo and hi (band
    of a new run), law_lo and law_hi (interval of the law), decades, and observed where there is a loss.
    """
    rows: list[Json] = []
    for curve in read_curves(frame, roles, fitted=False):
        measured, peak = curve.observed, float(curve.rates.max())
        at = curve.at if len(measured) else curve.steps[curve.start :]
        columns = losses_of(record, rate_path(curve.steps, curve.rates, at), peak)
        names = {"run_lo": "lo", "run_hi": "hi", "lo": "law_lo", "hi": "law_hi"}
        shown = {names.get(name, name): column for name, column in columns.items()}
        shown |= {"observed": measured} if len(measured) else {}
        rows += [
            {"run": curve.name, "at": {"step": float(step), "lr": peak}, "lo": None, "hi": None,
             **{name: float(column[i]) for name, column in shown.items()}}
            for i, step in enumerate(at)
        ]  # fmt: skip
    return rows, np.array([row.get("observed", np.nan) for row in rows])


def summarize(record: Row, rows: Sequence[Row], measured: Array) -> tuple[Json, list[str]]:
    """Compares predictions with measured losses; returns what --json adds to them, and the printed lines.

    mae, bias    mean of |value - observed| and of value - observed over all rows
    coverage     fraction of the rows inside lo and hi
    curves       the same numbers for each curve, and held, whether at least `level` of its rows are inside
    """
    level = record["level"]
    band, lines = f"{percent(level)} band of a new run", []
    groups = {name: list(part) for name, part in groupby(rows, key=lambda row: row["run"])}
    compared = {name: part for name, part in groups.items() if "observed" in part[0]}
    curves = [{"run": name, "rows": len(part), **_errors(part, level)} for name, part in compared.items()]
    for row in curves:
        covers = (
            "no band" if row["coverage"] is None else f"{band} contains {row['coverage']:.0%} of {row['rows']} rows"
        )
        lines.append(f"{row['run']}: mean absolute error {row['mae']:.4f}, bias {row['bias']:+.4f}; {covers}")
    if not curves:
        last = [part[-1] for part in groups.values()]
        lines = [f"{row['run']}: {row['value']:.5g} at step {row['at']['step']:g}{_ends(row, band)}" for row in last]
        return {"level": level, "curves": []}, lines
    total = _errors([row for part in compared.values() for row in part], level)
    total.pop("held")
    covers = "" if total["coverage"] is None else f"; {band} contains {total['coverage']:.0%} of all rows"
    covers += f", and holds {sum(bool(row['held']) for row in curves)} of the curves" if covers else ""
    lines.append(f"{len(curves)} curves: mean absolute error {total['mae']:.4f}, bias {total['bias']:+.4f}{covers}")
    return {**total, "level": level, "curves": curves}, lines


def _errors(rows: Sequence[Row], level: float) -> Json:
    errors = np.array([row["value"] - row["observed"] for row in rows])
    out: Json = {"mae": float(np.abs(errors).mean()), "bias": float(errors.mean()), "coverage": None, "held": None}
    if rows[0]["lo"] is not None:
        out["coverage"] = float(np.mean([row["lo"] <= row["observed"] <= row["hi"] for row in rows]))
        out["held"] = out["coverage"] >= level
    return out


def _ends(row: Row, band: str) -> str:
    return "" if row["lo"] is None else f", {band} {format_interval(row['lo'], row['hi'], '.5g')}"


def schedule_rates(record: Row, name: str, values: Mapping[str, float]) -> tuple[Array, Array]:
    """Returns steps and learning rates of a schedule of kleiber, or of a table of rates.

    name    a choice of the group `schedule`, or a file with the columns step and lr
    values  steps and lr, the peak rate, and arguments of the schedule, such as decay; none with a file

    Raises ValueError for a missing length or peak rate, and for unknown arguments.
    """
    if not Path(name).suffix:
        values, steps, peak = length_and_peak(record, name, values)
        return rates_of(schedule_node(name, values), steps, peak)
    if values:
        raise ValueError(f"--schedule {name} is a table of rates: remove {', '.join(values)}")
    frame = select(Path(name), {}, ())
    step, lr = (numbers(frame, required(frame, {}, role)) for role in ("step", "lr"))
    return step, lr


def length_and_peak(record: Row, name: str, values: Mapping[str, float]) -> tuple[dict[str, float], int, float]:
    """Returns the arguments of a schedule, its steps, and its peak rate. Raises ValueError as `schedule_rates`."""
    arguments = {**values}
    steps, (low, high) = int(arguments.pop("steps", 0)), record["domain"]["lr"]
    if steps < 2:
        raise ValueError(f"--schedule {name} needs the length of the run in steps, such as --steps 24000")
    if "lr" not in values and high > SAME_PEAK * low:
        raise ValueError(f"the fitted runs have peak rates from {low:g} to {high:g}: add lr=RATE")
    return arguments, steps, arguments.pop("lr", high)


def schedule_node(name: str, values: Mapping[str, float]) -> Json:
    """Returns the config of a schedule. Raises ValueError for an argument that it does not have."""
    node = read_choice("schedule", name)
    if unknown := [each for each in values if each not in node]:
        allowed = ", ".join(each for each in node if each != "_target_")
        raise ValueError(f"{unknown[0]}={values[unknown[0]]:g} is no argument of this schedule: {allowed}")
    return node | {each: int(value) if value.is_integer() else value for each, value in values.items()}


def rates_of(node: Config, steps: int, peak: float) -> tuple[Array, Array]:
    """Returns steps and learning rates of a run with the schedule of a config."""
    schedule = build(node)
    grid = np.unique(np.round(np.linspace(1, steps, min(steps, GRID)))).astype(int)
    factors = [schedule(int(step) - 1, steps) for step in grid]
    return grid.astype(np.float64), peak * np.array(factors, dtype=np.float64)


def schedule_line(answer: Row, level: float) -> str:
    """Formats what `predict_schedule` returns as a line."""
    at = f"{answer['at']['steps']:g} steps, peak rate {answer['at']['lr']:g}"
    far = distance_text(answer["decades"])
    if answer["lo"] is None:
        return f"{at}: {answer['value']:.5g}, no interval, {far}"
    run, law = (format_interval(answer[f"{kind}lo"], answer[f"{kind}hi"], ".5g") for kind in ("run_", ""))
    return f"{at}: {answer['value']:.5g}   {percent(level)} band of a new run {run}, if the law holds {law}, {far}"


class ScheduleRecord(TableRecord):
    """What a prediction needs of the record."""

    schema_name: Literal["kleiber.schedule/1"] = Field(alias="schema")
    form: Literal["multi_power", "annealing"]
    params: dict[str, FiniteFloat]
    draws: list[list[FiniteFloat]]
    domain: dict[Literal["step", "lr_sum", "lr"], Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    scatter: dict[Literal["noise", "transfer", "inflation"], NonNegative]

    @model_validator(mode="after")
    def check_sizes(self) -> ScheduleRecord:
        """Raises ValueError for other parameters than the form has, and for missing ranges and errors."""
        names = list(FORMS[self.form].params)
        if list(self.params) != names or any(len(row) != len(names) for row in self.draws):
            raise ValueError(f"params and draws of {self.form} must be those of {', '.join(names)}")
        if len(self.domain) < 3 or len(self.scatter) < 3:
            raise ValueError("domain must have step, lr_sum and lr, and scatter noise, transfer and inflation")
        return self
