"""The figures of a comparison of retention methods: one function a figure, from rows to an altair chart.

A method has the same colour and shape in each. Intervals and seed noise are drawn where they are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.dress import sized
from kleiber.studies.outcomes import PLAIN

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#7b4173", "#31a354")


def methods_of(points: pd.DataFrame) -> list[str]:
    """Plain fine-tuning first, where it is among them, the others by name: the order of colours."""
    names = set(points["method"])
    return [*({PLAIN} & names), *sorted(names - {PLAIN})]


def colors(names: list[str], shown: list[str]) -> list[str]:
    """The colours of some methods, as they are among all."""
    return [("#000000", *COLORS)[names.index(name) % (1 + len(COLORS))] for name in shown]


def palette(names: list[str]) -> dict[str, Any]:
    scale = alt.Scale(domain=names, range=colors(names, names))
    return {
        "color": alt.Color("method:N", title=None, scale=scale),
        "shape": alt.Shape("method:N", title=None, scale=alt.Scale(domain=names)),
    }


def pareto(points: pd.DataFrame, at: float) -> Any:
    """F against target loss, a point a setting with its seeds' sd, a line through each method's best; the rule is where
    methods are compared. The axis ends where settings learn far too little."""
    least, most = float(pd.Series(points["target"]).min()), float(pd.Series(points["target"]).max())
    reach = min(at + 6 * max(at - least, 0.01 * at), max(at, most) + 0.03 * (max(at, most) - least))
    shown = points.assign(low=points["F"] - points["F_sd"].fillna(0), high=points["F"] + points["F_sd"].fillna(0))
    inside = pd.DataFrame(shown[shown["target"] <= reach])
    lowest, highest = float(pd.Series(inside["low"]).min()), float(pd.Series(inside["high"]).max())
    dress, title = palette(methods_of(points)), "forgetting F (nats per token)"
    edge, rim = 0.03 * (reach - least), 0.05 * (highest - lowest or 1.0)
    across = alt.Scale(domain=[least - edge, reach], nice=False)
    up = alt.Scale(domain=[lowest - rim, highest + rim], nice=False)
    x = alt.X("target:Q", title="target loss (nats per token)", scale=across, axis=alt.Axis(tickCount=6))
    y, low = (alt.Y(f"{name}:Q", title=title, scale=up) for name in ("F", "low"))
    numbers = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tip = ["method:N", "setting:N", "lr:Q", "n:Q", *numbers]
    base, best = alt.Chart(shown), alt.Chart(shown[shown["best"]])
    marks = base.mark_point(size=46, filled=True, opacity=0.85, clip=True).encode(x=x, y=y, tooltip=tip, **dress)
    bars = base.mark_rule(opacity=0.5, clip=True).encode(x=x, y=low, y2="high:Q", color=dress["color"])
    line = best.mark_line(strokeWidth=1.2, opacity=0.7, clip=True)
    lines = line.encode(x=x, y=y, color=dress["color"], order="target:Q")
    rule = alt.Chart(pd.DataFrame({"target": [at]})).mark_rule(strokeDash=[5, 4], color="#888").encode(x=x)
    return sized(rule + bars + lines + marks, "Forgetting against target loss")


def matched(record: Mapping[str, Any]) -> Any:
    """F of every method that reaches the common target loss, with intervals."""
    found = pd.DataFrame([one for one in record["matched"] if one["reached"]]).replace([np.inf, -np.inf], np.nan)
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
    shown = [name for name in names if name in set(paths["method"])]
    means = paths[paths["step"] > 0].groupby(["method", "step"], as_index=False)["F"].mean()
    axis = alt.Axis(tickCount=6, format="~s")
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(type="log", nice=False), axis=axis)
    y = alt.Y("F:Q", title="forgetting F (nats per token)")
    tip = ["method:N", "step:Q", alt.Tooltip("F:Q", format=".4f")]
    chart = alt.Chart(means).mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.5)
    color = alt.Color("method:N", title=None, scale=alt.Scale(domain=shown, range=colors(names, shown)))
    return sized(chart.encode(x=x, y=y, color=color, tooltip=tip), "Forgetting while training goes on")


def heat(scores: pd.DataFrame) -> Any:
    """Every task's loss before (the base) and after each method, as its change in nats, the value written in."""
    x = alt.X("task:N", title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("method:N", title=None, sort=list(dict.fromkeys(scores["method"])))
    limit = float(pd.Series(scores["change"]).abs().max()) or 1.0
    scale = alt.Scale(scheme="blueorange", domain=[-limit, limit])
    base = alt.Chart(scores)
    cells = base.mark_rect(stroke="white", strokeWidth=2).encode(
        x=x, y=y, color=alt.Color("change:Q", title="change (nats)", scale=scale)
    )
    dark = alt.condition(f"abs(datum.change) > {0.6 * limit}", alt.value("white"), alt.value("black"))
    text = base.mark_text(fontSize=11).encode(x=x, y=y, text=alt.Text("loss:Q", format=".3f"), color=dark)
    return sized(cells + text, "Loss by task before and after (R)", height=26 * len(set(scores["method"])))
