"""Figures of evaluations whose scores are means over items: accuracy and margin by data set, with intervals."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts.intervals import estimates
from kleiber.charts.series import Marks, lines
from kleiber.charts.theme import kind_color, log_axis, loss_axis
from kleiber.types import Json

ORDER = ["", "score"]  # scores have the second color
CHANCE = {"shape": "stroke", "angle": 90, "size": 240, "strokeWidth": 2, "color": "#888"}
FORMS = {  # axis and title of the figure of each metric
    "accuracy": ("accuracy (share of items, 90% interval)", "Accuracy by data set"),
    "margin_per_byte": (
        "margin per byte of the right text (nats)",
        "Log-probability of right minus wrong text",
    ),
    "gap": ("loss minus that in the domain (bits per byte, 90% interval)", "Gap out of distribution by data set"),
}


def score_figures(scores: Mapping[str, Mapping[str, Json]]) -> dict[str, alt.TopLevelMixin]:
    """Charts by name, from the scores of data sets as RUN/evals/<name>.json has them; without those of no numbers."""
    return {
        name: by_data_set(scores, metric)
        for name, metric in (("accuracy", "accuracy"), ("margin", "margin_per_byte"))
        if any(metric in of_data for of_data in scores.values())
    }


def by_data_set(scores: Mapping[str, Mapping[str, Json]], metric: str) -> alt.TopLevelMixin:
    """A score of each data set with its interval; for accuracy also chance."""
    rows = [
        {"series": ORDER[1], "name": data, **of_data[metric]} for data, of_data in scores.items() if metric in of_data
    ]
    if metric == "accuracy":
        rows = [{**row, "other": scores[row["name"]].get("chance", {}).get("value")} for row in rows]
    note = "gray: chance" if any(row.get("other") is not None for row in rows) else ""
    return estimates(
        rows, ORDER, *FORMS[metric], zero=metric != "accuracy", subtitle=note, other=CHANCE,
        domain=(0, 1) if metric == "accuracy" else None,
    )  # fmt: skip


def gap_chart(scores: Mapping[str, Mapping[str, Json]]) -> dict[str, alt.TopLevelMixin]:
    """A chart of the gap of each data set to the in-domain data; none without gaps."""
    gaps = sorted(
        ((data, gap) for data, gap in scores.items() if "gap" in gap), key=lambda pair: pair[1]["gap"]["value"]
    )
    return {"gap": by_data_set(dict(gaps), "gap")} if gaps else {}


def position_chart(positions: Mapping[str, Mapping[int, float]]) -> dict[str, alt.TopLevelMixin]:
    """A chart of the loss by position in the row, with a line for each data set; none without positions."""
    rows = [
        {"data": data, "position": int(last), "value": loss}
        for data, bins in positions.items()
        for last, loss in bins.items()
    ]
    if not rows:
        return {}
    table = pd.DataFrame(rows)
    x = log_axis("position", "tokens before the target (up to)", table["position"])
    color = kind_color(list(positions), "data", alt.Legend(orient="right", title=None, labelLimit=260))
    tips = ["data:N", "position:Q", alt.Tooltip("value:Q", format=".4f")]
    y, marks = loss_axis("value", "loss (nats per token)", log=False), Marks(rows=table, line=1.6, points=40, tips=tips)
    return {"position": lines([marks], x, y, "Loss vs position in the row", color=color)}
