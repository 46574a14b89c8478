"""The figures of studies with arms: what each learning rate gave, the arms side by side, and their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from kleiber.studies.arms import Arm
from kleiber.studies.plots import sized

LOSS = "validation loss (nats per token)"


def tuning(arms: Mapping[str, Arm]) -> Any:
    """Loss against learning rate, a line an arm over the means, a point a seed."""
    rows = pd.DataFrame(
        [
            {"arm": arm.name, "lr": lr, "seed": seed, "loss": loss}
            for arm in arms.values()
            for lr, by_seed in arm.losses.items()
            for seed, loss in by_seed.items()
            if math.isfinite(loss)
        ]
    )
    x = alt.X("lr:Q", title="learning rate", scale=alt.Scale(type="log"))
    y = alt.Y("loss:Q", title=LOSS, scale=alt.Scale(zero=False))
    color = alt.Color("arm:N", sort=list(arms))
    base = alt.Chart(rows).encode(x=x, color=color)
    points = base.mark_point(size=20).encode(
        y=y, tooltip=["arm:N", "lr:Q", "seed:O", alt.Tooltip("loss:Q", format=".4f")]
    )
    mean = alt.Y("mean(loss):Q", title=LOSS, scale=alt.Scale(zero=False))
    return sized(points + base.mark_line().encode(y=mean), "Every arm at every learning rate")


def side_by_side(arms: Mapping[str, Arm]) -> Any:
    """The loss of each arm at its best learning rate, a point a seed; untuned arms are open."""
    rows = pd.DataFrame(
        [
            {"arm": arm.name, "seed": seed, "loss": loss, "tuned": "tuned" if not arm.wrong else "untuned"}
            for arm in arms.values()
            for seed, loss in arm.at_best.items()
            if math.isfinite(loss)
        ]
    )
    chart = alt.Chart(rows).mark_point(size=40)
    return sized(
        chart.encode(
            x=alt.X("loss:Q", title=LOSS, scale=alt.Scale(zero=False)),
            y=alt.Y("arm:N", sort=list(arms), title=None),
            shape=alt.Shape(
                "tuned:N", title=None, scale=alt.Scale(domain=["tuned", "untuned"], range=["circle", "cross"])
            ),
            tooltip=["arm:N", "seed:O", alt.Tooltip("loss:Q", format=".4f")],
        ),
        "Loss of the arms at their best learning rate",
        height=30 * len(arms),
    )


def differences(gaps: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Differences of loss with their intervals; left of 0 the first one of a pair is better."""
    rows = pd.DataFrame([gap for gap in gaps if gap["value"] is not None])
    y = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=260))
    base = alt.Chart(rows).encode(y=y)
    axis = alt.X("value:Q", title="difference of loss (nats per token)")
    marks = base.mark_point(filled=True, size=50, color="black").encode(x=axis)
    zero = alt.Chart(pd.DataFrame([{"value": 0.0}])).mark_rule(strokeDash=[4, 4]).encode(x="value:Q")
    layers = [zero, marks]
    if any(gap["lo"] is not None for gap in gaps):
        layers.insert(0, base.mark_rule(strokeWidth=2, color="#777").encode(x=alt.X("lo:Q", title=""), x2="hi:Q"))
    return sized(alt.layer(*layers), title, height=40 + 26 * len(rows))


def scatter(rows: Sequence[Mapping[str, Any]], x: str, y: str, title: str) -> Any:
    """Arms by two of their numbers, each named."""
    frame = pd.DataFrame(rows)
    places = alt.Chart(frame).encode(
        x=alt.X(f"{x}:Q", scale=alt.Scale(zero=False, padding=20)), y=alt.Y(f"{y}:Q", scale=alt.Scale(zero=False))
    )
    named = places.mark_text(align="left", dx=7, fontSize=10).encode(text="arm:N")
    return sized(places.mark_point(filled=True, size=40) + named, title)
