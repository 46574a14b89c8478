"""Draws what W&B shows of a run from the run's offline record: `python docs/draw_wandb.py RUN OUT.svg [SECTION ...]`.

The sections are the first parts of the names of metrics and each has its panels, as in a workspace of W&B.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import altair as alt
import pandas as pd

from kleiber.charts.pictures import to_svg
from kleiber.charts.theme import Chart, Rows, apply_theme
from kleiber.records.wandb_file import read_records, values_of

AXES = ("_step", "_runtime", "_timestamp", "trainer/global_step", "tokens", "train/tokens")
COLUMNS, WIDTH, HEIGHT = 4, 165, 84
LABEL = "format(datum.value, abs(datum.value) < 1000 ? '.4~g' : '.3~s')"


def history(folder: Path) -> Rows:
    """Returns the columns `step`, `metric` and `value` of all numbers that a run logged more than once."""
    rows = []
    for file in sorted(folder.rglob("*.wandb")):
        for record in read_records(file):
            if record.WhichOneof("record_type") == "history":
                values = values_of(record.history.item)
                step = values.get("trainer/global_step")
                numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
                rows += [(step, name, value) for name, value in numbers.items() if name not in AXES and "/" in name]
    table: Rows = pd.DataFrame(rows, columns=pd.Index(["step", "metric", "value"]))
    return table[table.groupby("metric").transform("size") > 1]


def panel(metric: str, rows: Rows) -> Chart:
    """Returns the panel of a metric, with its name above."""
    low, high = float(rows["value"].min()), float(rows["value"].max())
    scale = alt.Scale(domain=[low, high] if high > low else [low - 1, high + 1], nice=False)
    return (
        alt.Chart(rows, title=alt.TitleParams(metric, fontSize=10, fontWeight="normal", anchor="middle"))
        .mark_line(color="#0072B2", strokeWidth=1.5)
        .encode(
            alt.X("step:Q", title=None, axis=alt.Axis(tickCount=3, grid=False)),
            alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=3, labelExpr=LABEL)),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def section(name: str, panels: list[Chart]) -> Chart:
    """Returns the panels of a section in rows, below its name and their number."""
    title = alt.TitleParams(f"{name}  ({len(panels)})", fontSize=12, anchor="start")
    return alt.concat(*panels, columns=COLUMNS, align="all", spacing=12, title=title)


def workspace(table: Rows) -> Chart:
    """Returns the sections in alphabetical order, each with its metrics in alphabetical order."""
    metrics = sorted(table["metric"].unique())
    parts = [
        section(name, [panel(metric, table[table["metric"] == metric]) for metric in names])
        for name, names in groupby(metrics, key=lambda metric: metric.partition("/")[0])
    ]
    return apply_theme(alt.vconcat(*parts, spacing=16))


if __name__ == "__main__":
    run, out, *sections = sys.argv[1:]
    logged = history(Path(run))
    if sections:
        logged = logged[logged["metric"].str.partition("/")[0].isin(sections)]
    Path(out).write_text(to_svg(workspace(logged)), encoding="utf-8")
