"""The figure of where experts' text went: distances of loads by layer, an interval each. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from kleiber.studies.dress import dressed
from kleiber.studies.forgetting_plots import colors
from kleiber.studies.moe_forgetting import KINDS


def loads(rows: Sequence[Mapping[str, Any]], names: list[str], level: float) -> Any:
    """Total variation by layer, a panel for each text and distance, a colour an arm; `names` are all arms in order."""
    found = pd.DataFrame(rows)
    found["panel"] = found["text"].str.rpartition("/")[2] + " " + found["distance"]
    found["order"] = [list(KINDS.values()).index(told) for told in found["distance"]]
    found["row"] = [f"layer {layer}" for layer in found["layer"]]
    arms = [name for name in names if name in set(found["arm"])]
    y = alt.Y("arm:N", title=None, axis=None, sort=arms)
    most = float(found[["total variation", "hi"]].max().max())
    scale = alt.Scale(domain=[0, min(1.0, 1.05 * most)], nice=False)
    fill = alt.Scale(domain=arms, range=colors(names, arms))
    color = alt.Color("arm:N", title=None, scale=fill, legend=alt.Legend(orient="bottom"))
    base = alt.Chart(found).encode(y=y, color=color)
    axis = alt.Axis(tickCount=4)
    x = alt.X("total variation:Q", title="total variation", scale=scale, axis=axis)
    tip = ["arm:N", "text:N", "layer:O", alt.Tooltip("total variation:Q", format=".3f")]
    layers = [base.mark_point(filled=True, size=50, opacity=1).encode(x=x, tooltip=tip)]
    if bool(found["lo"].notna().any()):
        ends = base.transform_calculate(low="max(0, datum.lo)", high="min(1, datum.hi)")
        low = alt.X("low:Q", title="total variation", scale=scale, axis=axis)
        layers.insert(0, ends.mark_rule(strokeWidth=1.6, clip=True).encode(x=low, x2="high:Q"))
    chart = alt.layer(*layers).properties(width=150, height=16 * len(arms) + 8)
    panels = list(dict.fromkeys(found.sort_values(["order", "text"])["panel"]))
    grid = chart.facet(
        spacing={"column": 14, "row": 6},
        column=alt.Column("panel:N", header=alt.Header(title=None), sort=panels),
        row=alt.Row("row:N", header=alt.Header(title=None, labelAngle=0, labelAlign="left")),
    )
    return dressed(grid.properties(title=f"How far the load of the experts moved, {level:.0%} intervals"))
