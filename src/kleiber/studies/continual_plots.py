"""The figures of continual learning: metrics with intervals, R by method, and the first task from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.arm_rows import interval
from kleiber.studies.dress import dressed
from kleiber.studies.forgetting_plots import colors, methods_of
from kleiber.studies.seeds import Rows
from kleiber.studies.sequence_outcomes import LABELS, LOWER, in_order


def bars(rows: Rows, metrics: Sequence[str], level: float, of: str) -> Any:
    """A panel a metric: the mean of each method and its interval over orders and seeds."""
    names, found = methods_of(rows), []
    for metric in metrics:
        for name in names:
            known = rows[rows["method"] == name][metric].dropna().tolist()
            if known:
                lo, hi = interval(known, level)
                arrow = "lower" if metric in LOWER else "higher"
                told = {"panel": f"{LABELS[metric]} ({arrow} is better)", "method": name}
                found.append({**told, "mean": float(np.mean(known)), "lo": lo, "hi": hi})
    shown = pd.DataFrame(found)
    panels = [panel(part, str(name), names) for name, part in shown.groupby("panel", sort=False)]
    lines = [alt.hconcat(*panels[i : i + 3], spacing=24) for i in range(0, len(panels), 3)]
    title = f"Metrics by method, {level:.0%} intervals{of}"
    return dressed(alt.vconcat(*lines, spacing=18).properties(title=title))


def panel(rows: Rows, title: str, names: list[str]) -> Any:
    y = alt.Y("method:N", title=None, sort=names, axis=alt.Axis(ticks=False))
    scale, axis = alt.Scale(zero=False, padding=8), alt.Axis(tickCount=3, labelOverlap=True)
    color = alt.Color("method:N", legend=None, scale=alt.Scale(domain=names, range=colors(names, names)))
    base = alt.Chart(rows).encode(y=y, color=color)
    tip = ["method:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("mean", "lo", "hi"))]
    x = alt.X("mean:Q", title=None, scale=scale, axis=axis)
    layers = [base.mark_point(filled=True, size=50, opacity=1).encode(x=x, tooltip=tip)]
    if bool(rows["lo"].notna().any()):
        layers.insert(0, base.mark_rule(strokeWidth=1.6).encode(x=alt.X("lo:Q", title=None, scale=scale), x2="hi:Q"))
    heading = alt.TitleParams(title, fontSize=11, fontWeight="normal")
    return alt.layer(*layers).properties(width=190, height=18 * len(names), title=heading)


def score_heatmap(rows: Rows, of: str) -> Any:
    """R of each method, tasks by their place in the order, means over orders and seeds; colour is the change since the
    task was learned, and none before."""
    limit = float(rows["change"].abs().max()) or 1.0
    x = alt.X("task:O", title="task in order", axis=alt.Axis(labelAngle=0))
    y = alt.Y("stage:O", title="after stage")
    fill = alt.Scale(scheme="redblue", domain=[-limit, limit])
    legend = alt.Legend(orient="right", gradientLength=120, titleLimit=200)
    color = alt.Color("change:Q", title="since learned", scale=fill, legend=legend)
    unknown = alt.condition("isValid(datum.change)", color, alt.value("white"))
    tip = ["method:N", "stage:O", "task:O", alt.Tooltip("score:Q", format=".4f")]
    base = alt.Chart().encode(x=x, y=y)
    cells = base.mark_rect(stroke="white", strokeWidth=2, invalid=None).encode(color=unknown, tooltip=tip)
    strong = alt.when(f"abs(datum.change) > {0.6 * limit}").then(alt.value("white"))
    dark = strong.when("isValid(datum.change)").then(alt.value("#222")).otherwise(alt.value("#999"))
    text = base.mark_text(fontSize=10).encode(text=alt.Text("score:Q", format=".3f"), color=dark)
    side = max(90, 42 * int(rows["task"].max()))
    chart = alt.layer(cells, text, data=rows).properties(width=side, height=22 * int(rows["stage"].max()))
    names = methods_of(rows)
    facet = alt.Facet("method:N", title=None, sort=names, header=alt.Header(labelFontWeight="bold"))
    grid = chart.facet(facet=facet, columns=max(1, min(len(names), 640 // side)), spacing=16)
    kind = rows["kind"].iloc[0]
    unit = "loss in nats" if kind == "loss" else kind
    return dressed(grid.properties(title=f"R: {unit} of each task after each stage, mean of orders and seeds{of}"))


def first_task(rows: Rows, of: str) -> Any:
    """The score of the first task of each order from its own stage on, mean of orders and seeds."""
    kind = rows["kind"].iloc[0]
    sign = -1.0 if kind == "loss" else 1.0
    names, found = methods_of(rows), []
    for name in names:
        paths = [r.gains[:, in_order(r)[0][1]] for r in rows[rows["method"] == name]["matrix"]]
        mean = sign * np.mean(np.array(paths), axis=0)
        found += [{"method": name, "stage": stage, "score": value} for stage, value in enumerate(mean, start=1)]
    unit = "held-out loss (nats per token)" if kind == "loss" else f"held-out {kind}"
    x = alt.X("stage:O", title="after stage", axis=alt.Axis(labelAngle=0))
    y = alt.Y("score:Q", title=unit, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    color = alt.Color("method:N", title=None, scale=alt.Scale(domain=names, range=colors(names, names)))
    tip = ["method:N", "stage:O", alt.Tooltip("score:Q", format=".4f")]
    chart = alt.Chart(pd.DataFrame(found)).mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=1.6)
    title = f"The first task of each sequence{of}"
    return dressed(chart.encode(x=x, y=y, color=color, tooltip=tip).properties(width=440, height=300, title=title))
