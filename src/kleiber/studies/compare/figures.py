"""Altair figures of comparisons of arms, of mixtures, of forgetting, and of transfer to labelled tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import apply_theme, heading, kind_color, log_axis, loss_axis, with_title
from kleiber.config.stages import quantity
from kleiber.studies.compare.rows import LOSS, SCRATCH, Rows
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.compare.arms import Arm
    from kleiber.studies.compare.contrast import Claim


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


TARGET, F = "target loss (nats per token)", "forgetting F (nats per token)"


def frontier(points: Rows, order: Sequence[str]) -> alt.TopLevelMixin:
    """F vs target loss: a point for each learning rate with the sd of its seeds, a line for the frontier of each arm.

    Learning rates far from all frontiers are left out, and the subtitle says how many.
    """
    best = points[points["best"]]
    near = pd.Series(True, index=points.index)
    for name in ("target", "F"):
        near &= points[name] <= best[name].max() + (best[name].max() - best[name].min())
    beyond = "" if near.all() else f"; {int((~near).sum())} more lie beyond the axes"
    subtitle = f"one point for each learning rate{beyond}"
    points = points[near | points["best"]]
    shown = points.assign(low=points["F"] - points["F_sd"].fillna(0), high=points["F"] + points["F_sd"].fillna(0))
    color = kind_color(order, "method", alt.Legend())
    shape = alt.Shape("method:N", title=None, scale=alt.Scale(domain=list(order)))
    x = alt.X("target:Q", title=TARGET, scale=alt.Scale(zero=False, nice=False, padding=12))
    y, low = (alt.Y(f"{name}:Q", title=F, scale=alt.Scale(zero=False, nice=False, padding=12)) for name in ("F", "low"))
    exact = (alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target"))
    tips = ["method:N", alt.Tooltip("lr:Q", format=".2g"), "n:Q", *exact]
    base = alt.Chart(shown)
    bars = base.mark_rule(opacity=0.5).encode(x=x, y=low, y2="high:Q", color=color)
    marks = base.mark_point(size=46, filled=True, opacity=0.9).encode(x=x, y=y, color=color, shape=shape, tooltip=tips)
    lines = alt.Chart(shown[shown["best"]]).mark_line(strokeWidth=1.3).encode(x=x, y=y, color=color, order="target:Q")
    return with_title(bars + lines + marks, "Forgetting vs target loss", subtitle=subtitle)


def ranks(claims: Mapping[str, Mapping[str, Claim]], order: Sequence[str]) -> alt.TopLevelMixin:
    """Differences from full fine-tuning by rank, with their intervals."""
    titles = {
        "learns_less": "target loss above full (nats)",
        "forgets_less": "F below full (nats)",
        "matched": "F below full at equal target loss (nats)",
    }
    panels = []
    for kind, title in titles.items():
        rows = pd.DataFrame(
            [{"arm": arm, "value": claim.value, "lo": claim.lo, "hi": claim.hi} for arm, claim in claims[kind].items()],
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
    return apply_theme(alt.hconcat(*panels).properties(title="Difference between LoRA and full fine-tuning, by rank"))


def learning_rates(rows: Rows, order: Sequence[str]) -> alt.TopLevelMixin:
    """Target loss vs learning rate: a line for the mean of each arm, a point for each seed."""
    color = kind_color(order, "method", alt.Legend())
    x, y = log_axis("lr", "learning rate", rows["lr"].to_numpy()), loss_axis("target", TARGET, log=False)
    mean = alt.Y("mean(target):Q", title=TARGET, scale=alt.Scale(zero=False, nice=False, padding=12))
    base = alt.Chart(rows[["method", "lr", "target", "seed"]]).encode(x=x, color=color)
    chart = base.mark_point(size=18).encode(y=y) + base.mark_line().encode(y=mean)
    return with_title(chart, "Every arm at every learning rate")


PANEL = {"width": 250, "height": 170}


def score_gains(gap_rows: Sequence[Row]) -> alt.TopLevelMixin:
    """Pre-trained less from nothing at the most labels, with intervals: a panel a task, right of 0 it helps."""
    most = max(row["share"] for row in gap_rows)
    rows = pd.DataFrame([row for row in gap_rows if row["share"] == most and row["gap"] is not None])
    rows["what"] = rows["kind"] + " from " + rows["start"]
    panels = []
    for task, part in rows.groupby("task", sort=False):
        y = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=220))
        base = alt.Chart(part).encode(y=y)
        title = "score above the same model from nothing"
        x = alt.X("gap:Q", title=title, axis=alt.Axis(tickCount=5))
        zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color="#888", strokeDash=[4, 4]).encode(x="x:Q")
        layers = [zero, base.mark_point(filled=True, size=56, color="black", opacity=1).encode(x=x)]
        if bool(part["lo"].notna().any()):
            layers.insert(1, base.mark_rule(strokeWidth=2).encode(x=alt.X("lo:Q", title=title), x2="hi:Q"))
        panels.append(alt.layer(*layers).properties(title=str(task), width=250, height=24 * len(part) + 20))
    return two_a_row(panels, "Score gained by pre-training")


def scores_by_labels(rows: Rows) -> alt.TopLevelMixin:
    """Score by the share of the labels, a line for each kind and start over the means of seeds: a panel a task."""
    shown = rows.assign(what=rows["kind"] + " from " + rows["start"])
    names = list(dict.fromkeys(shown.sort_values(["kind", "start"])["what"]))
    panels = []
    for task, part in shown.groupby("task", sort=False):
        shares = sorted(set(part["share"]))
        axis = alt.Axis(values=shares, format="~%", grid=False)
        scale = alt.Scale(type="log", domain=[min(shares) / 1.2, max(shares) * 1.2], nice=False)
        x = alt.X("share:Q", title="share of the labels", scale=scale, axis=axis)
        panels.append(score_lines(part, x, names, part["metric"].iloc[0], str(task)))
    return two_a_row(panels, "Score vs share of the labels")


def scores_by_text(rows: Rows) -> alt.TopLevelMixin:
    """Score at the most labels by the bytes of the text, a line for each kind and text, a dashed rule for none."""
    shown = rows[(rows["share"] == rows["share"].max()) & (rows["start"] != SCRATCH)].copy()
    split = shown["start"].str.partition("/")
    shown["bytes"], shown["what"] = split[2].map(quantity).astype(float), shown["kind"] + " from " + split[0]
    names = list(dict.fromkeys(shown.sort_values("what")["what"]))
    panels = []
    for task, part in shown.groupby("task", sort=False):
        sizes = sorted(set(part["bytes"]))
        scale = alt.Scale(type="log", domain=[min(sizes) / 1.3, max(sizes) * 1.3], nice=False)
        x = alt.X("bytes:Q", title="text (bytes)", scale=scale, axis=alt.Axis(values=sizes, format="~s", grid=False))
        new = rows[(rows["task"] == task) & (rows["start"] == SCRATCH) & (rows["share"] == rows["share"].max())]
        chart = score_lines(part, x, names, part["metric"].iloc[0], str(task))
        means = new.groupby("kind", as_index=False)["score"].mean()
        panels.append(chart + alt.Chart(means).mark_rule(strokeDash=[5, 4], color="#888").encode(y="score:Q"))
    return two_a_row(panels, "Score vs pre-training text; dashed: from scratch")


def effective_data(factor_rows: Sequence[Row]) -> alt.TopLevelMixin:
    """How many times the labels training from nothing would have needed; unbounded ones are left out."""
    rows = pd.DataFrame([row for row in factor_rows if 0 < row["factor"] < math.inf])
    rows["what"] = rows["kind"] + " from " + rows["start"]
    rows["top"] = [row if math.isfinite(row) else f for row, f in zip(rows["most"], rows["factor"], strict=True)]
    rows["bottom"] = [row if row > 0 else f for row, f in zip(rows["least"], rows["factor"], strict=True)]
    color = kind_color(list(dict.fromkeys(rows["what"])), "what", alt.Legend())
    panels = []
    for task, part in rows.groupby("task", sort=False):
        axis = alt.Axis(values=sorted(set(part["share"])), format="~%", grid=False)
        x = alt.X("share:Q", title="share of the labels", scale=alt.Scale(type="log", padding=20), axis=axis)
        title = "times the labels, from nothing"
        y = alt.Y("factor:Q", title=title, scale=alt.Scale(type="log", padding=12))
        base = alt.Chart(part).encode(x=x, color=color)
        unity = alt.Chart(pd.DataFrame({"y": [1.0]})).mark_rule(color="#888", strokeDash=[4, 4]).encode(y="y:Q")
        bars = base.mark_rule(opacity=0.6).encode(y=alt.Y("bottom:Q", title=title), y2="top:Q")
        marks = base.mark_point(filled=True, size=50, opacity=1).encode(y=y)
        panels.append((unity + bars + base.mark_line().encode(y=y) + marks).properties(title=str(task), **PANEL))
    return two_a_row(panels, "Effective data: median of seeds, least to most")


def score_lines(part: Rows, x: alt.X, names: Sequence[str], metric: str, title: str) -> alt.LayerChart | alt.FacetChart:
    """A line over the means of seeds and a small point a seed."""
    color = kind_color(names, "what", alt.Legend())
    scale = alt.Scale(zero=False, nice=False, padding=12)
    base = alt.Chart(part[["what", "share", "score", "seed", *(["bytes"] if "bytes" in part else [])]])
    base = base.encode(x=x, color=color)
    points = base.mark_point(size=14, opacity=0.6).encode(y=alt.Y("score:Q", title=metric, scale=scale))
    means = base.mark_line(strokeWidth=1.6).encode(y=alt.Y("mean(score):Q", title=metric, scale=scale))
    return (points + means).properties(title=title, **PANEL)


def two_a_row(panels: Sequence[alt.LayerChart | alt.FacetChart], title: str) -> alt.TopLevelMixin:
    """Panels two a row, under one title."""
    return apply_theme(alt.concat(*panels, columns=2).properties(title=title))
