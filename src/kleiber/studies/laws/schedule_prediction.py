"""Predictions of a law of schedules from its record: the loss along a curve of learning rates, with two intervals.

The interval of the law holds if the law does. The band of a new run also has the noise of a curve, the error of the law
for a schedule that it was not fitted to, and its error outside the fitted steps and sums of rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kleiber.studies.laws.law import Array
from kleiber.studies.laws.prediction import MAX_DECADES, POWER, decades_outside, distance_text, fitted_values
from kleiber.studies.laws.schedule_table import Curve
from kleiber.studies.laws.schedules import RatePath, ScheduleLaw, rate_path, rate_sums
from kleiber.studies.laws.table import numbers_of, read
from kleiber.studies.laws.uncertainty import percent, student_quantile
from kleiber.types import Config, Json, Row
from kleiber.types.score import format_interval

GRID = 2_000  # steps at which the rates of a schedule are computed
SHOWN = 100  # points of a predicted curve that the record of a prediction has
BAND_DRAWS = 200  # parameters that a band is computed from
SAME_PEAK = 1.1  # a cosine that is logged first after its warm-up has a smaller peak
FREE = 1_000  # degrees of freedom of the noise that a band assumes


def losses_of(record: Row, form: ScheduleLaw, path: RatePath, peak: float) -> dict[str, Array]:
    """Returns value, lo, hi (of the law), run_lo, run_hi (of a new run) and decades at each point of a path."""
    value = form.losses(path, fitted_values(record))[0]
    out = {"value": value, "decades": _decades(record, path, peak)}
    draws = np.array(record["draws"])[:BAND_DRAWS]
    if not len(draws):
        return out
    tail = (1 - record["level"]) / 2
    lo, hi = np.quantile(form.losses(path, draws), [tail, 1 - tail], axis=0)
    lo, hi = np.minimum(lo, value), np.maximum(hi, value)
    run = run_sd(record["scatter"], record["misfit"]["at_one_decade"], out["decades"])
    extra = student_quantile(FREE, record["level"]) * run
    below, above = np.hypot(np.log(value / lo), extra), np.hypot(np.log(hi / value), extra)
    return out | {"lo": lo, "hi": hi, "run_lo": value * np.exp(-below), "run_hi": value * np.exp(above)}


def run_sd(scatter: Mapping[str, float], at_one_decade: float, decades: Array) -> Array:
    """Returns the standard deviation of the log loss of a new run around the law."""
    return np.sqrt(scatter["noise"] ** 2 + scatter["transfer"] ** 2 + (at_one_decade * decades**POWER) ** 2)


def _decades(record: Row, path: RatePath, peak: float) -> Array:
    """Returns how many factors of 10 each point is outside the fitted steps, sums of rates, and peak rates."""
    peaks = np.full(len(path.steps), peak)
    return decades_outside(record["domain"], {"step": path.steps, "lr_sum": path.sums, "lr": peaks})


def predict_schedule(
    record: Row, form: ScheduleLaw, steps: Array, rates: Array, max_decades: float = MAX_DECADES
) -> Json:
    """Predicts the loss after the last step of a schedule, and the curve until there.

    steps, rates  at which the learning rate is known, and its values

    Returns at (steps and the peak rate lr), value, lo, hi, run_lo, run_hi, decades, and curve, a list of the same
    numbers at up to 100 steps inside the fitted range. Raises ValueError for steps that are too few or too far.
    """
    if len(steps) < 2 or not rates.max() > 0 or not (np.diff(steps) > 0).all() or not (rates >= 0).all():
        raise ValueError("a schedule needs two or more increasing steps, and learning rates >= 0 that are not all 0")
    peak = float(rates.max())
    begin = min(max(record["domain"]["step"][0], float(steps[0])), float(steps[-1]))
    begin = max(begin, float(steps[1]) if rate_sums(steps, rates)[0] == 0 else begin)
    at = np.unique(np.linspace(begin, float(steps[-1]), SHOWN))
    columns = losses_of(record, form, rate_path(steps, rates, at), peak)
    last = {name: float(column[-1]) for name, column in columns.items()}
    if last["decades"] > max_decades:
        raise ValueError(
            f"{steps[-1]:g} steps at a rate of {peak:g} are {last['decades']:.1f} decades outside the rows, above the "
            f"limit of {max_decades:g}; add --force to predict anyway"
        )
    shown = {"step": at, "lr": np.interp(at, steps, rates), **columns}
    curve = [{name: float(column[i]) for name, column in shown.items()} for i in range(len(at))]
    empty = {"lo": None, "hi": None}
    return {"at": {"steps": float(steps[-1]), "lr": peak}, **empty, **last, "curve": curve}


def compare_with_curves(record: Row, form: ScheduleLaw, curves: Sequence[Curve], max_decades: float) -> Json:
    """Predicts every row of curves, and compares the predictions with the losses where there are any.

    predictions  a row for each row of the curves: run, step, value, lo and hi (band of a new run), law_lo and law_hi
                 (interval of the law), decades, and observed
    mae, bias    mean of |value - observed| and of value - observed over all rows
    coverage     fraction of the rows inside lo and hi
    curves       the same numbers for each curve, and held, whether at least `level` of its rows are inside

    Raises ValueError for rows more than `max_decades` outside the fitted ones.
    """
    predictions: list[Json] = []
    summaries: list[Json] = []
    for curve in curves:
        measured = curve.observed
        at = curve.at if len(measured) else curve.steps[curve.start :]
        columns = losses_of(record, form, rate_path(curve.steps, curve.rates, at), float(curve.rates.max()))
        if (far := float(columns["decades"].max())) > max_decades:
            raise ValueError(
                f"run {curve.name!r} is {far:.1f} decades outside the rows, above the limit of {max_decades:g}; add "
                "--force to predict anyway"
            )
        names = {"run_lo": "lo", "run_hi": "hi", "lo": "law_lo", "hi": "law_hi"}
        shown = {"step": at, **{names.get(name, name): column for name, column in columns.items()}}
        if len(measured):
            shown["observed"] = measured
        rows = [{"run": curve.name, **{name: float(shown[name][i]) for name in shown}} for i in range(len(at))]
        rows = [{"lo": None, "hi": None} | row for row in rows]
        predictions += rows
        if len(measured):
            summaries.append({"run": curve.name, "rows": len(rows), **_errors(rows, record["level"])})
    measured_rows = [row for row in predictions if "observed" in row]
    total = _errors(measured_rows, record["level"]) if measured_rows else {}
    total.pop("held", None)
    return {**total, "level": record["level"], "curves": summaries, "predictions": predictions}


def _errors(rows: Sequence[Row], level: float) -> Json:
    errors = np.array([row["value"] - row["observed"] for row in rows])
    out: Json = {"mae": float(np.abs(errors).mean()), "bias": float(errors.mean()), "coverage": None, "held": None}
    if rows[0]["lo"] is not None:
        out["coverage"] = float(np.mean([row["lo"] <= row["observed"] <= row["hi"] for row in rows]))
        out["held"] = out["coverage"] >= level
    return out


def comparison_lines(comparison: Row) -> list[str]:
    """Returns the printed lines of `compare_with_curves`: one for each curve, and one for all."""
    band, out = f"{percent(comparison['level'])} band of a new run", []
    for row in comparison["curves"]:
        covers = (
            "no band" if row["coverage"] is None else f"{band} contains {row['coverage']:.0%} of {row['rows']} rows"
        )
        out.append(f"{row['run']}: mean absolute error {row['mae']:.4f}, bias {row['bias']:+.4f}; {covers}")
    if "mae" not in comparison:
        ends: dict[str, Row] = {row["run"]: row for row in comparison["predictions"]}
        return [f"{name}: {row['value']:.5g} at step {row['step']:g}{_ends(row, band)}" for name, row in ends.items()]
    covers = "" if comparison["coverage"] is None else f"; {band} contains {comparison['coverage']:.0%} of all rows"
    held = sum(bool(row["held"]) for row in comparison["curves"])
    text = f"{len(out)} curves: mean absolute error {comparison['mae']:.4f}, bias {comparison['bias']:+.4f}{covers}"
    return [*out, f"{text}, and holds {held} of the curves" if covers else text]


def _ends(row: Row, band: str) -> str:
    return "" if row["lo"] is None else f", {band} {format_interval(row['lo'], row['hi'], '.5g')}"


def schedule_rates(name: str, steps: int | None, words: Sequence[str], record: Row) -> tuple[Array, Array]:
    """Returns steps and learning rates of a schedule of kleiber, or of a table of rates.

    name   a choice of the group `schedule`, or a file with the columns step and lr
    steps  length of the run; of a table, the steps of its rows
    words  lr=PEAK, and arguments of the schedule, such as decay=0.1

    Raises ValueError for a missing length or peak rate, and for unknown arguments.
    """
    if Path(name).suffix:
        if steps is not None or words:
            raise ValueError(
                f"--schedule {name} is a table of rates: remove --steps and {' '.join(words) or 'nothing'}"
            )
        frame = read(name)
        if missing := [column for column in ("step", "lr") if column not in frame.columns]:
            raise ValueError(f"--schedule {name}: the table has no column {missing[0]!r}; it needs step and lr")
        return numbers_of(frame, "step"), numbers_of(frame, "lr")
    values, peak = schedule_words(name, steps, words, record)
    overrides = [f"schedule={name}", *(f"schedule.{key}={value}" for key, value in values.items())]
    return rates_of(schedule_node(overrides), steps or 0, peak)


def schedule_words(
    name: str, steps: int | None, words: Sequence[str], record: Row
) -> tuple[dict[str, str], float]:  # fmt: skip
    """Returns the arguments of a schedule by name, and the peak rate. Raises ValueError as `schedule_rates`."""
    if steps is None or steps < 2:
        raise ValueError(f"--schedule {name} needs the length of the run in steps, such as --steps 24000")
    values = {text.partition("=")[0]: text.partition("=")[2] for text in words}
    low, high = record["domain"]["lr"]
    if "lr" not in values and high > SAME_PEAK * low:
        raise ValueError(f"the fitted runs have peak rates from {low:g} to {high:g}: add lr=RATE")
    try:
        return values, float(values.pop("lr", high))
    except ValueError:
        raise ValueError("lr must be a number, such as lr=3e-4") from None


def schedule_node(overrides: Sequence[str]) -> Json:
    """Returns the config of a schedule. Raises ValueError for an argument that it does not have."""
    from kleiber.config.compose import Composer, resolve_config
    from kleiber.config.targets import signature

    node = resolve_config(Composer("train").compose([*overrides]))[0]["schedule"]
    allowed = signature(node["_target_"]).parameters
    if unknown := [name for name in node if name not in ("_target_", *allowed)]:
        raise ValueError(f"{unknown[0]}={node[unknown[0]]} is no argument of this schedule: {', '.join(allowed)}")
    return node


def rates_of(node: Config, steps: int, peak: float) -> tuple[Array, Array]:
    """Returns steps and learning rates of a run with the schedule of a config."""
    from kleiber.config.targets import build

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
