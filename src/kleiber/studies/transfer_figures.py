"""Altair figures of the study `transfer`: score differences, scores by labels and by text, data transferred."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import pandas as pd

from kleiber.charts import apply_theme, kind_color
from kleiber.config.stages import quantity
from kleiber.studies.compare.task_rows import SCRATCH, Rows
from kleiber.types import Row

PANEL = {"width": 250, "height": 170}


def gaps(gap_rows: Sequence[Row]) -> alt.TopLevelMixin:
    """Pre-trained less from nothing at the most labels, with intervals: a panel a task, right of 0 it helps."""
    most = max(row["share"] for row in gap_rows)
    rows = pd.DataFrame([row for row in gap_rows if row["share"] == most and row["gap"] is not None])
    rows["what"] = rows["kind"] + " from " + rows["start"]
    panels = []
    for task, part in rows.groupby("task", sort=False):
        y = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=220))
        base = alt.Chart(part).encode(y=y)
        title = "score above the same model from nothing"
        x = alt.X("gap:Q", title=title, axis=alt.Axis(tickCount=5))
        zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color="#888", strokeDash=[4, 4]).encode(x="x:Q")
        layers = [zero, base.mark_point(filled=True, size=56, color="black", opacity=1).encode(x=x)]
        if bool(part["lo"].notna().any()):
            layers.insert(1, base.mark_rule(strokeWidth=2).encode(x=alt.X("lo:Q", title=title), x2="hi:Q"))
        panels.append(alt.layer(*layers).properties(title=str(task), width=250, height=24 * len(part) + 20))
    return beside(panels, "Score gained by pre-training")


def labels(rows: Rows) -> alt.TopLevelMixin:
    """Score by the share of the labels, a line for each kind and start over the means of seeds: a panel a task."""
    shown = rows.assign(what=rows["kind"] + " from " + rows["start"])
    names = list(dict.fromkeys(shown.sort_values(["kind", "start"])["what"]))
    panels = []
    for task, part in shown.groupby("task", sort=False):
        shares = sorted(set(part["share"]))
        axis = alt.Axis(values=shares, format="~%", grid=False)
        scale = alt.Scale(type="log", domain=[min(shares) / 1.2, max(shares) * 1.2], nice=False)
        x = alt.X("share:Q", title="share of the labels", scale=scale, axis=axis)
        panels.append(lines(part, x, names, part["metric"].iloc[0], str(task)))
    return beside(panels, "Score vs share of the labels")


def texts(rows: Rows) -> alt.TopLevelMixin:
    """Score at the most labels by the bytes of the text, a line for each kind and text, a dashed rule for none."""
    shown = rows[(rows["share"] == rows["share"].max()) & (rows["start"] != SCRATCH)].copy()
    split = shown["start"].str.partition("/")
    shown["bytes"], shown["what"] = split[2].map(quantity).astype(float), shown["kind"] + " from " + split[0]
    names = list(dict.fromkeys(shown.sort_values("what")["what"]))
    panels = []
    for task, part in shown.groupby("task", sort=False):
        sizes = sorted(set(part["bytes"]))
        scale = alt.Scale(type="log", domain=[min(sizes) / 1.3, max(sizes) * 1.3], nice=False)
        x = alt.X("bytes:Q", title="text (bytes)", scale=scale, axis=alt.Axis(values=sizes, format="~s", grid=False))
        new = rows[(rows["task"] == task) & (rows["start"] == SCRATCH) & (rows["share"] == rows["share"].max())]
        chart = lines(part, x, names, part["metric"].iloc[0], str(task))
        means = new.groupby("kind", as_index=False)["score"].mean()
        panels.append(chart + alt.Chart(means).mark_rule(strokeDash=[5, 4], color="#888").encode(y="score:Q"))
    return beside(panels, "Score vs pre-training text; dashed: from scratch")


def factors(factor_rows: Sequence[Row]) -> alt.TopLevelMixin:
    """How many times the labels training from nothing would have needed; unbounded ones are left out."""
    rows = pd.DataFrame([row for row in factor_rows if 0 < row["factor"] < math.inf])
    rows["what"] = rows["kind"] + " from " + rows["start"]
    rows["top"] = [row if math.isfinite(row) else f for row, f in zip(rows["most"], rows["factor"], strict=True)]
    rows["bottom"] = [row if row > 0 else f for row, f in zip(rows["least"], rows["factor"], strict=True)]
    color = kind_color(list(dict.fromkeys(rows["what"])), "what", alt.Legend())
    panels = []
    for task, part in rows.groupby("task", sort=False):
        axis = alt.Axis(values=sorted(set(part["share"])), format="~%", grid=False)
        x = alt.X("share:Q", title="share of the labels", scale=alt.Scale(type="log", padding=20), axis=axis)
        title = "times the labels, from nothing"
        y = alt.Y("factor:Q", title=title, scale=alt.Scale(type="log", padding=12))
        base = alt.Chart(part).encode(x=x, color=color)
        unity = alt.Chart(pd.DataFrame({"y": [1.0]})).mark_rule(color="#888", strokeDash=[4, 4]).encode(y="y:Q")
        bars = base.mark_rule(opacity=0.6).encode(y=alt.Y("bottom:Q", title=title), y2="top:Q")
        marks = base.mark_point(filled=True, size=50, opacity=1).encode(y=y)
        panels.append((unity + bars + base.mark_line().encode(y=y) + marks).properties(title=str(task), **PANEL))
    return beside(panels, "Effective data: median of seeds, least to most")


def lines(part: Rows, x: alt.X, names: Sequence[str], metric: str, title: str) -> alt.LayerChart | alt.FacetChart:
    """A line over the means of seeds and a small point a seed."""
    color = kind_color(names, "what", alt.Legend())
    scale = alt.Scale(zero=False, nice=False, padding=12)
    base = alt.Chart(part[["what", "share", "score", "seed", *(["bytes"] if "bytes" in part else [])]])
    base = base.encode(x=x, color=color)
    points = base.mark_point(size=14, opacity=0.6).encode(y=alt.Y("score:Q", title=metric, scale=scale))
    means = base.mark_line(strokeWidth=1.6).encode(y=alt.Y("mean(score):Q", title=metric, scale=scale))
    return (points + means).properties(title=title, **PANEL)


def beside(panels: Sequence[alt.LayerChart | alt.FacetChart], title: str) -> alt.TopLevelMixin:
    """Panels two a row, under one title."""
    return apply_theme(alt.concat(*panels, columns=2).properties(title=title))
