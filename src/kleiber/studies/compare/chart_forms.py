"""The chart forms of the studies that fine-tune: frontiers, lines over seeds, estimates with intervals, and matrices.

Every form takes `order`, the arms of the study: the first is the reference and black, and an arm has the same color in
every figure of a page. More than six arms are drawn as small multiples, each beside the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import WIDTH, Chart, apply_theme, kind_color, with_title
from kleiber.studies.compare.rows import Rows, label
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Row

MOST = 6  # arms in one panel
GRAY = "#888"
FORGETTING, TARGET = "forgetting F (nats per token)", "target loss (nats per token)"


def arm_color(order: Sequence[str], shown: Sequence[str], legend: bool = True) -> alt.Color:
    """Returns the colors of the arms `shown`, each as it is among all; of all without a legend, which panels share."""
    shown = shown if legend else order
    return kind_color(shown, "series", alt.Legend() if legend else None, order)


def small_multiples(draw: Callable[[Sequence[str]], Chart], order: Sequence[str], title: str, subtitle: str) -> Chart:
    """Returns one chart of all arms, or a panel for each arm with the reference beside it."""
    if len(order) <= MOST:
        return with_title(draw(order), title, subtitle=subtitle)
    panels = [draw([order[0], name]).properties(title=name, width=210, height=150) for name in order[1:]]
    return in_rows(panels, title, f"{order[0]} in black; {subtitle}" if subtitle else f"{order[0]} in black", 3)


def in_rows(panels: Sequence[Chart], title: str, subtitle: str = "", columns: int = 2) -> Chart:
    """Returns panels in rows under one title."""
    heading = alt.TitleParams(title, subtitle=subtitle) if subtitle else title
    return apply_theme(alt.concat(*panels, columns=columns).properties(title=heading))


def interval_note(level: float, rows: Sequence[Row] | Rows) -> str:
    """Returns what a figure says of the intervals of its rows, columns lo and hi; "" where no row has one."""
    ends = pd.DataFrame(rows)["lo"].astype(float)
    return f"{percent(level)} intervals over seeds" if np.isfinite(ends).any() else ""


def span(values: Sequence[float] | np.ndarray) -> alt.Scale:
    """Returns a scale over the values, with a little room on both sides."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.05 * max(high - low, 0.01 * abs(high), 1e-3)
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False)


def frontier(points: Rows, order: Sequence[str], at: float | None = None) -> Chart:
    """F vs target loss: a point for each setting with the sd of its seeds, a line for the frontier of each arm.

    Settings far from all frontiers are left out, and the subtitle says how many.

    at  the target loss at which arms are compared, drawn as a dashed line
    """
    best = points[points["best"]]
    near = pd.Series(True, index=points.index)
    for name in ("target", "F"):
        near &= points[name] <= best[name].max() + (best[name].max() - best[name].min())
    near |= points["best"]
    if at is not None:
        least = float(best["target"].min())
        near &= points["target"] <= at + 6 * max(at - least, 0.01 * at)
    shown = points[near].assign(series=points["method"].map(label), sd=points["F_sd"].fillna(0))
    shown = shown.assign(low=shown["F"] - shown["sd"], high=shown["F"] + shown["sd"])
    names = [label(arm) for arm in order]
    beyond = "" if near.all() else f"settings beyond the axes: {int((~near).sum())}"
    lines_at = [] if at is None else [at]
    where = [f"dashed: the loss where F is compared, {loss:.4f}" for loss in lines_at]
    x = alt.X("target:Q", title=TARGET, axis=alt.Axis(tickCount=6), scale=span([*shown["target"], *lines_at]))
    y, low = (
        alt.Y(f"{name}:Q", title=FORGETTING, scale=span(shown[["low", "high"]].to_numpy())) for name in ("F", "low")
    )
    exact = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tips = ["series:N", "setting:N", alt.Tooltip("lr:Q", format=".2g"), "n:Q", *exact]

    def draw(arms: Sequence[str]) -> Chart:
        """The panel of some of the arms."""
        color = arm_color(names, arms, len(names) <= MOST)
        base = alt.Chart(shown[shown["series"].isin(arms)])
        bars = base.mark_rule(opacity=0.5).encode(x=x, y=low, y2="high:Q", color=color)
        marks = base.mark_point(size=40, filled=True, opacity=0.9).encode(x=x, y=y, color=color, tooltip=tips)
        lines = base.transform_filter("datum.best").mark_line(strokeWidth=1.3)
        rule = alt.Chart(pd.DataFrame({"target": lines_at}))
        rule = rule.mark_rule(strokeDash=[5, 4], color=GRAY).encode(x=x)
        return alt.layer(rule, bars, lines.encode(x=x, y=y, color=color, order="target:Q"), marks)

    return small_multiples(draw, names, "Forgetting vs target loss", "; ".join([*where, *([beyond] if beyond else [])]))


def lines(
    rows: Rows,
    x: alt.X,
    y_title: str,
    order: Sequence[str],
    title: str,
    log: bool = False,
    zero: bool = False,
    own_scales: bool = False,
    subtitle: str = "",
) -> Chart:
    """A line over the means of seeds for each arm, with a small point for each seed.

    rows        columns series, value, that of `x`; lo and hi, ends of bars; panel, a panel for each value
    log         whether the vertical axis is logarithmic
    zero        draws a dashed line at 0
    own_scales  whether each panel has a vertical scale of its own; otherwise all have one
    """
    drawn = [name for name in order if name in set(rows["series"])]

    def vertical(part: Rows) -> alt.Scale:
        """The vertical scale over some of the rows."""
        values = part[[name for name in ("value", "lo", "hi") if name in part]].to_numpy(dtype=float).ravel()
        values = np.append(values[np.isfinite(values)], [0.0] * zero)
        return alt.Scale(type="log", padding=10, domain=[values.min(), values.max()]) if log else span(values)

    def draw(part: Rows, arms: Sequence[str], legend: bool = True) -> Chart:
        """The panel of some of the arms."""
        axis, scale = alt.Axis(tickCount=6), vertical(part if own_scales else rows)
        shown = part[part["series"].isin(arms)]
        base = alt.Chart(shown).encode(x=x, color=arm_color(order, arms, legend))
        y, mean, low = (
            alt.Y(f"{name}:Q", title=y_title, scale=scale, axis=axis) for name in ("value", "mean(value)", "lo")
        )
        layers = [base.mark_line(strokeWidth=1.5).encode(y=mean), base.mark_point(size=16, filled=True).encode(y=y)]
        if "lo" in shown and np.isfinite(shown["lo"].to_numpy()).any():
            layers.append(base.mark_rule(opacity=0.6).encode(y=low, y2="hi:Q"))
        if zero:
            line = alt.Chart(pd.DataFrame({"value": [0.0]})).mark_rule(strokeDash=[4, 4], color=GRAY)
            layers.append(line.encode(y=y))
        return alt.layer(*layers)

    if "panel" not in rows:
        return small_multiples(lambda arms: draw(rows, arms, len(drawn) <= MOST), drawn, title, subtitle)
    panels = [
        draw(part, drawn).properties(title=str(name), width=250, height=170)
        for name, part in rows.groupby("panel", sort=False)
    ]
    return in_rows(panels, title, subtitle)


BOUNDS = {  # shape of an estimate that is a bound, and how a subtitle explains it
    "": ("circle", ""),
    "at most": ("triangle-left", "arrow to the left: at most"),
    "at least": ("triangle-right", "arrow to the right: at least"),
    "not bounded by": ("cross", "cross: a difference of two upper bounds, which bounds nothing"),
}


def estimates(
    rows: Sequence[Row], order: Sequence[str], x_title: str, title: str, zero: bool = False, subtitle: str = ""
) -> Chart:
    """Dots with their intervals, where they have any: a panel for each `panel` of the rows.

    rows  series (an arm), value, lo, hi; name, the label of the line if not the arm; panel; bound, a key of BOUNDS: of
          a bound, a triangle points to the side that is open, and only the other side of the interval is drawn;
          reference, a value at which the panel has a dashed line
    zero  draws a dashed line at 0
    """
    common = {"panel": "", "bound": "", "reference": 0.0 if zero else np.nan}
    shown = pd.DataFrame([{**common, "name": row["series"], **row} for row in rows])
    shown = shown.replace([np.inf, -np.inf], np.nan).astype({"lo": float, "hi": float})
    for end, closed in (("lo", ("", "at least")), ("hi", ("", "at most"))):
        shown[end] = shown[end].where(shown["bound"].isin(closed) | shown[end].isna(), shown["value"])
    kinds = [name for name in BOUNDS if name in set(shown["bound"])]
    shapes = alt.Scale(domain=kinds, range=[BOUNDS[name][0] for name in kinds])
    panels = []
    for heading, part in shown.groupby("panel", sort=False):
        names = list(dict.fromkeys(part["name"]))
        y = alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=340))
        arms = [arm for arm in order if arm in set(part["series"])]
        base = alt.Chart(part).encode(y=y, color=arm_color(order, arms, legend=False))
        scale = span(part[["value", "lo", "hi", "reference"]].to_numpy(dtype=float).ravel())
        axis = alt.Axis(tickCount=4, labelOverlap=True)
        x, low = (alt.X(f"{name}:Q", title=x_title, scale=scale, axis=axis) for name in ("value", "lo"))
        tips = ["series:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("value", "lo", "hi"))]
        dots = base.encode(shape=alt.Shape("bound:N", scale=shapes, legend=None)) if kinds != [""] else base
        layers = [dots.mark_point(filled=True, size=50, opacity=1).encode(x=x, tooltip=tips)]
        if np.isfinite(part["lo"].to_numpy()).any():
            layers.insert(0, base.mark_rule(strokeWidth=1.6).encode(x=low, x2="hi:Q"))
        if np.isfinite(part["reference"].to_numpy(dtype=float)).any():
            line = alt.Chart(part[["reference"]].head(1)).mark_rule(strokeDash=[4, 4], color=GRAY)
            layers.insert(0, line.encode(x="reference:Q"))
        size = {"width": WIDTH if len(set(shown["panel"])) == 1 else 230, "height": 20 * len(names) + 10}
        panels.append(alt.layer(*layers).properties(title=alt.TitleParams(str(heading), fontSize=11), **size))
    return in_rows(panels, title, "; ".join(filter(None, (subtitle, *(BOUNDS[name][1] for name in kinds)))))


def matrix(rows: Rows, x: alt.X, y: alt.Y, legend: str, title: str, worse: bool = False, subtitle: str = "") -> Chart:
    """Values written into cells whose color is the change: a panel for each value of `series`, if there is the column.

    rows   columns value, change (nan leaves the cell white), and those of `x` and `y`; text, instead of the value
    worse  whether a positive change is for the worse, and so red
    """
    limit = float(np.nanmax(np.abs(rows["change"].to_numpy()))) or 1.0
    fill = alt.Scale(scheme="redblue", domain=[-limit, limit], reverse=worse)
    color = alt.Color("change:Q", title=legend, scale=fill, legend=alt.Legend(gradientLength=120, titleLimit=200))
    base = alt.Chart(rows).encode(x=x, y=y)
    measured = alt.condition("isValid(datum.change)", color, alt.value("white"))
    cells = base.mark_rect(stroke="white", strokeWidth=2, invalid=None).encode(color=measured)
    strong = alt.condition(f"abs(datum.change) > {0.6 * limit}", alt.value("white"), alt.value("#222"))
    words = alt.Text("text:N") if "text" in rows else alt.Text("value:Q", format=".3f")
    text = base.mark_text(fontSize=10).encode(text=words, color=strong)
    chart = alt.layer(cells, text)
    if "series" not in rows:
        return with_title(chart, title, height=26 * rows[y.shorthand.partition(":")[0]].nunique(), subtitle=subtitle)
    across, down = (rows[axis.shorthand.partition(":")[0]].nunique() for axis in (x, y))
    side = max(90, (50 if "text" in rows else 42) * across)
    facet = alt.Facet("series:N", title=None, sort=list(dict.fromkeys(rows["series"])))
    grid = chart.properties(width=side, height=22 * down).facet(facet=facet, columns=max(1, 760 // side), spacing=16)
    return apply_theme(grid.properties(title=alt.TitleParams(title, subtitle=subtitle) if subtitle else title))


def values_axis(name: str, title: str, values: Rows, style: str = ".3~s") -> alt.X:
    """Returns a logarithmic axis with a tick at every value that occurs, in the notation of the format `style`."""
    ticks = sorted(set(map(float, values)))
    scale = alt.Scale(type="log", domain=[ticks[0] / 1.2, ticks[-1] * 1.2], nice=False)
    return alt.X(
        f"{name}:Q",
        title=title,
        scale=scale,
        axis=alt.Axis(values=ticks, format=style, grid=False, labelOverlap="greedy", labelSeparation=4),
    )
