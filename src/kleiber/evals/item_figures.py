"""Figures of evaluations whose scores are means over items: accuracy and margin by data set, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import pandas as pd

from kleiber.charts.theme import KINDS, Chart, kind_color, log_axis, loss_axis, with_title
from kleiber.types import Json

Rows = Any  # a DataFrame; the stubs of pandas do not type what indexing returns
MARGIN = "margin per byte of the right text (nats)"


def figures(scores: Mapping[str, Mapping[str, Json]]) -> dict[str, alt.TopLevelMixin]:
    """Charts by name, from the scores of data sets as RUN/evals/<name>.json has them; without those of no numbers."""
    rows: Rows = pd.DataFrame(
        [
            {"data": data, "metric": metric, **{key: score[key] for key in ("value", "lo", "hi")}}
            for data, of_data in scores.items()
            for metric, score in of_data.items()
        ]
    )
    if rows.empty:
        return {}
    charts: dict[str, alt.TopLevelMixin] = {}
    if len(accuracy := rows[rows["metric"] == "accuracy"]):
        chance = rows[rows["metric"] == "chance"]
        layers: list[Chart] = [_points(accuracy, "accuracy (share of items, 90 % interval)", [0.0, 1.0])]
        if len(chance):
            marks = alt.Chart(chance).mark_tick(color="#888", thickness=2, size=16)
            layers.insert(0, marks.encode(x="value:Q", y=_names(accuracy), tooltip=["data:N", "value:Q"]))
        subtitle = "gray: chance" if len(chance) else ""
        charts["accuracy"] = with_title(alt.layer(*layers), "Accuracy by data set", _height(accuracy), subtitle)
    if len(margin := rows[rows["metric"] == "margin_per_byte"]):
        zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color="#888").encode(x="x:Q")
        points = _points(margin, MARGIN, None)
        title = "Log-probability of the right text less that of the best wrong one"
        charts["margin"] = with_title(alt.layer(zero, points), title, _height(margin))
    return charts


def gap_chart(scores: Mapping[str, Mapping[str, Json]]) -> dict[str, alt.TopLevelMixin]:
    """A chart of the gap of each data set to the in-domain data; none without gaps."""
    rows: Rows = pd.DataFrame(
        [
            {"data": data, **{key: of_data["gap"][key] for key in ("value", "lo", "hi")}}
            for data, of_data in scores.items()
            if "gap" in of_data
        ]
    )
    if not len(rows):
        return {}
    rows = rows.sort_values("value")
    zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color="#888").encode(x="x:Q")
    points = _points(rows, "loss less that of the in-domain data (bits per byte, 90 % interval)", None)
    return {"gap": with_title(alt.layer(zero, points), "Gap out of distribution by data set", _height(rows))}


def position_chart(positions: Mapping[str, Mapping[int, float]]) -> dict[str, alt.TopLevelMixin]:
    """A chart of the loss by position in the row, with a line for each data set; none without positions."""
    rows = [
        {"data": data, "position": int(last), "loss": loss}
        for data, bins in positions.items()
        for last, loss in bins.items()
    ]
    if not rows:
        return {}
    table: Rows = pd.DataFrame(rows)
    base = alt.Chart(table).encode(
        x=log_axis("position", "tokens before the target (up to)", table["position"]),
        y=loss_axis("loss", "loss (nats per token)", log=False),
        color=kind_color(list(positions), "data", alt.Legend(orient="right", title=None, labelLimit=260)),
    )
    tips = ["data:N", "position:Q", alt.Tooltip("loss:Q", format=".4f")]
    layers = [base.mark_line(strokeWidth=1.6), base.mark_point(filled=True, size=40, opacity=1).encode(tooltip=tips)]
    return {"position": with_title(alt.layer(*layers), "Loss vs position in the row")}


def _names(rows: Rows) -> alt.Y:
    return alt.Y("data:N", title=None, sort=list(rows["data"]), axis=alt.Axis(labelLimit=260))


def _height(rows: Rows) -> int:
    return 40 + 22 * len(rows)


def _points(rows: Rows, title: str, domain: list[float] | None) -> Chart:
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=domain)
    base = alt.Chart(rows).encode(y=_names(rows), color=alt.value(KINDS[1]))
    x = alt.X("value:Q", title=title, scale=scale)
    tips = ["data:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("value", "lo", "hi"))]
    return alt.layer(
        base.mark_rule(strokeWidth=1.6).encode(x=alt.X("lo:Q", title=title, scale=scale), x2="hi:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, tooltip=tips),
    )
