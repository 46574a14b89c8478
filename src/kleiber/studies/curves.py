"""Curves of runs over training tokens: loss, validation loss, learning rate and gradient norm (`kleiber plot`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from kleiber.charts.page import render_page
from kleiber.charts.pictures import svg_to_png, to_svg
from kleiber.charts.theme import Chart, apply_theme, kind_color, sequential_colors
from kleiber.records.catalog import Run
from kleiber.records.files import write_bytes, write_text
from kleiber.records.regular_files import make_folder
from kleiber.types import Json

PANELS = {  # metrics of a run, and the title of their vertical axis; any task may stand for *
    "train/loss": "training loss",
    "val/*/loss": "validation loss",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
}
MOST_VALUES = 20_000  # in all lines of a figure, so that a page of many runs stays small
FEWEST_VALUES = 20  # of a line; there are no more lines than can have so many
MOST_KINDS = 6  # runs in distinct colors; more have colors from dark to light, in their order
MOST_TITLE = 40  # characters of a run's name in a title
SIZE = {"width": 330, "height": 210}
SUFFIXES = (".png", ".svg", ".html", ".json")


def curve_rows(runs: Sequence[Run], metrics: Sequence[str]) -> pd.DataFrame:
    """Returns a row for each finite value: run, line (run, stage and metric), metric, panel, tokens, step, value.

    tokens  training tokens since the root of the run; the stages of a chain follow one another

    Raises ValueError where no run has logged a finite value of one of the metrics.
    """
    names = labels(runs)
    rows = [
        {"run": names[run.folder], **row, "line": f"{names[run.folder]} {row['stage']} {row['metric']}"}
        for run in runs
        for row in logged_values(run, metrics)
    ]
    if not rows:
        logged = sorted({key for run in runs for row in run.rows for key in row if "/" in key})
        raise ValueError(
            f"no run has logged finite values of {', '.join(metrics)}; logged: {', '.join(logged) or 'nothing'}"
        )
    return pd.DataFrame(rows)


def thin_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns rows evenly spread over each line, with its first and last, so that all have about MOST_VALUES rows."""
    names = pd.Series(rows["line"])
    lengths = names.value_counts().to_dict()
    place, length = rows.groupby("line").cumcount(), names.map(lengths)
    every = (length / max(FEWEST_VALUES, MOST_VALUES // len(lengths))).clip(lower=1.0)
    return pd.DataFrame(rows[(place % every < 1) | (place == length - 1)])


def logged_values(run: Run, metrics: Sequence[str]) -> list[Json]:
    """Returns stage, metric, panel, tokens, step and value of all finite values of the metrics in a run's log."""
    table, before, last = [], 0.0, {}
    for row in run.rows:
        stage = row.get("stage") or "main"
        if stage not in last and not branches(run):
            before, last = before + max(last.values(), default=0.0), {}
        per_step = batch_tokens(run, stage)
        tokens = row.get("train/tokens") or row.get("step", 0) * per_step
        last[stage] = max(last.get(stage, 0.0), tokens)
        for name, value in row.items():
            panel = next((metric for metric in metrics if matches(name, metric)), None)
            if panel is not None and isinstance(value, int | float) and math.isfinite(value):
                place = {"stage": stage, "metric": name, "panel": panel, "step": row.get("step")}
                table.append({**place, "tokens": before + tokens, "value": float(value)})
    return table


def branches(run: Run) -> bool:
    """Whether the stages of the run are branches of a trunk, whose tokens include those of the trunk."""
    return "branches" in (run.config.get("stages") or {})


def batch_tokens(run: Run, stage: str) -> float:
    """Returns the tokens of a step: those that the stage recorded, else those of the config."""
    recorded = next((entry.get("batch_tokens") for entry in run.stages if entry.get("name") == stage), None)
    return float(recorded or run.config["batch"]["tokens"])


def matches(name: str, metric: str) -> bool:
    """Whether a logged name is the metric; a star in the metric stands for any text."""
    begin, star, end = metric.partition("*")
    return name.startswith(begin) and name.endswith(end) and len(name) > len(begin + end) if star else name == metric


def labels(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns the overrides in which each run differs from the others, or its name where they tell nothing."""
    lines = {run.folder: run.overrides for run in runs}
    common = set.intersection(*(set(each) for each in lines.values())) if lines else set()
    texts = {folder: " ".join(line for line in each if line not in common) for folder, each in lines.items()}
    unique = len(set(texts.values())) == len(texts) and all(texts.values())
    return texts if unique else {run.folder: run.name for run in runs}


def draw(runs: Sequence[Run], metrics: Sequence[str] = tuple(PANELS)) -> Chart:
    """Returns a panel for each metric that a run has logged: a line for each run, stage and task.

    Of very many runs only some are drawn, evenly spread over their list. Raises ValueError as `curve_rows`.
    """
    drawn = runs[:: math.ceil(len(runs) * len(metrics) * FEWEST_VALUES / MOST_VALUES)]
    rows = thin_lines(curve_rows(drawn, metrics))
    names = list(dict.fromkeys(rows["run"]))
    parts = {str(metric): part for metric, part in rows.groupby("panel")}
    panels = [panel(parts[metric], metric, names) for metric in metrics if metric in parts]
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    if len(drawn) < len(runs):
        title = f"{len(drawn)} of {len(runs):,} runs, evenly spread over the list"
    if len(names) > MOST_KINDS:
        title += f", from dark to light: {names[0][:MOST_TITLE]} ... {names[-1][:MOST_TITLE]}"
    return apply_theme(alt.concat(*panels, columns=2).properties(title=title))


def panel(rows: pd.DataFrame, metric: str, names: Sequence[str]) -> Chart:
    """Returns the chart of one metric, logarithmic for losses and norms that stay positive."""
    positive = bool(rows["value"].min() > 0) and not metric.endswith("/lr")
    scale = alt.Scale(type="log" if positive else "linear", zero=False, nice=False, padding=8)
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=6, format="~g"))
    x = alt.X("tokens:Q", title="training tokens", axis=alt.Axis(tickCount=5, format="~s"), scale=alt.Scale(padding=8))
    color = kind_color(names, "run", alt.Legend(orient="bottom", columns=1, labelLimit=600) if names[1:] else None)
    if len(names) > MOST_KINDS:
        colors = alt.Scale(domain=list(names), range=sequential_colors(len(names)))
        color = alt.Color("run:N", sort=list(names), scale=colors, legend=None)
    tips = ["run:N", "stage:N", "metric:N", "step:Q", alt.Tooltip("value:Q", format=".4g")]
    chart = alt.Chart(rows).encode(x=x, y=y, color=color, detail="line:N", tooltip=tips)
    if len(set(rows["metric"])) > 1:
        chart = chart.encode(
            strokeDash=alt.StrokeDash("metric:N", title=None, legend=alt.Legend(orient="bottom", symbolType="stroke"))
        )
    few = int(rows["line"].value_counts().max()) <= 30
    layers = chart.mark_line(strokeWidth=1.4) + chart.mark_point(filled=True, size=26) if few else chart.mark_line()
    return layers.properties(title=PANELS.get(metric, metric).capitalize(), **SIZE)


def save(chart: Chart, out: Path) -> None:
    """Writes a chart to a PNG, SVG, HTML (which needs no network) or JSON file.

    Raises ValueError for another suffix.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out} must end in one of {', '.join(SUFFIXES)}")
    make_folder(out.parent)
    if out.suffix == ".html":
        write_text(out, render_page("Curves", {"curves": chart}))
    elif out.suffix == ".json":
        write_text(out, chart.to_json())
    elif out.suffix == ".svg":
        write_text(out, to_svg(chart))
    else:
        write_bytes(out, svg_to_png(to_svg(chart)))
