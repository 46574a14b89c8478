"""Altair figures of comparisons of arms: tuning, arms side by side, differences, and differences over tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import Chart, heading, with_title
from kleiber.studies.compare.chart_forms import estimates, lines, values_axis
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.compare.arms import Arm

WAYS = {"": "equal training tokens", " at equal time": "equal training time"}


def losses_of(arms: Mapping[str, Arm]) -> list[Json]:
    """A row for each run of the arms that has a finite measure: series (the arm), lr, seed, value."""
    return [
        {"series": name, "lr": lr, "seed": seed, "value": loss}
        for name, arm in arms.items()
        for lr, by_seed in arm.losses.items()
        for seed, loss in by_seed.items()
        if math.isfinite(loss)
    ]


def tuning(arms: Mapping[str, Arm], measure: str) -> Chart:
    """A measure vs learning rate: a line for the mean of each arm, a point for each seed.

    measure  label of the axis
    """
    rows = pd.DataFrame(losses_of(arms))
    x = values_axis("lr", "learning rate", rows["lr"], "~g")
    return lines(rows, x, measure, list(arms), f"{heading(measure)} vs learning rate")


def side_by_side(arms: Mapping[str, Arm], measure: str) -> Chart:
    """A measure of each arm at its best learning rate, a point for each seed; untuned arms are crosses."""
    rows = pd.DataFrame([row for row in losses_of(arms) if row["lr"] == arms[row["series"]].best_lr])
    rows = rows.assign(tuned=["untuned" if arms[name].wrong else "tuned" for name in rows["series"]])
    scale = alt.Scale(domain=["tuned", "untuned"], range=["circle", "cross"])
    chart = alt.Chart(rows).mark_point(size=40).encode(
        x=alt.X("value:Q", title=measure, scale=alt.Scale(zero=False, padding=12)),
        y=alt.Y("series:N", sort=list(arms), title=None),
        shape=alt.Shape("tuned:N", title=None, scale=scale),
        tooltip=["series:N", "seed:O", alt.Tooltip("value:Q", format=".4f")],
    )  # fmt: skip
    return with_title(chart, f"{heading(measure)} by arm, each at its best learning rate", height=30 * len(arms))


def differences(gaps: Sequence[Row], order: Sequence[str], measure: str) -> Chart:
    """Differences of a measure with their intervals, at equal quantities.

    order  the arms
    """
    rows = [
        {
            "series": gap["arm"], "name": f"{gap['arm']} - {gap['against']}, equal {gap['equal']}",
            **{name: gap[name] for name in ("value", "lo", "hi")},
        }
        for gap in gaps
    ]  # fmt: skip
    title = "Difference between arms with its interval; at 0 they are equal"
    return estimates(rows, order, f"difference in {measure}", title, zero=True)


def over_tokens(rows: Sequence[Row], measure: str) -> Chart:
    """Differences of pairs of arms vs training tokens, a panel at equal tokens and one at equal training time."""
    shown = [
        {
            "series": f"{row['arm']} - {row['against']}", "tokens": row["tokens"], "panel": f"At {way}",
            **{name: row[f"{name}{suffix}"] for name in ("value", "lo", "hi")},
        }
        for suffix, way in WAYS.items()
        for row in rows
        if row[f"value{suffix}"] is not None
    ]  # fmt: skip
    frame = pd.DataFrame(shown).astype({"lo": float, "hi": float})
    x = values_axis("tokens", "training tokens", frame["tokens"])
    title = "Difference between arms vs training tokens; at 0 they are equal"
    return lines(frame, x, f"difference in {measure}", list(dict.fromkeys(frame["series"])), title, zero=True)


def scatter(rows: Sequence[Row], x: tuple[str, str], y: tuple[str, str]) -> Chart:
    """A point for each arm with its name, by two columns of the rows; x and y are a column and its label."""
    frame = pd.DataFrame([{"arm": row["arm"], "x": row[x[0]], "y": row[y[0]]} for row in rows])
    across = alt.X("x:Q", scale=alt.Scale(zero=False, padding=50), title=x[1])
    dots = alt.Chart(frame).mark_point(filled=True, size=40)
    dots = dots.encode(x=across, y=alt.Y("y:Q", title=y[1], scale=alt.Scale(zero=False)))
    return with_title(dots + named(frame, across), f"{heading(y[1])} vs {x[1].partition(' (')[0]}")


def named(places: pd.DataFrame, x: alt.X, near: float = 0.045) -> alt.Chart:
    """The name of the arm at each place; names that would overlap are moved up by a share `near` of the height."""
    places = places.sort_values("y").reset_index(drop=True)
    xs, ys = np.array(places["x"], dtype=float), np.array(places["y"], dtype=float)
    room, wide = near * max(float(np.ptp(ys)), 1e-12), 0.25 * np.ptp(xs)
    heights: list[float] = []
    for at, value in zip(xs, ys, strict=True):
        beside = [height + room for height, other in zip(heights, xs, strict=False) if abs(other - at) <= wide]
        heights.append(max([value, *beside]))
    text = alt.Chart(places.assign(at=heights)).mark_text(align="left", dx=8, fontSize=10)
    return text.encode(x=x, y=alt.Y("at:Q", title="", scale=alt.Scale(zero=False)), text="arm:N")
