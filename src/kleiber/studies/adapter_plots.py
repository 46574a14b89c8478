"""The figures of the study `adapters`: the frontiers, the gaps to full fine-tuning by rank, and the tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.claims import Claim
from kleiber.studies.dress import dressed, kinds_color, log_axis, loss_axis, sized

TARGET, F = "target loss (nats per token)", "forgetting F (nats per token)"


def frontier(points: Any, order: Sequence[str]) -> Any:
    """F against target loss, a point a learning rate with its seeds' sd, a line through each arm's undominated ones.

    Rates far beyond all of those, which would press the rest into a corner, are counted and not drawn.
    """
    best = points[points["best"]]
    near = pd.Series(True, index=points.index)
    for name in ("target", "F"):
        near &= points[name] <= best[name].max() + (best[name].max() - best[name].min())
    told = "a point a learning rate" + ("" if near.all() else f"; {int((~near).sum())} more lie beyond the axes")
    points = points[near | points["best"]]
    shown = points.assign(low=points["F"] - points["F_sd"].fillna(0), high=points["F"] + points["F_sd"].fillna(0))
    color = kinds_color(order, "method", alt.Legend())
    shape = alt.Shape("method:N", title=None, scale=alt.Scale(domain=list(order)))
    x = alt.X("target:Q", title=TARGET, scale=alt.Scale(zero=False, nice=False, padding=12))
    y, low = (alt.Y(f"{name}:Q", title=F, scale=alt.Scale(zero=False, nice=False, padding=12)) for name in ("F", "low"))
    tips = [
        "method:N",
        alt.Tooltip("lr:Q", format=".2g"),
        "n:Q",
        *(alt.Tooltip(f"{c}:Q", format=".4f") for c in ("F", "target")),
    ]
    base = alt.Chart(shown)
    bars = base.mark_rule(opacity=0.5).encode(x=x, y=low, y2="high:Q", color=color)
    marks = base.mark_point(size=46, filled=True, opacity=0.9).encode(x=x, y=y, color=color, shape=shape, tooltip=tips)
    lines = alt.Chart(shown[shown["best"]]).mark_line(strokeWidth=1.3).encode(x=x, y=y, color=color, order="target:Q")
    return sized(bars + lines + marks, "What is forgotten against what is learned", subtitle=told)


def ranks(found: Mapping[str, Mapping[str, Claim]], order: Sequence[str]) -> Any:
    """The gaps to full fine-tuning by rank, with their intervals."""
    titles = {
        "learns_less": "target loss above full (nats)",
        "forgets_less": "F below full (nats)",
        "matched": "F below full at equal target loss (nats)",
    }
    panels = []
    for kind, title in titles.items():
        rows = pd.DataFrame(
            [{"arm": arm, "value": one.value, "lo": one.lo, "hi": one.hi} for arm, one in found[kind].items()],
            columns=["arm", "value", "lo", "hi"],
        ).replace([np.inf, -np.inf], np.nan)
        x = alt.X("arm:N", sort=list(order), title=None, axis=alt.Axis(labelAngle=0))
        base = alt.Chart(rows).encode(x=x)
        zero = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color="#888", strokeDash=[4, 4]).encode(y="y:Q")
        dots = base.mark_point(filled=True, size=56, color="black").encode(y=alt.Y("value:Q", title=title))
        layers = [zero, dots]
        if bool(rows["lo"].notna().any()):
            layers.insert(1, base.mark_rule(strokeWidth=2).encode(y=alt.Y("lo:Q", title=title), y2="hi:Q"))
        panels.append(alt.layer(*layers).properties(width=200, height=220))
    return dressed(alt.hconcat(*panels).properties(title="LoRA less full fine-tuning, by rank"))


def learning_rates(rows: Any, order: Sequence[str]) -> Any:
    """Target loss against learning rate, a point a seed, a line over the means."""
    color = kinds_color(order, "method", alt.Legend())
    x, y = log_axis("lr", "learning rate", rows["lr"].to_numpy()), loss_axis("target", TARGET, log=False)
    mean = alt.Y("mean(target):Q", title=TARGET, scale=alt.Scale(zero=False, nice=False, padding=12))
    base = alt.Chart(rows[["method", "lr", "target", "seed"]]).encode(x=x, color=color)
    return sized(
        base.mark_point(size=18).encode(y=y) + base.mark_line().encode(y=mean), "Every arm at every learning rate"
    )
