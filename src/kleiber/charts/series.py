"""Lines and points over a horizontal axis: what is drawn of each table, and figures of one panel or of several.

A table has a row for each point: the column of the horizontal axis, `value`, and if there are intervals `lo` and `hi`.
Arms have the same color in every figure of a page, the first is the reference and black.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import altair as alt
import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from kleiber.charts.theme import (
    HEIGHT,
    LABEL_GAP,
    LOSS_TITLE,
    Chart,
    Rows,
    columns_in,
    in_rows,
    kind_color,
    log_axis,
    loss_axis,
    over,
    reference_line,
    span,
    with_title,
)

MOST = 6  # arms in one panel
BEHIND = "#AAAAAA"  # of the first arm, over which the others are drawn
SMALL = {"width": 235, "height": 165}  # of a panel
CAP = {"filled": False, "size": 50, "strokeWidth": 1.4}  # at the ends of some intervals


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A table of a figure, and what is drawn of it: intervals as a band or as bars, a line, points, and names.

    value    column of the vertical axis
    ends     columns of the ends of the intervals
    band     opacity of the band
    bars     opacity of the bars, which have end caps in rows whose column capped is true
    line     width of the line; 0: none
    mean     whether the line passes through the means of rows at one place
    dashed   a column: the line is dashed in rows in which it is true
    dash     the encoding of the dashes by a column, or the dashes of the whole line
    points   area of the points; 0: none
    opacity  of the points
    hollow   a column: points of rows in which it is true are hollow
    name     a column whose texts stand to the right of the points, or to the left in rows whose column left is true
    color    the encoding, or one color; None: that of the figure
    detail   a column that separates lines of one color
    tips     columns of the tooltip, or their encodings
    width    the encoding of the width of lines by a column
    style    further properties of the line; point_style of the points
    """

    rows: Rows
    value: str = "value"
    ends: tuple[str, str] = ("lo", "hi")
    band: float = 0.0
    bars: float = 0.0
    line: float = 0.0
    mean: bool = False
    dashed: str = ""
    dash: Chart = None
    points: float = 0.0
    opacity: float = 1.0
    hollow: str = ""
    shape: Chart = None
    name: str = ""
    color: Chart = None
    detail: str = ""
    order: str = ""
    tips: Sequence[Chart] = ()
    width: Chart = None
    style: Chart = None
    point_style: Chart = None

    def layers(self, x: Chart, y: Chart, color: Chart) -> list[Chart]:
        """Returns the layers over two axes, those in front last."""
        hue = self.hue(color)
        channels = {"x": x, "color": hue, "detail": f"{self.detail}:N" if self.detail else None}
        base = alt.Chart(self.rows).encode(**{name: channel for name, channel in channels.items() if channel})
        height, (lo, hi), drawn = over(y, self.value), self.ends, list[Chart]()
        if lo in self.rows and np.isfinite(self.rows[lo].to_numpy(dtype=float)).any():
            if self.band:
                drawn.append(
                    base.mark_area(opacity=self.band, strokeWidth=0, clip=True).encode(y=over(y, lo), y2=f"{hi}:Q")
                )
            if self.bars:
                drawn.append(base.mark_rule(opacity=self.bars, strokeWidth=1.4).encode(y=over(y, lo), y2=f"{hi}:Q"))
                if "capped" in self.rows:
                    cap = base.transform_filter("datum.capped").mark_point(**CAP, shape="stroke", opacity=self.bars)
                    drawn += [cap.encode(y=over(y, end)) for end in self.ends]
        drawn += self._lines(base, over(y, f"mean({self.value})") if self.mean else height)
        if self.points:
            drawn.append(self._points(base, height, hue))
        return drawn

    def names(self, x: Chart, y: Chart, color: Chart) -> list[Chart]:
        """Returns the layers of the names, which are in front of all tables, with a halo."""
        if not self.name:
            return []
        base = alt.Chart(self.rows).encode(x=x, y=over(y, self.value), text=f"{self.name}:N")
        if "left" not in self.rows:
            return halo_text(base, self.hue(color))
        sides = [base.transform_filter(where) for where in ("!datum.left", "datum.left")]
        return [*halo_text(sides[0], self.hue(color)), *halo_text(sides[1], self.hue(color), left=True)]

    def hue(self, color: Chart) -> Chart:
        """Returns the encoding of the color, that of the figure where the table has none."""
        return color if self.color is None else alt.value(self.color) if isinstance(self.color, str) else self.color

    def _lines(self, base: Chart, y: Chart) -> list[Chart]:
        if not self.line:
            return []
        style, encoding = {"strokeWidth": self.line, "clip": True, **(self.style or {})}, {"y": y}
        if isinstance(self.dash, alt.StrokeDash):
            encoding["strokeDash"] = self.dash
        elif self.dash:
            style["strokeDash"] = self.dash
        if self.order:
            encoding["order"] = f"{self.order}:Q"
        if self.width is not None:
            encoding["strokeWidth"] = self.width
        whole = base.mark_line(**style).encode(**encoding)
        if not self.dashed:
            return [whole]
        dotted = base.mark_line(**{**style, "strokeWidth": 0.7 * self.line, "strokeDash": [5, 4]}).encode(**encoding)
        return [dotted, whole.transform_filter(f"!datum.{self.dashed}")]

    def _points(self, base: Chart, y: Chart, hue: Chart) -> Chart:
        encoding = {"y": y, "tooltip": [*self.tips]}
        if self.shape is not None:
            encoding["shape"] = self.shape
        if not self.hollow:
            style = {"filled": True, "size": self.points, "opacity": self.opacity, **(self.point_style or {})}
            return base.mark_point(**style).encode(**encoding)
        fill = alt.condition(f"datum.{self.hollow}", alt.value("white"), hue or alt.value("black"))
        return base.mark_point(size=self.points, opacity=1, strokeWidth=1.4).encode(fill=fill, **encoding)


def draw(tables: Sequence[Marks], x: Chart, y: Chart, color: Chart = None, behind: Sequence[Chart] = ()) -> Chart:
    """Returns one panel without a title, each table in front of the one before and of the layers `behind`."""
    names = [layer for marks in tables for layer in marks.names(x, y, color)]
    return alt.layer(*behind, *(layer for marks in tables for layer in marks.layers(x, y, color)), *names)


def halo_text(base: Chart, color: Chart, left: bool = False) -> list[Chart]:
    """Returns texts to the right of their places, or to the left, over a white halo that hides the lines below them."""
    style = {"align": "right" if left else "left", "dx": -9 if left else 9, "fontSize": 11}
    halo = base.mark_text(**style, stroke="white", strokeWidth=4, strokeJoin="round").encode(color=alt.value("white"))
    text = base.mark_text(**style)
    return [halo, text if color is None else text.encode(color=color)]


def end_names(rows: Rows, series: str, x: str, value: str = "value", spread: float = 0.0) -> Marks:
    """Returns the names of lines at their ends, moved apart where they would overlap.

    spread  height of the vertical axis in its unit; 0: that of the values
    """
    rows = rows.reset_index(drop=True)
    ends = rows.loc[rows.groupby(series, sort=False)[x].idxmax()]
    gap = LABEL_GAP * (spread or float(np.ptp(rows[value])))
    return Marks(rows=ends.assign(height=separate_labels(ends[value].to_numpy(), gap)), value="height", name=series)


def separate_labels(values: np.ndarray, gap: float) -> np.ndarray:
    """Returns the values, moved as little as possible so that each is at least `gap` above the next lower one."""
    order, steps = np.argsort(values, kind="stable"), gap * np.arange(len(values))
    moved = np.empty(len(values))
    moved[order] = isotonic_regression(values[order] - steps).x + steps
    return moved


def set_apart(rows: Rows, place: str, column: str, order: Sequence[str], factor: float) -> pd.DataFrame:
    """Returns rows whose places differ by a factor from one series to the next, so that none hides another."""
    steps = rows[column].map({name: at - (len(order) - 1) / 2 for at, name in enumerate(order)}).astype(float)
    return rows.assign(**{place: rows[place] * factor**steps})


def scale_over(tables: Sequence[Marks], log: bool = False, reference: float | None = None) -> alt.Scale:
    """Returns a vertical scale that has all values and intervals of the tables."""
    columns = [marks.rows[name] for marks in tables for name in {marks.value, *marks.ends} if name in marks.rows]
    values = np.concatenate([np.asarray(column, dtype=float) for column in columns])
    values = np.append(values, [] if reference is None else [reference])
    values = values[np.isfinite(values)]
    if not log:
        return span(values)
    return alt.Scale(type="log", padding=10, domain=[float(values.min()), float(values.max())])


def lines(
    tables: Sequence[Marks], x: Chart, y: Chart, title: str, *, color: Chart = None, subtitle: str = "",
    reference: float | str | None = None, panel: str = "", columns: int = 2, height: int = HEIGHT,
    size: dict[str, int] = SMALL, log: bool = False, own_scales: bool = False, units: Mapping[str, str] | None = None,
) -> Chart:  # fmt: skip
    """Returns a figure of tables over one horizontal axis, in one panel or in one for each value of a column.

    x, y        axes; panels have one vertical scale over all values, unless `y` has a scale
    reference   a value at which there is a dashed line, or the column that has it in the first row of the first table
    panel       column of the first table; tables without it are in every panel
    log         whether the vertical scale of panels is logarithmic
    own_scales  whether each panel has a vertical scale of its own
    units       titles of the vertical axes of panels, where they differ
    """

    def panel_of(part: Sequence[Marks], axis: Chart = y) -> Chart:
        """One panel, with a scale over its tables or over all of them."""
        first = part[0].rows
        at = float(first[reference].iloc[0]) if isinstance(reference, str) and len(first) else reference
        at = None if isinstance(at, str) or at is None or np.isnan(at) else at
        if panel and y["scale"] is alt.Undefined:
            axis["scale"] = scale_over(part if own_scales else tables, log, at)
        return draw(part, x, axis, color, [] if at is None else [reference_line(axis, at)])

    names = list(dict.fromkeys(tables[0].rows[panel])) if panel else []
    if len(names) < 2:
        return with_title(panel_of(tables), title, height, "; ".join(filter(None, [*map(str, names), subtitle])))
    panels = []
    for name in names:
        parts = [
            replace(marks, rows=marks.rows[marks.rows[panel] == name]) if panel in marks.rows else marks
            for marks in tables
        ]
        axis = y.copy(deep=False)
        axis["title"] = (units or {}).get(name, y["title"])
        panels.append(panel_of(parts, axis).properties(title=str(name), **size))
    return in_rows(panels, title, subtitle, columns)


def arm_color(order: Sequence[str] | Mapping[str, str], shown: Sequence[str], legend: bool = True) -> alt.Color:
    """Returns the colors of the arms `shown`, each as it is among all; of all without a legend, which panels share."""
    return kind_color(shown if legend else order, "series", alt.Legend() if legend else None, order)


def small_multiples(
    panel: Callable[[Sequence[str]], Chart], order: Sequence[str], title: str, subtitle: str, reference: str = "black"
) -> Chart:
    """Returns one chart of all arms, or a panel for each arm with the reference beside it.

    reference  the color of the reference in words
    """
    if len(order) <= MOST:
        return with_title(panel(order), title, subtitle=subtitle)
    panels = [panel([order[0], name]).properties(title=name, **SMALL) for name in order[1:]]
    return in_rows(panels, title, "; ".join(filter(None, [f"{reference}: {order[0]}, in every panel", subtitle])))


def seed_lines(
    rows: Rows, x: alt.X, y_title: str, order: Sequence[str] | Mapping[str, str], title: str, log: bool = False,
    reference: float | None = None, own_scales: bool = False, subtitle: str = "",
) -> Chart:  # fmt: skip
    """A line over the means of seeds for each arm, with a small point for each seed.

    rows        columns series, value, that of `x`; lo and hi, ends of bars; panel, a panel for each value
    order       the series of all figures of the page, or their colors
    log         whether the vertical axis is logarithmic
    reference   a value at which there is a dashed line
    own_scales  whether each panel has a vertical scale, colors and a legend of its own; otherwise all have one

    Arms in panels of their own are drawn over the first arm, which is a broad gray line.
    """
    drawn = [name for name in order if name in set(rows["series"])]
    several = "panel" not in rows and len(drawn) > MOST
    marks = Marks(rows=rows, line=1.5, mean=True, points=28, bars=0.6, shape=shape_of(drawn, not several))
    y = alt.Y("value:Q", title=y_title, axis=alt.Axis(tickCount=6))
    if "panel" in rows and own_scales:
        panels = []
        for name, part in rows.groupby("panel", sort=False):
            names, axis = [arm for arm in drawn if arm in set(part["series"])], y.copy(deep=False)
            table = replace(marks, rows=part, shape=shape_of(names))
            color = kind_color(names, "series", alt.Legend(columns=columns_in(SMALL["width"], names)))
            axis["scale"] = scale_over([table], log, reference)
            panels.append(draw([table], x, axis, color).properties(title=str(name), **SMALL))
        return in_rows(panels, title, subtitle).resolve_scale(color="independent", shape="independent")
    if "panel" in rows:
        return lines(
            [marks], x, y, title, color=arm_color(order, drawn), subtitle=subtitle, reference=reference, panel="panel",
            log=log,
        )  # fmt: skip
    y["scale"] = scale_over([marks], log, reference)
    dashed = [] if reference is None else [reference_line(y, reference)]

    def panel(arms: Sequence[str]) -> Chart:
        """The panel of some of the arms."""
        parts = [replace(marks, rows=rows[rows["series"].isin(arms)])]
        if several:
            first, other = (replace(marks, rows=rows[rows["series"] == name]) for name in arms)
            parts = [replace(first, line=4, points=44, bars=0, opacity=0.5, color=BEHIND, shape=None), other]
        return draw(parts, x, y, arm_color(order, arms, not several), dashed)

    return small_multiples(panel, drawn, title, subtitle, reference="gray")


def shape_of(names: Sequence[str], legend: bool = True) -> alt.Shape | None:
    """Returns the encoding of series as shapes; None for one series."""
    if not names[1:]:
        return None
    scale = alt.Scale(domain=[*names])
    return alt.Shape("series:N", title=None, sort=[*names], scale=scale, legend=alt.Undefined if legend else None)


def line_chart(
    means: pd.DataFrame, x: str, title: str, kind: str, heading: str, every: int | None = None,
    value: str = LOSS_TITLE, log: bool = False, subtitle: str = "",
) -> Chart:  # fmt: skip
    """Returns a chart of means over seeds, with a line and a shape for each kind, which is named at its end.

    Lines that end at different places are named in a legend, since their names would lie across other lines. One line
    alone has no name, which is for the heading.

    means    a row for each point: x, the column `kind`, mean, lo, hi, half (of the interval; nan without) and seeds
    x, title column and title of the horizontal axis, which is logarithmic
    kind     column whose values are the lines
    heading  title of the chart
    every    factor between ticks of the horizontal axis
    value    title of the vertical axis, which is logarithmic with `log`
    """
    shown = means.rename(columns={"mean": "value"}).assign(kind=means[kind].astype(str))
    kinds = list(dict.fromkeys(shown["kind"]))
    ends = shown.loc[shown.groupby("kind")[x].idxmax()]
    named = len(set(ends[x])) == 1 and len(kinds) > 1
    across = log_axis(x, title, shown[x], every=every, room=1.8 if named else 1.15)
    bounds = shown[["value", "lo", "hi"]].to_numpy(dtype=float)

    def axis(name: str) -> Chart:
        return log_axis(name, value, bounds[np.isfinite(bounds)], kind=alt.Y) if log else loss_axis(name, value, False)

    y, low = axis("value"), axis("lo")
    color = kind_color(kinds, legend=None if named or not kinds[1:] else alt.Legend())
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds), legend=None)
    base = alt.Chart(shown).encode(x=across, color=color)
    layers = [base.mark_line(strokeWidth=1.6).encode(y=y)]
    if np.isfinite(shown["half"]).any():
        layers.append(base.mark_rule(strokeWidth=1.4).encode(y=low, y2="hi:Q"))
    tips = ["kind:N", f"{x}:Q", alt.Tooltip("value:Q", format=".4f"), alt.Tooltip("half:Q", format=".4f"), "seeds:Q"]
    layers.append(base.mark_point(filled=True, size=56, opacity=1).encode(y=y, shape=shape, tooltip=tips))
    if named:
        ends = ends.assign(at=separate_labels(ends["value"].to_numpy(), np.ptp(shown["value"]) * LABEL_GAP))
        layers += halo_text(alt.Chart(ends).encode(x=across, y=axis("at"), text="kind:N"), color)
    return with_title(alt.layer(*layers), heading, subtitle=subtitle)
