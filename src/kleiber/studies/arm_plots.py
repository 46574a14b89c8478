"""The figures of studies with arms: what each learning rate gave, the arms side by side, and their differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.arm_rows import Arm
from kleiber.studies.dress import kinds_color, log_axis, sized

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
    x = log_axis("lr", "learning rate", rows["lr"], every=2, room=1.8)
    y = alt.Y("loss:Q", title=LOSS, scale=alt.Scale(zero=False))
    color = kinds_color(list(arms), "arm")
    base = alt.Chart(rows).encode(x=x, color=color)
    tips = ["arm:N", "lr:Q", "seed:O", alt.Tooltip("loss:Q", format=".4f")]
    points = base.mark_point(size=20).encode(y=y, tooltip=tips)
    mean = alt.Y("mean(loss):Q", title=LOSS, scale=alt.Scale(zero=False))
    last = rows[rows["lr"] == rows["lr"].max()]
    ends = pd.DataFrame(last.groupby(["arm", "lr"], as_index=False)["loss"].mean())
    lines = base.mark_line().encode(y=mean)
    return sized(points + lines + named(ends, "lr", "loss", x, color), "Every arm at every learning rate")


def named(places: pd.DataFrame, name: str, y: str, x: Any, color: Any = alt.Undefined, near: float = 0.045) -> Any:
    """The arm's name beside each place; names that would lie on one another are moved up by `near` of the height."""
    places = places.sort_values(y).reset_index(drop=True)
    xs, ys = np.array(places[name], dtype=float), np.array(places[y], dtype=float)
    room, wide = near * max(float(np.ptp(ys)), 1e-12), 0.25 * np.ptp(xs)
    heights: list[float] = []
    for at, value in zip(xs, ys, strict=True):
        beside = [height + room for height, other in zip(heights, xs, strict=False) if abs(other - at) <= wide]
        heights.append(max([value, *beside]))
    text = alt.Chart(places.assign(at=heights)).mark_text(align="left", dx=8, fontSize=10)
    return text.encode(x=x, y=alt.Y("at:Q", title="", scale=alt.Scale(zero=False)), text="arm:N", color=color)


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
    across = alt.X(f"{x}:Q", scale=alt.Scale(zero=False, padding=50), title=x)
    dots = alt.Chart(frame).mark_point(filled=True, size=40)
    dots = dots.encode(x=across, y=alt.Y(f"{y}:Q", title=LOSS, scale=alt.Scale(zero=False)))
    return sized(dots + named(frame, x, y, across), title)
