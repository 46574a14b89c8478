"""Figures of `kleiber eval --evals attention`: heat maps over heads and layers, and the loss of the logit lens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import altair as alt
import pandas as pd

from kleiber.charts import Marks, Rows, heat_map, kind_color, lines, loss_axis
from kleiber.types import Json

TEXT = "held-out text"
CELL = (38, 26)  # pixels of a head, wide and high


class Shown(NamedTuple):
    """How a metric is shown: title, label of its colors, and whether its values are shares of 1."""

    title: str
    label: str
    is_share: bool


METRICS = {
    "entropy": Shown("Entropy of attention", "nats", False),
    "normalized_entropy": Shown("Entropy of attention, relative to uniform attention", "share", True),
    "max_logit": Shown("Largest attention logit", "|scale q·k|", False),
    "sink": Shown("Attention to the first token", "share", True),
    "distance": Shown("Mean distance between query and key", "tokens", False),
    "previous_token": Shown("Attention to the previous token", "share", True),
    "induction": Shown("Induction: attention to what followed last time", "share", True),
}


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """A heat map for each metric, with a panel for each data set, and the loss by layer where there is a lens."""
    details = results["details"]
    charts: dict[str, alt.TopLevelMixin] = {}
    for metric in METRICS:
        rows = head_rows(details["heads"], metric)
        if len(rows):
            charts[metric] = metric_map(rows, METRICS[metric])
    if details["lens"]:
        charts["logit_lens"] = lens_chart(details["lens"])
    return charts


def head_rows(heads: Json, metric: str) -> pd.DataFrame:
    """A row for each data set, layer and head with the value of the metric; layers and heads count from 0."""
    return pd.DataFrame(
        [
            {"data": data, "layer": int(layer), "head": head, "value": value}
            for data, metrics in heads.items()
            for layer, values in metrics.get(metric, {}).items()
            for head, value in enumerate(values)
        ]
    )


def metric_map(rows: Rows, shown: Shown) -> alt.TopLevelMixin:
    """Values of one metric by head and layer, one panel for each data set, with common colors."""
    top = 1.0 if shown.is_share else float(rows["value"].max()) or 1.0
    x = alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    y = alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(domain=False, ticks=False))
    return heat_map(
        rows, x, y, shown.label, f"{shown.title}, by layer and head", domain=(0, top), cell=CELL, panel="data",
        style=".2f" if top < 10 else ".0f",
        tips=["data:N", "layer:O", "head:O", alt.Tooltip("value:Q", format=".4f")],
    )  # fmt: skip


def lens_chart(lens: Json) -> alt.TopLevelMixin:
    """Next-token loss after each layer, a line for each data set."""
    rows = pd.DataFrame(
        [
            {"kind": data, "layer": layer, "loss": loss}
            for data, values in lens.items()
            for layer, loss in enumerate(values["loss"])
        ]
    )
    kinds = list(lens)
    depth = max(len(values["loss"]) for values in lens.values()) - 1
    names = "".join(f"datum.value == {layer} ? '{layer}' : " for layer in range(1, depth + 1))
    axis = alt.Axis(values=list(range(depth + 1)), labelExpr=f"datum.value == 0 ? 'embedding' : {names}''", grid=False)
    x = alt.X("layer:Q", title="blocks before the output layer", axis=axis, scale=alt.Scale(nice=False, padding=12))
    color = kind_color(kinds, legend=alt.Legend(orient="bottom") if len(kinds) > 1 else None)
    tips = ["kind:N", "layer:Q", alt.Tooltip("loss:Q", format=".4f")]
    table, data = Marks(rows=rows, value="loss", line=1.6, points=56, tips=tips), kinds[0] if len(kinds) == 1 else TEXT
    y, title = loss_axis("loss", "next-token loss (nats per token)", log=False), "Logit lens: loss if the model stopped"
    return lines([table], x, y, f"{title} after a layer, {data}", color=color)
