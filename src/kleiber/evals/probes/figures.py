"""Figures of `kleiber eval --evals probes`: accuracy and control accuracy by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts.theme import apply_theme, kind_color
from kleiber.types import Json

KINDS = {"accuracy": "probe", "control": "control task"}
METRIC = re.compile(r"(.+)/layer(\d+)/(accuracy|control)")


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """A chart for each data set, with a panel for each feature."""
    return {f"probes_{data.replace('/', '_')}": chart(data, scores) for data, scores in results["scores"].items()}


def chart(data: str, scores: Json) -> alt.TopLevelMixin:
    """Accuracy over layers, and the share of the most frequent class as a line."""
    rows: list[Json] = []
    for metric, score in scores.items():
        match = METRIC.fullmatch(metric)
        if match:
            majority = scores[f"{match[1]}/majority"]["value"]
            names = {"feature": match[1].replace("_", " "), "layer": int(match[2]), "kind": KINDS[match[3]]}
            rows.append({**names, "majority": majority, **score})
    x = alt.X("layer:O", title="layer (0 is the embedding)", axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title="held-out accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    color = kind_color([*KINDS.values()], legend=alt.Legend(orient="bottom"))
    base = alt.Chart().encode(x=x, color=color)
    tips = ["kind:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("value", "lo", "hi"))]
    layers = [
        alt.Chart().mark_rule(color="#999", strokeDash=[4, 3]).encode(y=alt.Y("mean(majority):Q", title="")),
        base.mark_line(strokeWidth=1.6).encode(y=y),
        base.mark_rule(strokeWidth=1.6).encode(y=alt.Y("lo:Q", title=""), y2="hi:Q"),
        base.mark_point(filled=True, size=50, opacity=1).encode(y=y, tooltip=tips),
    ]
    panels = (
        alt.layer(*layers, data=pd.DataFrame(rows))
        .properties(width=240, height=220)
        .facet(alt.Facet("feature:N", title=None), columns=3)
    )
    title = alt.TitleParams(
        f"Accuracy of linear probes vs layer, {data}", subtitle="dashed: the most frequent class; 90 % over texts"
    )
    return apply_theme(panels.properties(title=title))
