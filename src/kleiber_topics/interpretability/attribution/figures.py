"""Figures of `kleiber eval --evals attribution`: deletion and insertion, gains over random rankings, and agreement."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts import Marks, estimates, heat_map, kind_color, lines
from kleiber.types import Json
from kleiber_topics.interpretability.attribution.page import LABELS

NAMES = {**LABELS, "random": "random ranking"}
ORDER = list(dict.fromkeys(["random ranking", *NAMES.values()]))  # of colors, the same in every figure
TESTS = {
    "deletion": "Deletion: removed, the most important tokens first",
    "insertion": "Insertion: put back, the most important tokens first",
}


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """The charts of each data set, under names that can be those of files."""
    charts: dict[str, alt.TopLevelMixin] = {}
    for data, curves in results["details"]["curves"].items():
        scores, name = results["scores"][data], data.replace("/", "_")
        charts[f"faithfulness_{name}"] = curve_chart(data, curves)
        charts[f"gain_{name}"] = gain_chart(data, scores)
        if any(metric.startswith("agreement/") for metric in scores):
            charts[f"agreement_{name}"] = agreement_chart(data, scores)
    return charts


def curve_chart(data: str, curves: Json) -> alt.TopLevelMixin:
    """The log-probability of the predictions over the share of tokens, a line for each method."""
    rows = pd.DataFrame([
        {"method": NAMES[method], "share": step / (len(values) - 1), "value": value, "panel": TESTS[test]}
        for test in TESTS
        for method, values in curves[test].items()
        for step, value in enumerate(values)
    ])  # fmt: skip
    x = alt.X("share:Q", title="share of the tokens", axis=alt.Axis(format="%", tickCount=5))
    y, shown = alt.Y("value:Q", title="log-probability of the prediction (nats)"), list(dict.fromkeys(rows["method"]))
    tips = ["method:N", alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("value:Q", format=".3f")]
    return lines(
        [Marks(rows=rows, line=1.8, points=24, tips=tips)], x, y,
        f"Log-probability of a prediction vs share of changed tokens, {data}", panel="panel",
        color=kind_color(shown, "method", alt.Legend(orient="bottom"), ORDER), size={"width": 380, "height": 260},
    )  # fmt: skip


def gain_chart(data: str, scores: Json) -> alt.TopLevelMixin:
    """By how much each method is better than a random ranking, with intervals over texts."""
    rows = [
        {"series": NAMES[method], "panel": test.capitalize(), **scores[f"{test}_gain/{method}"]}
        for test in TESTS
        for method in LABELS
        if f"{test}_gain/{method}" in scores
    ]
    title = f"Area under the curve, relative to random rankings, {data}"
    return estimates(
        rows, ORDER, "better than a random ranking by (nats)", title, zero=True, width=380, step=32, format=".3f",
        subtitle="90% intervals over texts", own_scales=False,
    )  # fmt: skip


def agreement_chart(data: str, scores: Json) -> alt.TopLevelMixin:
    """Rank correlation of each pair of methods."""
    values = {
        tuple(metric.split("/")[1:]): score["value"] for metric, score in scores.items() if metric.startswith("agree")
    }
    methods = [method for method in LABELS if any(method in pair for pair in values)]
    rows = pd.DataFrame(
        [
            {"first": NAMES[pair[i]], "second": NAMES[pair[1 - i]], "value": value}
            for pair, value in values.items()
            for i in (0, 1)
        ]
    )
    order = [NAMES[method] for method in methods]
    x = alt.X("first:N", title=None, sort=order, axis=alt.Axis(labelAngle=-20, domain=False, ticks=False))
    y = alt.Y("second:N", title=None, sort=order, axis=alt.Axis(domain=False, ticks=False))
    domain = (min(0.0, *values.values()), 1.0)
    return heat_map(rows, x, y, "Spearman", f"Rank correlation of attributions, {data}", domain=domain, cell=(92, 40))
