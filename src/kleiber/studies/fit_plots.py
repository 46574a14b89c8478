"""Figures of a fit to any table: found against predicted, and what is left."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.dress import log_axis, sized
from kleiber.studies.law import Law

WIDE = 20.0  # the range from which on an axis is logarithmic


def fitted(rows: pd.DataFrame, form: Law, name: str) -> Any:
    """Each row's target against the law's prediction; on the diagonal they agree."""
    both = rows[["found", "predicted"]].to_numpy(dtype=float)
    ends = pd.DataFrame({"predicted": [both.min(), both.max()], "found": [both.min(), both.max()]})
    if both.min() > 0 and both.max() / both.min() > WIDE:
        x = log_axis("predicted", "predicted by the law", both)
        y = log_axis("found", "found", both, kind=alt.Y)
    else:
        style = {"scale": alt.Scale(zero=False, padding=12), "axis": alt.Axis(tickCount=6)}
        x, y = alt.X("predicted:Q", title="predicted by the law", **style), alt.Y("found:Q", title="found", **style)
    line = alt.Chart(ends).mark_line(color="#666", strokeWidth=1).encode(x=x, y=y)
    return sized(line + dots(rows, form, x, y), "Found against predicted", subtitle=name)


def percent_residuals(rows: pd.DataFrame, form: Law, name: str) -> Any:
    """What the law leaves, in percent of the prediction, against compute or its first input."""
    shown = rows.assign(percent=100 * (rows["found"] / rows["predicted"] - 1))
    along = "C" if "C" in rows else form.inputs[0]
    title = "training compute C (FLOPs)" if along == "C" else along
    at = np.array(rows[along], dtype=float)
    x = log_axis(along, title, at) if at.min() > 0 else alt.X(f"{along}:Q", title=title)
    y = alt.Y("percent:Q", title="found above the law (%)")
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#666").encode(y="y:Q")
    return sized(zero + dots(shown, form, x, y), "Residuals", subtitle=name)


def dots(rows: pd.DataFrame, form: Law, x: Any, y: Any) -> Any:
    """A point a row, coloured by the first input where that spans anything; hovering names the row."""
    first = form.inputs[0]
    tip = ["row:N", *(alt.Tooltip(f"{n}:Q", format=".4~s") for n in form.inputs), "found:Q", "predicted:Q"]
    chart = alt.Chart(rows).mark_point(filled=True, size=46, opacity=0.85)
    span = np.array(rows[first], dtype=float)
    if span.min() <= 0 or span.max() / span.min() < 1.01:
        return chart.encode(x=x, y=y, tooltip=tip)
    legend = alt.Legend(title=first, format=".2~s")
    color = alt.Color(f"{first}:Q", scale=alt.Scale(type="log", scheme="viridis"), legend=legend)
    return chart.encode(x=x, y=y, color=color, tooltip=tip)
