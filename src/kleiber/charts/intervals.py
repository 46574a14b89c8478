"""Estimates with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import CAP, arm_color
from kleiber.charts.theme import (
    WIDTH,
    Chart,
    in_rows,
    kind_color,
    method_of,
    over,
    pointed,
    reference_line,
    span,
)

BOUNDS = {  # how a subtitle explains an estimate that is a bound
    "at most": "arrow to the left: only an upper bound is known",
    "at least": "arrow to the right: only a lower bound is known",
    "not bounded by": "undetermined: could be on either side",
}
OPEN = {"at most": ("triangle-left", 0), "at least": ("triangle-right", 1)}  # head of an arrow, and its end of the axis
NUMBERS = ["value", "lo", "hi", "reference", "other", "another"]  # columns of values of an axis
PLAIN = "#333"  # of lines that their names tell from each other
END = 1.4  # factor by which an axis that is logarithmic away from 0 extends beyond the largest value
HEAD, ROOM = 5, 0.15  # distance of the head of an arrow from the end of the axis; its least length, as a share of that
LETTER, BESIDE, LONG = 5.5, 120, 24  # width of a letter; space for the names of lines of WIDTH; long names, in letters
OTHER = {"shape": "diamond", "filled": False, "size": 60, "color": "#0072B2"}  # of the second value of a line


def estimates(
    rows: Sequence[Mapping[str, object]], order: Sequence[str] | Mapping[str, str], x_title: str, title: str,
    zero: bool = False, subtitle: str = "", *, domain: Sequence[float] | None = None, dodge: bool = False,
    other: Mapping[str, object] = OTHER, columns: int = 2, width: int = 230,
    tips: Sequence[Chart] = (), format: str = ".4f", step: int = 20, own_scales: bool = True, sort: Sequence[str] = (),
    color: Chart = None, shape: Chart = None, by_effect: bool = False, symlog: bool = False,
) -> Chart:  # fmt: skip
    """Dots with their intervals, where they have any: a panel for each `panel` of the rows.

    rows    series (an arm), value, lo, hi; name, the label of the line if not the arm, cut into lines of text at line
            feeds; panel; bound, a key of BOUNDS: of a bound, an arrow runs from the dot to the side that is open, and
            only the other side of the interval is drawn; of a value that nothing bounds there is a word in place of the
            dot; reference, a value at which the panel has a dashed line; hollow, whether the dot is; other, a second
            value, and another, drawn alike; capped, whether its interval has end caps; better, the side of the axis
            that is, of all rows of a panel: lower, higher or none; below, the title of the axis, else `x_title`
    order   all series of the page, for their colors, or with them, which lines have if all are methods
    zero    draws a dashed line at 0
    domain  of the horizontal axis, by default over the values of each panel
    dodge   whether series of one line have places of their own, and a legend
    other   how the second values are drawn
    format  of numbers in tooltips
    step    height of a line
    sort    the lines from top to bottom, by default as in the rows
    color, shape  encodings of the series
    symlog        draws large values closer to 0, where one line would leave no room to the others
    by_effect     sorts the lines by their value, those of several panels by that in the first

    Panels with the same lines name them once. Those of long names stand one below the other.
    """
    shown = _table(rows, zero)
    kinds = [name for name in BOUNDS if name in set(shown["bound"])]
    shape = _shape_of_series(order) if shape is None and dodge else shape
    color = color or color_of(order, set(shown["series"]), dodge)
    sort, shared = _lines_of(shown, sort, by_effect)
    longest, drawn = int(shown["name"].str.split("\n").explode().str.len().max()), len(set(shown["panel"]))
    if drawn == 1 or (longest > LONG and (drawn == 2 or not shared)) or longest > 2 * LONG:
        columns, width = 1, int(min(WIDTH, max(width + 50, WIDTH + BESIDE - LETTER * longest)))
    panels = []
    for at, (heading, part) in enumerate(shown.groupby("panel", sort=False)):
        names = sort if shared else list(dict.fromkeys(part["name"]))
        scale = span(_extent(part if own_scales else shown))
        scale = alt.Scale(domain=domain, padding=6, nice=False) if domain else scale
        title_below = pointed(str(part["below"].iloc[0]) or x_title, str(part["better"].iloc[0]))
        x = symlog_axis(title_below, scale) if symlog else linear_axis(title_below, scale, 4 if columns > 1 else 6)
        beside = alt.Axis(labelLimit=340, labels=not shared or at % columns == 0, labelExpr="split(datum.label, '\\n')")
        rows_down = alt.Scale(domain=names) if shared else alt.Undefined
        lines = alt.Y("name:N", title=None, sort=sort or names, axis=beside, scale=rows_down)
        base = alt.Chart(part).encode(y=lines, color=color)
        base = base.encode(yOffset=alt.YOffset("series:N", sort=order)) if dodge else base
        hints = [*(alt.Tooltip(f"{name}:Q", format=format) for name in ("value", "lo", "hi")), *tips]
        dots = _dots(base if shape is None else base.encode(shape=shape), part, color, 60 if dodge else 50)
        dots = dots.encode(x=x, tooltip=["name:N", "series:N", *hints])
        layers = [*_with_intervals(dots, base, part, x, other), *_open_ends(base, part, x, width)]
        size = {"width": width, "height": step * len(names) + 10}
        panels.append(
            alt.layer(*layers).properties(title=alt.TitleParams(str(heading), fontSize=11, frame="group"), **size)
        )
    bent = "the axis is logarithmic away from 0" if symlog else ""
    notes = "; ".join(filter(None, (subtitle, bent, *(BOUNDS[name] for name in kinds))))
    return in_rows(panels, title, notes, columns)


def _with_intervals(dots: Chart, base: Chart, part: pd.DataFrame, x: Chart, other: Mapping[str, object]) -> list:
    """Returns the dots of a panel with their intervals below them, and its dashed line and second values behind."""
    layers = [dots]
    if np.isfinite(part["lo"]).any():
        cap = base.transform_filter("datum.capped").mark_point(**CAP, shape="M0,-1L0,1", opacity=1)
        caps = [cap.encode(x=over(x, end)) for end in ("lo", "hi") if part["capped"].to_numpy().any()]
        layers[:0] = [base.mark_rule(strokeWidth=1.6).encode(x=over(x, "lo"), x2="hi:Q"), *caps]
    for name in ("other", "another"):
        if np.isfinite(part[name]).any():
            second = base.mark_point(**{"opacity": 1, **other})
            layers.insert(0, second.encode(x=over(x, name), color=alt.value(other["color"])))
    if np.isfinite(part["reference"].to_numpy(dtype=float)).any():
        layers.insert(0, reference_line(x, float(part["reference"].iloc[0])))
    return layers


def _extent(rows: pd.DataFrame) -> np.ndarray:
    """Returns the values of an axis, with room for the arrows of bounds."""
    values = rows[NUMBERS].to_numpy(dtype=float).ravel()
    room = ROOM * (np.nanmax(values) - np.nanmin(values))
    sides = {"at most": -room, "at least": room}
    tips = [value + sides.get(bound, np.nan) for value, bound in zip(rows["value"], rows["bound"], strict=True)]
    return np.append(values, tips)


def _open_ends(base: Chart, part: pd.DataFrame, x: Chart, width: int) -> list:
    """Returns arrows from bounds to the side that is open, and words where nothing bounds a value."""
    layers, ends, bounds = [], x["scale"]["domain"], part["bound"].tolist()
    for bound, (head, end) in OPEN.items():
        if bound in bounds:
            arrow = base.transform_filter(alt.datum["bound"] == bound)
            tip = alt.XValue(HEAD if end == 0 else width - HEAD)
            layers.append(arrow.mark_rule(strokeWidth=1.2, opacity=0.6).encode(x=x, x2=alt.X2Value(tip["value"])))
            layers.append(arrow.mark_point(shape=head, filled=True, size=70, opacity=1).encode(x=tip))
    if "not bounded by" in bounds:
        at = float(part["reference"].iloc[0])
        right = np.isfinite(at) and at > sum(ends) / 2  # the word stands on the side of the dashed line with more room
        style = {"align": "right" if right else "left", "dx": -6 if right else 6, "fontSize": 10, "fontStyle": "italic"}
        place = over(x, "reference") if np.isfinite(at) else alt.XValue(0)
        words = base.transform_filter(alt.datum["bound"] == "not bounded by").mark_text(**style, color="#333")
        layers.append(words.encode(x=place, text=alt.value("undetermined"), color=alt.value("#333")))
    return layers


def _lines_of(shown: pd.DataFrame, sort: Sequence[str], by_effect: bool) -> tuple[list[str], bool]:
    """Returns the lines of all panels from top to bottom, if they have one order, and whether the panels share them.

    Panels share their lines if each has all of them.
    """
    panels = [part.sort_values("value") if by_effect else part for _, part in shown.groupby("panel", sort=False)]
    names = list(dict.fromkeys(name for part in panels for name in part["name"]))
    shared = all(set(part["name"]) == set(names) for part in panels)
    if sort and shared:
        names = [*sort, *(name for name in names if name not in sort)]
    return names if shared or by_effect else list(sort), shared


def color_of(order: Sequence[str] | Mapping[str, str], shown: Iterable[str], dodge: bool) -> Chart:
    """Returns the colors of series, or one for all where the names of lines tell them from each other."""
    if dodge:
        return kind_color(order, "series", alt.Legend())
    return arm_color(order, [*order], legend=False) if all(map(method_of, shown)) else alt.value(PLAIN)


def _dots(base: Chart, part: pd.DataFrame, color: Chart, area: int) -> Chart:
    """Returns the dots of a panel, some of them hollow where a row says so."""
    if not part["hollow"].to_numpy().any():
        return base.mark_point(filled=True, size=area, opacity=1)
    fill = alt.condition("datum.hollow", alt.value("white"), color)
    return base.mark_point(size=60, opacity=1, strokeWidth=1.6).encode(fill=fill)


def linear_axis(title: str, scale: alt.Scale, ticks: int) -> alt.X:
    """Returns a linear axis of values with about so many ticks."""
    return alt.X(
        "value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=ticks, labelOverlap=True, labelFlush=False)
    )


def symlog_axis(title: str, scale: alt.Scale) -> alt.X:
    """Returns an axis over the domain of a linear scale that draws large values closer to 0."""
    low, high = scale["domain"][0], END * scale["domain"][1]  # with a tick beyond the largest values
    bent = alt.Scale(type="symlog", constant=1, domain=[low, high], nice=False)
    return alt.X("value:Q", title=title, scale=bent, axis=alt.Axis(values=symlog_ticks(low, high), labelOverlap=True))


def symlog_ticks(low: float, high: float) -> list[float]:
    """Returns 0 and the numbers 1, 3, 10, 30, ... on both sides of it that an axis has."""
    powers = [m * 10.0**k for k in range(8) for m in (1, 3)]
    return [tick for tick in (*(-power for power in reversed(powers)), 0.0, *powers) if low <= tick <= high]


def _table(rows: Sequence[Mapping[str, object]], zero: bool) -> pd.DataFrame:
    """Returns the rows with all columns; of a bound, the open end of the interval is the value.

    A value that nothing bounds is nan.
    """
    common = {"panel": "", "bound": "", "reference": 0.0 if zero else np.nan, "hollow": False, "other": np.nan,
              "another": np.nan, "capped": False, "better": "none", "below": ""}  # fmt: skip
    shown = pd.DataFrame([{**common, "name": row["series"], **row} for row in rows])
    shown = shown.replace([np.inf, -np.inf], np.nan).astype(
        {"lo": float, "hi": float, "other": float, "another": float}
    )
    shown[["value", "lo", "hi"]] = shown[["value", "lo", "hi"]].where(shown["bound"] != "not bounded by")
    for end, closed in (("lo", ("", "at least")), ("hi", ("", "at most"))):
        shown[end] = shown[end].where(shown["bound"].isin(closed) | shown[end].isna(), shown["value"])
    return shown


def _shape_of_series(order: Iterable[str]) -> Chart:
    """Returns the encoding of series as shapes, which the legend of their colors has too."""
    return alt.Shape("series:N", title=None, sort=[*order], scale=alt.Scale(domain=[*order]))
