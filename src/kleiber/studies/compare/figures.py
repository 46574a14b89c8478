"""Altair figures of comparisons of arms and of mixtures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import heading, kind_color, log_axis, with_title
from kleiber.studies.compare.rows import LOSS
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.compare.arms import Arm


def tuning(arms: Mapping[str, Arm], measure: str = LOSS) -> alt.TopLevelMixin:
    """A measure vs learning rate: a line for the mean of each arm, a point for each seed.

    measure  label of the axis
    """
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
    y = alt.Y("loss:Q", title=measure, scale=alt.Scale(zero=False))
    color = kind_color(list(arms), "arm")
    base = alt.Chart(rows).encode(x=x, color=color)
    tips = ["arm:N", "lr:Q", "seed:O", alt.Tooltip("loss:Q", format=".4f")]
    points = base.mark_point(size=20).encode(y=y, tooltip=tips)
    mean = alt.Y("mean(loss):Q", title=measure, scale=alt.Scale(zero=False))
    last = rows[rows["lr"] == rows["lr"].max()]
    ends = pd.DataFrame(last.groupby(["arm", "lr"], as_index=False)["loss"].mean())
    lines = base.mark_line().encode(y=mean)
    return with_title(points + lines + named(ends, "lr", "loss", x, color), f"{heading(measure)} vs learning rate")


def named(
    places: pd.DataFrame, name: str, y: str, x: alt.X, color: alt.Color | None = None, near: float = 0.045
) -> alt.Chart:  # fmt: skip
    """The name of the arm at each place; names that would overlap are moved up by a share `near` of the height."""
    places = places.sort_values(y).reset_index(drop=True)
    xs, ys = np.array(places[name], dtype=float), np.array(places[y], dtype=float)
    room, wide = near * max(float(np.ptp(ys)), 1e-12), 0.25 * np.ptp(xs)
    heights: list[float] = []
    for at, value in zip(xs, ys, strict=True):
        beside = [height + room for height, other in zip(heights, xs, strict=False) if abs(other - at) <= wide]
        heights.append(max([value, *beside]))
    text = alt.Chart(places.assign(at=heights)).mark_text(align="left", dx=8, fontSize=10)
    height = alt.Y("at:Q", title="", scale=alt.Scale(zero=False))
    return text.encode(x=x, y=height, text="arm:N", color=alt.Undefined if color is None else color)


def side_by_side(arms: Mapping[str, Arm], measure: str = LOSS) -> alt.TopLevelMixin:
    """A measure of each arm at its best learning rate, a point for each seed; untuned arms are crosses."""
    rows = pd.DataFrame(
        [
            {"arm": arm.name, "seed": seed, "loss": loss, "tuned": "tuned" if not arm.wrong else "untuned"}
            for arm in arms.values()
            for seed, loss in arm.at_best.items()
            if math.isfinite(loss)
        ]
    )
    scale = alt.Scale(domain=["tuned", "untuned"], range=["circle", "cross"])
    chart = alt.Chart(rows).mark_point(size=40).encode(
        x=alt.X("loss:Q", title=measure, scale=alt.Scale(zero=False, padding=12)),
        y=alt.Y("arm:N", sort=list(arms), title=None),
        shape=alt.Shape("tuned:N", title=None, scale=scale),
        tooltip=["arm:N", "seed:O", alt.Tooltip("loss:Q", format=".4f")],
    )  # fmt: skip
    return with_title(chart, f"{heading(measure)} by arm, each at its best learning rate", height=30 * len(arms))


def differences(gaps: Sequence[Row], title: str, measure: str = LOSS) -> alt.TopLevelMixin:
    """Differences of a measure with their intervals, the first arm of a pair less the second."""
    rows = pd.DataFrame([gap for gap in gaps if gap["value"] is not None])
    y = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=260))
    base = alt.Chart(rows).encode(y=y)
    axis = alt.X("value:Q", title=f"difference in {measure}")
    marks = base.mark_point(filled=True, size=50, color="black").encode(x=axis)
    zero = alt.Chart(pd.DataFrame([{"value": 0.0}])).mark_rule(strokeDash=[4, 4]).encode(x="value:Q")
    layers = [zero, marks]
    if any(gap["lo"] is not None for gap in gaps):
        layers.insert(0, base.mark_rule(strokeWidth=2, color="#777").encode(x=alt.X("lo:Q", title=""), x2="hi:Q"))
    return with_title(alt.layer(*layers), title, height=40 + 26 * len(rows))


def scatter(rows: Sequence[Row], x: tuple[str, str], y: tuple[str, str]) -> alt.TopLevelMixin:
    """A point for each arm with its name, by two columns of the rows; x and y are a column and its label."""
    frame = pd.DataFrame([{"arm": row["arm"], "x": row[x[0]], "y": row[y[0]]} for row in rows])
    across = alt.X("x:Q", scale=alt.Scale(zero=False, padding=50), title=x[1])
    dots = alt.Chart(frame).mark_point(filled=True, size=40)
    dots = dots.encode(x=across, y=alt.Y("y:Q", title=y[1], scale=alt.Scale(zero=False)))
    return with_title(dots + named(frame, "x", "y", across), f"{heading(y[1])} vs {x[1].partition(' (')[0]}")


WAYS = {"": "equal tokens", " at equal time": "equal training time"}


def over_tokens(rows: Sequence[Row], measure: str = LOSS) -> alt.TopLevelMixin:
    """Differences of pairs of arms vs training tokens. Points of a pair are spread horizontally."""
    shown = pd.DataFrame([entry for row in rows for entry in both_ways(row)])
    kinds, pairs = list(dict.fromkeys(shown["kind"])), list(dict.fromkeys(shown["what"]))
    aside = {kind: 1.0 + 0.03 * (at - (len(kinds) - 1) / 2) for at, kind in enumerate(kinds)}
    shown["x"] = [tokens * aside[kind] for tokens, kind in zip(shown["tokens"], shown["kind"], strict=True)]
    across = log_axis("x", "training tokens", np.array(shown["tokens"], dtype=float), every=2, room=2.6)
    y = alt.Y("value:Q", title=f"difference in {measure}", scale=alt.Scale(zero=True))
    dash = alt.StrokeDash("way:N", scale=alt.Scale(domain=list(WAYS.values()), range=[[1, 0], [4, 3]]), legend=None)
    color = kind_color(pairs, "what")
    base = alt.Chart(shown).encode(x=across, color=color, detail="kind:N")
    tips = ["kind:N", "tokens:Q", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("value", "lo", "hi"))]
    zero = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color="#888").encode(y="y:Q")
    ends = shown.loc[shown.groupby("kind")["tokens"].idxmax()]
    names = alt.Chart(ends).mark_text(align="left", dx=8, fontSize=10).encode(x=across, y=y, text="kind:N", color=color)
    bars = base.mark_rule(strokeWidth=1.4).encode(y="lo:Q", y2="hi:Q")
    lines = base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash)
    dots = base.mark_point(filled=True, size=50, opacity=1).encode(y=y, tooltip=tips)
    return with_title(alt.layer(zero, bars, lines, dots, names), "Difference between arms vs training tokens")


def both_ways(row: Row) -> list[Json]:
    """A point at equal tokens and one at equal training time, where there is a difference."""
    entries = []
    for suffix, way in WAYS.items():
        estimate = {key: row[f"{key}{suffix}"] for key in ("value", "lo", "hi")}
        if estimate["value"] is not None:
            names = f"{row['arm']} - {row['against']}"
            entries.append({"what": names, "kind": f"{names}, {way}", "tokens": row["tokens"], "way": way, **estimate})
    return entries
