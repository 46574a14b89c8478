"""Reliability diagrams and risk-coverage curves."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts.theme import KINDS, Chart, apply_theme, kind_color
from kleiber.types import Json

AS_IS, SCALED = "as it is", "temperature-scaled, other half"
SIDE = 220  # pixels of a panel
COLUMNS = 3


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
    y, low = (alt.Y(f"{name}:Q", title="accuracy", scale=scale, axis=axis) for name in ("accuracy", "lo"))
    has_scaled = any("scaled" in of_data for of_data in details.values())
    names = [AS_IS, SCALED] if has_scaled else [AS_IS]
    color = alt.Color(
        "kind:N", title=None, scale=alt.Scale(domain=names, range=[KINDS[1], KINDS[2]][: len(names)]),
        legend=alt.Legend(orient="bottom", labelLimit=260) if has_scaled else None,
    )  # fmt: skip
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=names, range=["circle", "diamond"][: len(names)]))
    ends = pd.DataFrame({"confidence": [0.0, 1.0], "accuracy": [0.0, 1.0]})
    panels = []
    for data, of_data in details.items():
        rows = [
            {**row, "kind": kind}
            for kind, key in ((AS_IS, "reliability"), (SCALED, "scaled"))
            for row in of_data.get(key, ())
        ]
        base = alt.Chart(pd.DataFrame(rows)).encode(x=x, color=color)
        tips = ["kind:N", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("confidence", "accuracy")), "items:Q"]
        panel = alt.layer(
            alt.Chart(ends).mark_line(color="#888", strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
            base.mark_rule(strokeWidth=1.2, opacity=0.6).encode(y=low, y2="hi:Q"),
            base.mark_line(strokeWidth=1, opacity=0.5).encode(y=y),
            base.mark_point(filled=True, size=44, opacity=1).encode(y=y, shape=shape, tooltip=tips),
        )
        panels.append(panel.properties(title=data, width=SIDE, height=SIDE))
    title = alt.TitleParams(
        "Reliability: accuracy vs confidence",
        subtitle="bins of equally many items, 90 % intervals; dashed: calibrated",
    )
    charts: Chart = alt.concat(*panels, columns=COLUMNS)
    return apply_theme(charts.properties(title=title))


def risk_coverage(details: Mapping[str, Json]) -> alt.TopLevelMixin:
    """Error of the items that are answered vs their share, the most confident ones first, a line for each data set."""
    rows = pd.DataFrame([{**row, "data": data} for data, of_data in details.items() for row in of_data["coverage"]])
    names = list(details)
    legend = alt.Legend(orient="right", title=None, labelLimit=260) if len(names) > 1 else None
    x = alt.X(
        "coverage:Q", title="coverage (share of the items answered)",
        scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", tickCount=5),
    )  # fmt: skip
    y, low = (
        alt.Y(f"{name}:Q", title="error of the answers", axis=alt.Axis(format=".0%", tickCount=6))
        for name in ("error", "lo")
    )
    base = alt.Chart(rows).encode(x=x, color=kind_color(names, "data", legend))
    tips = ["data:N", alt.Tooltip("coverage:Q", format=".0%"), alt.Tooltip("error:Q", format=".1%")]
    chart = alt.layer(
        base.mark_area(opacity=0.18, strokeWidth=0).encode(y=low, y2="hi:Q"),
        base.mark_line(strokeWidth=1.8).encode(y=y, tooltip=tips),
    )
    title = alt.TitleParams("Risk vs coverage", subtitle="most confident items first; bands: 90 % intervals")
    return apply_theme(chart.properties(width=360, height=260, title=title))
