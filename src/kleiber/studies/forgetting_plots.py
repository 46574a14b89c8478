"""The figures of a comparison of retention methods: one function a figure, from rows to an altair chart.

A method has the same colour and shape in each. Intervals and seed noise are drawn where they are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import pandas as pd

from kleiber.studies.outcomes import PLAIN
from kleiber.studies.plots import sized

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#7b4173", "#31a354")


def methods_of(points: pd.DataFrame) -> list[str]:
    """Plain fine-tuning first, the others by name: the order of colours."""
    return [PLAIN, *sorted(set(points["method"]) - {PLAIN})]


def palette(names: list[str]) -> dict[str, Any]:
    scale = alt.Scale(domain=names, range=["#000000", *COLORS][: len(names)])
    return {
        "color": alt.Color("method:N", title=None, scale=scale),
        "shape": alt.Shape("method:N", title=None, scale=alt.Scale(domain=names)),
    }


def pareto(points: pd.DataFrame, at: float) -> Any:
    """F against target loss, a point a setting with its seeds' sd, a line through each method's best; the rule is where
    methods are compared. Settings that learn far too little are cut off."""
    names = methods_of(points)
    reach = at + 4 * max(at - points["target"].min(), 0.01 * at)
    shown = points[points["target"] <= reach]
    shown = shown.assign(low=shown["F"] - shown["F_sd"].fillna(0), high=shown["F"] + shown["F_sd"].fillna(0))
    dress = palette(names)
    x = alt.X("target:Q", title="target loss (nats per token)", scale=alt.Scale(zero=False, padding=12))
    y = alt.Y("F:Q", title="forgetting F (nats per token)", scale=alt.Scale(zero=False, padding=10))
    tip = ["method:N", "setting:N", "lr:Q", "n:Q", alt.Tooltip("F:Q", format=".4f"), alt.Tooltip("target:Q", format=".4f")]
    marks = alt.Chart(shown).mark_point(size=46, filled=True, opacity=0.85).encode(x=x, y=y, tooltip=tip, **dress)
    bars = alt.Chart(shown).mark_rule(opacity=0.5).encode(x=x, y=alt.Y("low:Q", title="forgetting F (nats per token)"), y2="high:Q", color=dress["color"])
    lines = (
        alt.Chart(shown[shown["best"]])
        .mark_line(strokeWidth=1.2, opacity=0.7)
        .encode(x=x, y=y, color=dress["color"], order="target:Q")
    )
    rule = alt.Chart(pd.DataFrame({"target": [at]})).mark_rule(strokeDash=[5, 4], color="#888").encode(x=x)
    return sized(rule + bars + lines + marks, "Forgetting against target loss")


def matched(record: Mapping[str, Any]) -> Any:
    """F of every method that reaches the common target loss, with intervals."""
    found = pd.DataFrame([one for one in record["matched"] if one["reached"]])
    y = alt.Y("method:N", title=None, sort=list(found["method"]))
    scale = alt.Scale(zero=False, padding=12)
    title = f"forgetting F at target loss {record['matched_target']:.4f} (nats per token)"
    layers = []
    if bool(found["lo"].notna().all()):
        bars = alt.Chart(found).mark_rule(strokeWidth=2)
        layers.append(bars.encode(y=y, x=alt.X("lo:Q", title=title, scale=scale), x2="hi:Q"))
    dots = alt.Chart(found).mark_point(filled=True, size=60, color="black")
    tip = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "lo", "hi")]
    layers.append(dots.encode(y=y, x=alt.X("F:Q", title=title, scale=scale), tooltip=tip))
    chart = alt.layer(*layers)
    return sized(chart, f"At equal target loss, {record['level']:.0%} intervals", height=24 * len(found) + 30)


def trajectory(paths: pd.DataFrame, names: list[str]) -> Any:
    """F by optimizer step, the mean of seeds, each method at its chosen setting; the axis starts at step 1."""
    means = paths[paths["step"] > 0].groupby(["method", "step"], as_index=False)["F"].mean()
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(tickCount=6, format="~s"))
    y = alt.Y("F:Q", title="forgetting F (nats per token)")
    tip = ["method:N", "step:Q", alt.Tooltip("F:Q", format=".4f")]
    chart = alt.Chart(means).mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.5)
    return sized(chart.encode(x=x, y=y, color=palette(names)["color"], tooltip=tip), "Forgetting while training goes on")


def heat(scores: pd.DataFrame) -> Any:
    """Every task's loss before (the base) and after each method, as its change in nats, the value written in."""
    x = alt.X("task:N", title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("method:N", title=None, sort=list(dict.fromkeys(scores["method"])))
    limit = float(scores["change"].abs().max()) or 1.0
    scale = alt.Scale(scheme="blueorange", domain=[-limit, limit])
    base = alt.Chart(scores)
    cells = base.mark_rect().encode(x=x, y=y, color=alt.Color("change:Q", title="change (nats)", scale=scale))
    text = base.mark_text(fontSize=11).encode(x=x, y=y, text=alt.Text("loss:Q", format=".3f"))
    rows = scores["method"].nunique()
    return sized(cells + text, "Loss by task before and after (R)", height=26 * rows)
