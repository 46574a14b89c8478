"""Reliability diagrams and risk-coverage curves."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts import GRAY, Marks, kind_color, lines
from kleiber.types import Json

AS_IS, SCALED = "as it is", "temperature-scaled, other half"
SIZE = {"width": 220, "height": 220}  # of a panel


def figures(details: Mapping[str, Json]) -> dict[str, alt.TopLevelMixin]:
    """Charts by name from the details of the results; none without data."""
    if not details:
        return {}
    return {"reliability": reliability(details), "risk_coverage": risk_coverage(details)}


def reliability(details: Mapping[str, Json]) -> alt.TopLevelMixin:
    """Accuracy vs confidence, a panel for each data set, with the diagonal on which calibrated predictions are."""
    scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".0%")
    x = alt.X("confidence:Q", title="confidence (mean of a bin)", scale=scale, axis=axis)
    y = alt.Y("accuracy:Q", title="accuracy", scale=scale, axis=axis)
    has_scaled = any("scaled" in of_data for of_data in details.values())
    names = [AS_IS, SCALED] if has_scaled else [AS_IS]
    legend = alt.Legend(orient="bottom", labelLimit=260) if has_scaled else None
    rows = pd.DataFrame([
        {**row, "kind": kind, "panel": data}
        for data, of_data in details.items()
        for kind, key in ((AS_IS, "reliability"), (SCALED, "scaled"))
        for row in of_data.get(key, ())
    ])  # fmt: skip
    tips = ["kind:N", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("confidence", "accuracy")), "items:Q"]
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=names, range=["circle", "diamond"][: len(names)]))
    style = {"opacity": 0.5}
    points = Marks(rows=rows, value="accuracy", bars=0.6, line=1, style=style, points=44, shape=shape, tips=tips)
    ends = pd.DataFrame({"confidence": [0.0, 1.0], "accuracy": [0.0, 1.0]})
    equal = Marks(rows=ends, value="accuracy", line=1, dash=[4, 3], color=GRAY)
    return lines(
        [points, equal], x, y, "Reliability: accuracy vs confidence", panel="panel", columns=3, size=SIZE,
        color=kind_color(names, "kind", legend, ["", *names]),
        subtitle="bins of equally many items, 90% intervals; dashed: calibrated",
    )  # fmt: skip


def risk_coverage(details: Mapping[str, Json]) -> alt.TopLevelMixin:
    """Error of the items that are answered vs their share, the most confident ones first, a line for each data set."""
    rows = pd.DataFrame([{**row, "data": data} for data, of_data in details.items() for row in of_data["coverage"]])
    names, share = list(details), alt.Axis(format=".0%", tickCount=5)
    legend = alt.Legend(orient="right", title=None, labelLimit=260) if len(names) > 1 else None
    x = alt.X("coverage:Q", title="coverage (share of the items answered)", scale=alt.Scale(domain=[0, 1]), axis=share)
    y = alt.Y("error:Q", title="error of the answers", axis=alt.Axis(format=".0%", tickCount=6))
    table, note = (
        Marks(rows=rows, value="error", line=1.8, band=0.18),
        "most confident items first; bands: 90% intervals",
    )
    return lines([table], x, y, "Risk vs coverage", color=kind_color(names, "data", legend), height=260, subtitle=note)
