"""The report of any sweep, or of a single run: a table, curves and parallel coordinates over the keys that differ.

It decides nothing and fits nothing: `kleiber report DIR` takes it where the runs belong to no study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kleiber.charts.theme import Chart, format_count
from kleiber.config.errors import ConfigError
from kleiber.config.nested import flatten
from kleiber.records.catalog import Run, score_of
from kleiber.records.diff import as_number, identity_values
from kleiber.records.forecast import find_forecast
from kleiber.studies.study import Figures, Findings, Study
from kleiber.types import Json, Row
from kleiber.types.score import Better, format_interval

MOST_AXES = 6  # keys of the config among the parallel coordinates
MOST_LABELS = 6  # values that an axis names; of more, the least and the largest
LABEL_LENGTH = 16
LABEL_GAP = 0.05  # least distance of two labels of an axis, whose length is 1
BAND = 0.08  # height over which the lines through one value are spread, so that all are visible
LATE = "written after the training began"  # outcome of such a forecast
MOST_FORECASTS = 3  # that the answer names; the table has all
COSTS = ("watt_hours", "price")  # columns of the table where they are known
LOG_RATIO = 10.0  # an axis is logarithmic if its largest value is at least this many times its least
RESULTS = ("params", "tokens")  # columns of the table that have an axis where they differ
MOST_NAMED = 4  # keys that describe a run in a sentence; where more differ, its name does


@dataclass(frozen=True, kw_only=True)
class Overview(Study):
    """Shows the runs of a sweep side by side, whatever they have in common."""

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Returns the table of all runs and branches, with figures of those that have logged something.

        Raises ValueError where no run has logged or measured anything.
        """
        by_run, measure = differing_keys(runs), main_metric(runs)
        keys = list(dict.fromkeys(name for values in by_run.values() for name in values))
        rows = [row for run in runs for row in table_rows(run, by_run[run.folder.as_posix()], measure)]
        if len({row["run"] for row in rows}) < len(rows):
            keys = ["stage", *keys]
        else:
            rows = [{name: value for name, value in row.items() if name != "stage"} for row in rows]
        if measure is not None:
            better = score_of(runs, measure).better
            rows.sort(key=lambda row: sort_key(row.get(measure), better))
        figures: Figures = {}
        logged = [run for run in runs if any("/" in name for row in run.rows for name in row)]
        if measure is None and not logged:
            raise ValueError("none of these runs has logged anything yet: train one first")
        if logged:
            figures["curves"] = lambda: draw_curves(logged)
        complete = [row for row in rows if measure is not None and is_finite(row.get(measure))]
        axes = axes_of(complete, [name for name in keys if name != "stage"], measure)
        if len(axes) > 1 and len(complete) > 1:
            figures["parallel_coordinates"] = lambda: parallel_coordinates(complete, axes)
        forecasts = forecast_rows(runs, measure)
        answer = " ".join([headline(rows, keys, measure, runs), *map(forecast_text, forecasts[:MOST_FORECASTS])])
        tables = {"Runs": rows, **({"Forecasts": forecasts} if forecasts else {})}
        return Findings(answer, tables=tables, figures=figures)


def forecast_rows(runs: Sequence[Run], measure: str | None) -> list[Json]:
    """Returns a row for each run whose loss a forecast.json expects: its interval, the loss, and whether it is inside.

    A forecast is read from the current folder, that of the run, and the two around it; it belongs to the run with the
    same hash of the config, and tests nothing unless it was written before the training.
    """
    rows = []
    for run in runs:
        observed = None if measure is None else run.metrics.get(measure)
        place = run.folder.absolute()
        forecast = find_forecast(str(run.summary.get("config_hash")), [Path.cwd(), place, *list(place.parents)[:2]])
        if forecast is not None and observed is not None:
            ends = {"forecast": forecast.predicted.value, "lo": forecast.predicted.lo, "hi": forecast.predicted.hi}
            inside = "inside" if forecast.contains(observed) else "outside"
            early = forecast.precedes(run.summary["started"])
            facts = {"level": forecast.predicted.level, "loss": observed, "outcome": inside if early else LATE}
            rows.append({"run": run.name, **ends, **facts})
    return rows


def forecast_text(row: Row) -> str:
    """Returns whether the loss of a run is inside the interval of its forecast, as a sentence."""
    ends = format_interval(row["lo"], row["hi"], ".4f")
    if row["outcome"] == LATE:
        return f"The forecast of {row['forecast']:.4f} {ends} for {row['run']} was {LATE}, so it tests nothing."
    return (
        f"The forecast of {row['forecast']:.4f} {ends} ({row['level']:.0%} interval) was written before the training: "
        f"the loss of {row['run']}, {row['loss']:.4f}, is {row['outcome']}."
    )


def differing_keys(runs: Sequence[Run]) -> dict[str, Json]:
    """Returns the keys of the config that differ between the runs, with their values, by the folder of the run.

    A key that cannot change the result, such as that of a logger, is left out.
    """
    configs = {run.folder.as_posix(): plain_config(run) for run in runs}
    names = dict.fromkeys(name for config in configs.values() for name in config)
    differ = [name for name in names if len({config.get(name) for config in configs.values()}) > 1]
    return {folder: {name: config.get(name) for name in differ} for folder, config in configs.items()}


def plain_config(run: Run) -> Json:
    """Returns the values of the config that can change the result, by dotted key; those of lists as text.

    Of a class and of a path, only the last part is returned.
    """
    try:
        values, changing = flatten(run.config), identity_values(run.config)
    except ConfigError:  # a run without a readable config is listed all the same
        return {}
    return {key: plain_value(key, value) for key, value in values.items() if key in changing}


def plain_value(key: str, value: object) -> object:
    """Returns a value of a config as a cell of a table."""
    if isinstance(value, str) and key.endswith("_target_"):
        return value.rpartition(".")[2]
    if isinstance(value, str) and value.startswith("/"):
        return value.rstrip("/").rpartition("/")[2]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def main_metric(runs: Sequence[Run]) -> str | None:
    """Returns the metric that most runs have: a validation loss if there is one, else the first one; None without."""
    metrics = [name for run in runs for name, value in run.metrics.items() if value is not None]
    counts = {name: metrics.count(name) for name in dict.fromkeys(metrics)}
    is_loss = {name: name.startswith("val/") and name.endswith("/loss") for name in counts}
    return max(counts, key=lambda name: (is_loss[name], counts[name]), default=None)


def table_rows(run: Run, keys: Row, measure: str | None) -> list[Json]:
    """Returns a row for each leaf of a run: the main metric, the keys that were swept, and then all else."""
    rows = []
    for stage in run.leaves or [run.stage]:
        row, metrics = run.stage_row(stage), stage.get("metrics") or {}
        first = {} if measure is None else {measure: metrics.get(measure)}
        results = {name: row[name] for name in (*RESULTS, "flops", "seconds")}
        results |= {name: row[name] for name in COSTS if row[name] is not None}
        named = {"run": run.name, "stage": stage.get("name"), "status": str(run.status)}
        rows.append({**first, **swept_first(keys, run.overrides), **named, **keys, **metrics, **results})
    return rows


def swept_first(keys: Row, overrides: Sequence[str]) -> Json:
    """Returns the keys that the overrides of a run set, of a group the class that it chose."""
    names = [line.lstrip("+~").partition("=")[0].replace("/", ".") for line in overrides]
    wanted = dict.fromkeys(key for name in names for key in (name, f"{name}._target_"))
    return {key: keys[key] for key in wanted if key in keys}


def is_finite(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def sort_key(value: float | None, better: Better) -> tuple[bool, float]:
    """Returns the key by which the best run comes first, and runs without a value last.

    Where neither value is better, the highest comes first.
    """
    if value is None or not math.isfinite(value):
        return True, 0.0
    return False, value if better == "lower" else -value


def headline(rows: Sequence[Row], keys: Sequence[str], measure: str | None, runs: Sequence[Run]) -> str:
    """Returns a sentence with the first and the last result; `rows` begin with the best run, or the highest value."""
    finished = sum(run.finished for run in runs)
    beginning = f"{finished} of {len(runs)} runs finished" if len(runs) > 1 else f"{runs[0].name} is {runs[0].status}"
    measured = [row for row in rows if measure is not None and is_finite(row.get(measure))]
    if not measured or measure is None:
        return f"{beginning}; no run has a validation metric yet."
    if len(measured) == 1:
        return f"{beginning}; {measure} is {measured[0][measure]:.4f}."
    first, last = measured[0], measured[-1]
    name = "highest" if score_of(runs, measure).better == "none" else "best"
    return (
        f"{beginning}; {measure} is between {first[measure]:.4f} ({name}: {describe(first, keys)}) and "
        f"{last[measure]:.4f} ({describe(last, keys)})."
    )


def describe(row: Row, keys: Sequence[str]) -> str:
    """Returns the values of the keys that differ, such as `depth=2 seed=1`; the name of the run where they are many."""
    if not 0 < len(keys) <= MOST_NAMED:
        return str(row["run"])
    return " ".join(f"{last_part(key)}={label_of(row.get(key))}" for key in keys)


def draw_curves(runs: Sequence[Run]) -> Chart:
    """Returns the curves of the runs, as `kleiber plot` draws them."""
    from kleiber.studies.curves import draw

    return draw(runs)


@dataclass(frozen=True)
class Axis:
    """An axis of the parallel coordinates.

    places  position of each value, from 0 at the bottom to 1 at the top
    labels  texts beside the axis, by position
    """

    name: str
    places: Mapping[object, float]
    labels: Mapping[float, str]


def axes_of(rows: Sequence[Row], keys: Sequence[str], measure: str | None) -> list[Axis]:
    """Returns an axis for each key or result whose values differ, and last that of the metric.

    A key that groups the runs as an earlier one does, such as a number of heads that follows from the width, has none.
    """
    axes, groups = list[Axis](), set[tuple[int, ...]]()
    for name in (*keys, *RESULTS):
        values = [row.get(name) for row in rows]
        group = tuple(int(code) for code in pd.factorize(pd.Series(list(map(str, values))))[0])
        if len(set(group)) > 1 and group not in groups and (len(axes) < MOST_AXES or name in RESULTS):
            groups.add(group)
            axes.append(axis_of(name, values))
    return [*axes, axis_of(measure, [row[measure] for row in rows])] if rows and measure is not None else axes


def axis_of(name: str, values: Sequence[object]) -> Axis:
    """Returns the axis of values: a linear or logarithmic one of numbers and quantities, or one of equal steps."""
    distinct = list(dict.fromkeys(values))
    numbers = {value: as_number(value) for value in distinct if not isinstance(value, bool)}
    sizes = {value: number for value, number in numbers.items() if number is not None}
    if len(sizes) == len(distinct):
        low, high = min(sizes.values()), max(sizes.values())
        scale = math.log if low > 0 and high >= LOG_RATIO * low else float
        span = scale(high) - scale(low) or 1.0
        places: dict[object, float] = {value: (scale(size) - scale(low)) / span for value, size in sizes.items()}
    else:
        ordered = sorted(distinct, key=lambda value: (value in sizes, sizes.get(value, 0.0), str(value)))
        places = {value: number / max(1, len(ordered) - 1) for number, value in enumerate(ordered)}
    shown = sorted(places, key=lambda value: places[value])
    if len(shown) > MOST_LABELS:
        shown = [shown[0], shown[-1]]
    labels, last = dict[float, str](), -1.0
    for value in shown:
        if places[value] - last >= LABEL_GAP:
            labels[places[value]], last = label_of(value), places[value]
    return Axis(name, places, labels)


def label_of(value: object) -> str:
    """Returns the label of a value: a number with at most four digits, or the beginning of a text."""
    if value is None:  # not set, or null
        return "default"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_count(value) if abs(value) >= 1e4 else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1]}…"


def parallel_coordinates(rows: Sequence[Row], axes: Sequence[Axis]) -> Chart:
    """Returns a chart with a line for each run through its values on all axes, colored by the metric on the last.

    The line under the pointer stands out.
    """
    import altair as alt

    from kleiber.charts.theme import apply_theme, sequential_colors

    measure, names = axes[-1].name, [axis.name for axis in axes]
    order = {name: number for number, name in enumerate(names)}
    spread = [BAND * (number / len(rows) - 0.5) for number in range(len(rows))]  # rows are in order of the result
    points = pd.DataFrame(
        {"run": f"{row['run']} {row.get('stage', '')}".strip(), "axis": order[axis.name], "result": row[measure],
         "place": axis.places[row[axis.name]] + (shift if len(axis.places) <= MOST_LABELS else 0.0),
         "key": axis.name, "value": label_of(row[axis.name])}
        for row, shift in zip(rows, spread, strict=True)
        for axis in axes
    )  # fmt: skip
    labels = pd.DataFrame(
        {"axis": order[axis.name], "place": place, "text": text} for axis in axes for place, text in axis.labels.items()
    )
    heads = pd.DataFrame({"axis": list(order.values()), "text": short_names(names)})
    heads = heads.assign(place=1.0, bottom=0.0)
    x = alt.X("axis:Q", axis=None, scale=alt.Scale(domain=[-0.2, len(axes) - 0.6]))
    y = alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[-0.05, 1.1]))
    hovered = alt.selection_point(on="mouseover", fields=["run"], empty=False)
    color = alt.Color("result:Q", scale=alt.Scale(range=sequential_colors(5)), legend=None)
    tips = ["run:N", "key:N", "value:N", alt.Tooltip("result:Q", format=".4f", title=measure)]
    lines = alt.Chart(points).mark_line().encode(
        x=x, y=y, detail="run:N", color=color, tooltip=tips, order="axis:Q",
        opacity=alt.condition(hovered, alt.value(1), alt.value(0.55)),
        size=alt.condition(hovered, alt.value(4), alt.value(1.4)),
    ).add_params(hovered)  # fmt: skip
    rules = alt.Chart(heads).mark_rule(color="#999").encode(x=x, y=y, y2="bottom:Q")
    text = alt.Chart(labels).encode(x=x, y=y, text="text:N")
    place = {"align": "left", "dx": 5, "fontSize": 11}
    halo = text.mark_text(**place, stroke="white", strokeWidth=4, strokeJoin="round")
    marks = halo + text.mark_text(**place, color="#222")
    above = alt.Chart(heads).mark_text(align="left", dy=-12, fontSize=11, fontWeight="bold")
    names_above = above.encode(x=x, y=y, text="text:N")
    title = f"Runs by the keys that differ; color: {measure}"
    return apply_theme(
        (lines + rules + marks + names_above).properties(width=min(900, 140 * len(axes)), height=300, title=title)
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Returns the last part of each name, and the last two where several would have the same."""
    last = [last_part(name) for name in names]
    return [name if last.count(name) == 1 else last_part(full, 2) for name, full in zip(last, names, strict=True)]


def last_part(name: str, parts: int = 1) -> str:
    """Returns the last parts of a key or a metric; of the class of a node those of the node."""
    separator = "/" if "/" in name else "."
    return separator.join(name.removesuffix("._target_").split(separator)[-parts:])
