"""Figures of `kleiber eval --evals probes`: accuracy and control accuracy by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts import Marks, kind_color, lines
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
    tips = ["kind:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("value", "lo", "hi"))]
    table = Marks(rows=pd.DataFrame(rows), line=1.6, bars=1.0, points=50, tips=tips)
    return lines(
        [table], x, y, f"Accuracy of linear probes vs layer, {data}", reference="majority", panel="feature", columns=3,
        color=kind_color([*KINDS.values()], legend=alt.Legend(orient="bottom")), size={"width": 240, "height": 220},
        subtitle="dashed: the most frequent class; 90% intervals over texts",
    )  # fmt: skip
