"""Figures of `kleiber eval --evals attribution`: deletion and insertion, gains over random rankings, and agreement."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts.theme import KINDS, PALETTE, apply_theme
from kleiber.evals.attribution.page import LABELS
from kleiber.types import Json

NAMES = {**LABELS, "random": "random ranking"}
COLORS = dict(zip(["random", *LABELS], KINDS, strict=False))
TESTS = {
    "deletion": "removed, the most important tokens first",
    "insertion": "put back, the most important tokens first",
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


def method_color(methods: list[str], legend: alt.Legend | None) -> alt.Color:
    """The colors of methods, the same in every figure."""
    scale = alt.Scale(domain=[NAMES[method] for method in methods], range=[COLORS[method] for method in methods])
    return alt.Color("method:N", title=None, scale=scale, legend=legend)


def curve_chart(data: str, curves: Json) -> alt.TopLevelMixin:
    """The log-probability of the predictions over the share of tokens, a line for each method."""
    panels = []
    for test, title in TESTS.items():
        rows = pd.DataFrame(
            [
                {"method": NAMES[method], "share": step / (len(values) - 1), "log_prob": value}
                for method, values in curves[test].items()
                for step, value in enumerate(values)
            ]
        )
        x = alt.X("share:Q", title=f"share of tokens {title}", axis=alt.Axis(format="%", tickCount=5))
        y = alt.Y("log_prob:Q", title="log-probability of the prediction (nats)", scale=alt.Scale(zero=False))
        color = method_color(list(curves[test]), alt.Legend(orient="bottom"))
        tips = ["method:N", alt.Tooltip("share:Q", format=".0%"), alt.Tooltip("log_prob:Q", format=".3f")]
        line = alt.Chart(rows).mark_line(point=alt.OverlayMarkDef(size=24)).encode(x=x, y=y, color=color, tooltip=tips)
        panels.append(line.properties(width=380, height=260, title=test.capitalize()))
    title = alt.TitleParams(f"Log-probability of a prediction vs share of changed tokens, {data}")
    return apply_theme(alt.hconcat(*panels).resolve_scale(y="shared").properties(title=title))


def gain_chart(data: str, scores: Json) -> alt.TopLevelMixin:
    """By how much each method is better than a random ranking, with intervals over texts."""
    rows = pd.DataFrame(
        [
            {"method": NAMES[method], "test": test.capitalize(), **scores[f"{test}_gain/{method}"]}
            for test in TESTS
            for method in LABELS
            if f"{test}_gain/{method}" in scores
        ]
    )
    methods = [method for method in LABELS if f"deletion_gain/{method}" in scores]
    y = alt.Y("method:N", title=None, sort=[NAMES[method] for method in methods])
    x = alt.X("value:Q", title="better than a random ranking by (nats)")
    base = alt.Chart().encode(y=y, color=method_color(methods, None))
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("lo:Q", title=""), x2="hi:Q")
    tips = ["method:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("value", "lo", "hi"))]
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, tooltip=tips)
    zero = alt.Chart().mark_rule(color="#999", strokeDash=[4, 3]).encode(x=alt.datum(0.0))
    panel = alt.layer(zero, bars, points, data=rows).properties(width=380, height=32 * len(methods))
    title = alt.TitleParams(f"Area under the curve, relative to random rankings, {data}", subtitle="90 % over texts")
    return apply_theme(panel.facet(column=alt.Column("test:N", title=None)).properties(title=title))


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
    scale = alt.Scale(scheme=PALETTE, domain=[min(0.0, *values.values()), 1.0])
    color = alt.Color("value:Q", title="Spearman", scale=scale)
    base = alt.Chart(rows).encode(x=x, y=y)
    ink = alt.condition("datum.value > 0.55", alt.value("black"), alt.value("white"))
    marks = base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".2f"), color=ink)
    chart = (base.mark_rect().encode(color=color) + marks).properties(
        width=92 * len(methods), height=40 * len(methods), title=f"Rank correlation of attributions, {data}"
    )
    return apply_theme(chart)
