"""The charts of a panel's figures: how rows are drawn in each of the five forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.distribution import distribution
from kleiber.charts.intervals import estimates
from kleiber.charts.matrix import change_matrix, heat_map
from kleiber.charts.scatter import scatter
from kleiber.charts.series import Marks, arm_color, end_names, lines, scale_over
from kleiber.charts.theme import (
    BLUE,
    HEIGHT,
    LABEL_GAP,
    PALETTE,
    Chart,
    Rows,
    count_axis,
    kind_color,
    log_axis,
    pointed,
    size_color,
    span,
)
from kleiber.studies.compare.chart_forms import DODGE, shifted, with_caps
from kleiber.studies.panel_declaration import Measure, mapping, texts
from kleiber.studies.panel_figures import (
    MEASURE,
    Node,
    Tables,
    columns_of,
    in_series,
    names_of,
    note_of,
    reference_of,
    selected,
    table_of,
    text,
    value_title,
    where_of,
    wide,
)
from kleiber.studies.panel_view import View

LINE, INK = "#999", "#555"  # of lines behind points, and of their names
PALE = 0.4  # opacity of pale points
TICK = {"shape": "M0,-1L0,1", "filled": False, "size": 160, "strokeWidth": 2, "color": BLUE}  # at bounds of claims
STEP = 24  # height of a line of estimates
MANY = 60  # points from which on they are small and translucent
HALF = 0.5  # of the scale of a measure, from which on its axis has all of it


def draw_estimates(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns dots with intervals, a panel for each measure or value of a key."""
    rows, order = in_series(rows, node, view)
    line, series, by_measure = texts(node.get("line"), "line"), texts(node.get("series"), "series"), False
    if MEASURE in texts(node.get("panel"), "panel"):
        by_measure, rows = True, rows.assign(below=[unit_title(node, view, name) for name in rows["measure"]])
    if "name" not in rows:
        rows = rows.assign(name=names_of(rows, view, line) if line else rows["series"])
    else:
        names = renamed(rows["name"], mapping(node.get("names"), "names"))
        rows = rows.assign(name=names + "\n" + rows["verdict"])
    rows = within_limits(rows, mapping(node.get("limits"), "limits"))
    rows = rows.assign(better=[view.measures[name].better for name in rows["measure"]])
    rows = with_caps(rows if node.get("sort") is False else by_effect(rows, line), view.level)
    kept = ["series", "name", "panel", "value", "lo", "hi", "capped", "reference", "better"]
    kept += ["below"] * by_measure + ["other", "another"] * ("other" in rows)
    panels = texts(node.get("panel"), "panel")
    rows = rows if len(panels) < 2 else rows.loc[in_order(rows, view, panels)]
    measure, shares = view.measures[str(rows["measure"].iloc[0])], rows[["value", "lo", "hi"]].to_numpy(dtype=float)
    limits = (
        None if by_measure or contrasts(node, view) or np.nanmax(shares) - np.nanmin(shares) < HALF else measure.limits
    )
    title, dodge = text(node, "x_title") or value_title(node, view, rows), bool(line) and not {*series} <= {*line}
    return estimates(
        rows[kept].to_dict("records"), order, title, text(node, "title"), subtitle=note_of(node, view, rows),
        dodge=dodge, own_scales=len(panels) < 2 and (by_measure or measure.limits is None), domain=limits,
        step=36 if dodge or "verdict" in rows else STEP, other=TICK,
    )  # fmt: skip


def in_order(rows: Rows, view: View, keys: Sequence[str]) -> Rows:
    """Returns the index of rows sorted by the levels of keys, the first of them slowest."""
    levels = {**view.levels, MEASURE: [*view.measures]}
    ranks = pd.DataFrame({key: rows[key].map({value: at for at, value in enumerate(levels[key])}) for key in keys})
    return ranks.sort_values([*keys], kind="stable").index


def within_limits(rows: Rows, limits: Mapping[str, object]) -> Rows:
    """Returns the rows with the ends of intervals inside the limits of their measures, such as those of shares."""
    ends = pd.DataFrame(limits, index=["low", "high"])
    lows, highs = (rows["measure"].map(ends.loc[end]).astype(float) for end in ends.index)
    return rows.assign(lo=rows["lo"].clip(lower=lows), hi=rows["hi"].clip(upper=highs))


def renamed(names: Rows, others: Mapping[str, object]) -> Rows:
    """Returns the names of claims in which labels of groups have other names."""
    for label, name in others.items():
        names = names.str.replace(label, str(name), regex=False)
    return names


def by_effect(rows: Rows, line: Sequence[str]) -> Rows:
    """Returns rows in the order of their values in the first panel; lines of one first key stay together."""
    first = rows[rows["panel"] == rows["panel"].iloc[0]]
    ranks = first.groupby(line[0] if len(line) > 1 else "name", sort=False)["value"].mean().rank()
    keys = rows[line[0] if len(line) > 1 else "name"].map(ranks).fillna(len(rows))
    return rows.loc[keys.sort_values(kind="stable").index]


def unit_title(node: Node, view: View, name: str) -> str:
    """Returns the title of the axis of a panel of one measure: its unit."""
    measure, titles = view.measures[name], mapping(node.get("x_titles"), "x_titles")
    if name in titles:
        return str(titles[name])
    named = text(node, "x_title") or ("difference" if contrasts(node, view) else "")
    return f"{named} ({measure.unit})" if named and measure.unit else named or measure.unit or measure.label


def contrasts(node: Node, view: View) -> bool:
    """Returns whether the table of a figure has differences."""
    table = table_of(node, view)
    return table is not None and bool(table.contrast)


def draw_lines(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns measures over a numeric key, a line with intervals, or with its runs, for each series."""
    x, dash, panel = text(node, "x"), texts(node.get("dash"), "dash"), texts(node.get("panel"), "panel")
    runs = view.table[view.table["measure"].isin(set(rows["measure"]))] if node.get("runs") else rows[:0]
    frames = []
    for part in (rows, view.chosen(runs, where_of(node, view))):
        begun = in_units_of(with_beginning(part, node.get("begin")), x, text(node, "x_as"), view)
        frames.append(in_series(begun.assign(dash=names_of(begun, view, dash)), node, view))
    (rows, order), (runs, _) = frames
    rows = rows.assign(lo=np.nan, hi=np.nan) if node.get("runs") else rows
    drawn, dashes = [name for name in order if name in set(rows["series"])], list(dict.fromkeys(rows["dash"]))
    apart = [f"{name} {dash}" for name in drawn for dash in dashes] if runs.empty else []  # intervals need room
    by = DODGE * (1.2 if panel else 1)  # panels are half as wide
    rows, runs = (with_places(part, x, apart, bool(node.get("linear")), by) for part in (rows, runs))
    ends = rows.loc[rows.groupby(["series", "dash"])[x].idxmax()]
    styles = alt.Scale(domain=dashes, range=[*([2 + 2 * n, 3] for n in range(len(dashes) - 1)), [1, 0]])
    legend = alt.Legend() if dashes[1:] else None
    means = Marks(
        rows=with_caps(rows, view.level), line=1.6, bars=0.7, points=30 if panel else 44,
        dash=alt.StrokeDash("dash:N", title=None, sort=dashes, scale=styles, legend=legend),
        shape=alt.Shape("series:N", scale=alt.Scale(domain=drawn), legend=None),
        tips=["series:N", f"{x}:Q", alt.Tooltip("value:Q", format=".4f")],
    )  # fmt: skip
    tables = [means, *([Marks(rows=runs, points=12, opacity=0.5)] if len(runs) else [])]
    scale = scale_over(tables, bool(node.get("log")), float(rows["reference"].iloc[0]))
    direct = not panel and len(dashes) == 1 and ends[x].nunique() == 1 and ends["series"].nunique() > 1
    if direct:
        spread = float(np.ptp(scale.domain))
        names = end_names(ends.assign(at=ends["at"].max()), "series", "at", spread=spread)
        direct = are_clear(names.rows, spread)
        tables += [names] * direct
    better = view.measures[str(rows["measure"].iloc[0])].better
    title = text(node, "y_title") or value_title(node, view, rows)
    y = alt.Y("value:Q", title=pointed(title, better), axis=alt.Axis(tickCount=6))
    y["scale"] = alt.Undefined if MEASURE in panel else scale
    units = {
        measure.label: pointed(measure.unit or measure.label, measure.better) for measure in view.measures.values()
    }
    for name, other in mapping(node.get("y_titles"), "y_titles").items():
        units[view.measures[name].label] = str(other)
    return lines(
        tables, line_axis(node, view, rows, direct), y, text(node, "title"), log=bool(node.get("log")),
        color=series_color(node, view, order, drawn, legend=not direct and len(drawn) > 1),
        subtitle=note_of(node, view, rows), reference="reference", panel="panel" if panel else "",
        own_scales=MEASURE in panel, units=units if MEASURE in panel else None,
    )  # fmt: skip


def with_places(rows: Rows, x: str, apart: Sequence[str], linear: bool, by: float) -> Rows:
    """Returns rows with their places on the horizontal axis, moved apart for each series and dash of `apart`."""
    keys = rows["series"] + " " + rows["dash"] if len(rows) else []
    return rows.assign(at=shifted(rows.assign(series=keys), x, apart, linear, by))


def are_clear(names: Rows, spread: float) -> bool:
    """Whether each name stands at the end of its line, and none on the dashed line of the reference."""
    moved = (names["height"] - names["value"]).max() / (spread * LABEL_GAP)
    beside = ((names["height"] - names["reference"]).abs() / (spread * LABEL_GAP)).min()
    return bool(moved < HALF and not beside < HALF)


def series_color(node: Node, view: View, order: Sequence[str], drawn: Sequence[str], legend: bool) -> Chart:
    """Returns the colors of series: from dark to light where they are the numbers of one key."""
    series = texts(node.get("series"), "series")
    if len(series) == 1 and all(isinstance(value, int | float) for value in view.levels[series[0]]):
        return size_color(order, alt.Legend() if legend else None, "", "series")
    return arm_color(order, drawn, legend)


def with_beginning(rows: Rows, begin: object) -> Rows:
    """Returns rows in which every line begins with those of one level of a key, such as {arm: base}."""
    if not isinstance(begin, Mapping):
        return rows
    ((key, value),) = begin.items()
    first, others = rows[rows[key] == value], rows[rows[key] != value]
    return pd.concat([*(first.assign(**{str(key): name}) for name in dict.fromkeys(others[key])), others])


def in_units_of(rows: Rows, x: str, other: str, view: View) -> Rows:
    """Returns rows in which each value of the key `x` is replaced by the value that a key `other` has there."""
    if not other:
        return rows
    values = view.table.dropna(subset=[x, other]).groupby(x)[other].first()
    return rows.assign(**{x: rows[x].map(values).astype(float)})


def line_axis(node: Node, view: View, rows: Rows, direct: bool) -> Chart:
    """Returns the horizontal axis over the rows, with room for the names of lines."""
    x = text(node, "x")
    values = rows[x].astype(float)
    title = text(node, "x_title") or next(key.title for key in view.keys if key.name == x)
    if not node.get("linear"):
        axis, room = log_axis("at", title, values, room=1.8), np.exp(0.07 * np.log(values.max() / values.min()))
        low, high = float(rows["at"].min()) / room, float(rows["at"].max()) * room
        axis.scale = alt.Scale(type="log", domain=[low, axis["scale"]["domain"][1] if direct else high], nice=False)
        return axis
    axis, room = count_axis("at", title, values), 0.06 * float(np.ptp(values))
    if not direct:
        axis.scale = alt.Scale(domain=[float(values.min()) - room, float(values.max()) + room], nice=False)
    return axis


def draw_scatter(node: Node, view: View, rows: Rows, other: Tables) -> Chart:
    """Returns one measure against another: a point for each row of the table, and smaller ones for runs.

    Pale points that lie far from the others are left out, and the subtitle says how many.
    """
    x, y, runs, pale = text(node, "x"), text(node, "y"), node.get("runs"), mapping(node.get("pale"), "pale")
    keys = columns_of(view.tables[text(node, "table")])
    single = wide(view.chosen(view.table, where_of(node, view)), [*keys, "run"], x, y)
    frames = []
    for part in (wide(rows, keys, x, y), single):
        named, order = in_series(part.assign(measure=y), node, view)
        frames.append(named.assign(form=names_of(named, view, texts(node.get("shape"), "shape"))))
    means, single = frames
    is_pale = view.selected(means, pale) if pale else np.zeros(len(means), dtype=bool)
    far = far_away(means[[x, y]], is_pale)
    outside = beyond(means[far], view.measures[y].label, y)
    means, is_pale = means[~far], is_pale[~far]
    shown = pd.concat([*([means] if runs != "only" else []), *([single] if runs else [])])
    references = {name: reference_of(view, name) for name in (x, y)}
    across, up = (
        scatter_axis(view.measures[name], title, kind, [*shown[name], references[name]], bool(node.get("log")))
        for name, title, kind in ((x, text(node, "x_title"), alt.X), (y, text(node, "y_title"), alt.Y))
    )
    drawn = [name for name in order if name in set(means["series"])]
    symbols = alt.Legend(symbolFillColor="white", symbolStrokeColor="#333", columns=1)
    column, legend = ("form", symbols) if node.get("shape") else ("series", alt.Legend() if drawn[1:] else None)
    forms = list(dict.fromkeys(means[column])) if node.get("shape") else drawn
    shape = alt.Shape(f"{column}:N", title=None, sort=forms, scale=alt.Scale(domain=forms), legend=legend)
    tables = [*path_of(node, view, other), *fitted_lines(node, view, single), *joined(node, means)]
    if runs:
        size, opacity = (40, 0.9) if runs == "only" else (14, 0.8)
        tables.append(Marks(rows=single, value=y, points=size, opacity=opacity, shape=shape))
    if runs != "only":
        many = len(means) > MANY
        strengths = (
            (means[is_pale], 40, PALE),
            (means[~is_pale], 60 if pale else 30 if many else 90, 0.7 if many else 1.0),
        )
        tables += [Marks(rows=part, value=y, points=n, opacity=o, shape=shape) for part, n, o in strengths if len(part)]
    color = number_color(node, view) if node.get("color") else kind_color(
        drawn, "series", alt.Legend(columns=2) if node.get("shape") else alt.Legend() if drawn[1:] else None, order
    )  # fmt: skip
    return scatter(
        tables, across, up, text(node, "title"), color=color, references=(references[x], references[y]),
        height=round(1.3 * HEIGHT) if node.get("fit") else HEIGHT, equality=bool(node.get("equality")),
        subtitle="; ".join(filter(None, [note_of(node, view, rows.assign(lo=np.nan)), outside])),
    )  # fmt: skip


def far_away(points: Rows, is_pale: np.ndarray) -> np.ndarray:
    """Returns which pale points lie farther from the others than these from each other, on either axis."""
    others = points if is_pale.all() else points[~is_pale]
    low, high = others.min(), others.max()
    inside = (points >= low - (high - low)) & (points <= high + (high - low))
    return is_pale & ~inside.all(axis=1).to_numpy()


def beyond(points: Rows, label: str, y: str) -> str:
    """Returns what a subtitle says of points that are left out; "" without any."""
    if points.empty:
        return ""
    return (
        f"beyond the axes: {len(points)} of the {points['series'].iloc[0]}, with a {label} up to {points[y].max():.3g}"
    )


def scatter_axis(measure: Measure, title: str, kind: type, values: Sequence[float], log: bool) -> Chart:
    """Returns the axis of a measure over its values, linear or logarithmic."""
    title = pointed(title or measure.title, measure.better)
    finite = [value for value in values if np.isfinite(value)]
    if log:
        return log_axis(measure.name, title, finite, kind=kind)
    return kind(f"{measure.name}:Q", title=title, axis=alt.Axis(tickCount=7), scale=span(finite))


def number_color(node: Node, view: View) -> Chart:
    """Returns the colors of the values of a key, from dark to light."""
    name = text(node, "color")
    title = next(key.title for key in view.keys if key.name == name)
    legend = alt.Legend(gradientLength=160, titleLimit=300, gradientOpacity=1)
    return alt.Color(f"{name}:Q", title=title, scale=alt.Scale(scheme=PALETTE), legend=legend)


def joined(node: Node, means: Rows) -> list[Marks]:
    """Returns a thin line through the points of each series, and of each value of the first key of `join`."""
    keys = texts(node.get("join"), "join")
    if not keys:
        return []
    *apart, order = keys
    path = means.assign(path=means[["series", *apart]].astype(str).agg(" ".join, axis=1))
    return [Marks(rows=path, value=text(node, "y"), line=1.0, style={"opacity": 0.5}, detail="path", order=order)]


def path_of(node: Node, view: View, tables: Tables) -> list[Marks]:
    """Returns a dashed line through the points of another table, in the order of a key, whose ends are named."""
    path = mapping(node.get("path"), "path")
    if not path:
        return []
    x, y, order = (str(path[name]) for name in ("x", "y", "order"))
    rows = selected({**path, "measures": [x, y]}, view, tables)
    points = wide(rows, [order], x, y)
    points = points.assign(**{text(node, "x"): points[x], text(node, "y"): points[y]})
    if points.empty:
        return []
    title = next(key.title for key in view.keys if key.name == order)
    ends = points.loc[[points[order].idxmin(), points[order].idxmax()]]
    ends = ends.assign(end=[f"{title} {value:g}" for value in ends[order]], left=ends[text(node, "x")].rank() > 1)
    y = text(node, "y")
    return [
        Marks(rows=points, value=y, line=2, dash=[4, 3], color=LINE, order=order),
        Marks(rows=ends, value=y, name="end", color=INK),
    ]


def fitted_lines(node: Node, view: View, runs: Rows) -> list[Marks]:
    """Returns for each value of a key a straight line through the runs of some group, with its name at the end."""
    fit = mapping(node.get("fit"), "fit")
    if not fit:
        return []
    x, y, by = text(node, "x"), text(node, "y"), str(fit["by"])
    low, high, points = float(runs[x].min()), float(runs[x].max()), []
    for level, part in view.chosen(runs, mapping(fit.get("where"), "where")).groupby(by, sort=False):
        if part[x].nunique() > 1:
            slope, intercept = np.polyfit(part[x], part[y], 1)
            points += [{by: level, x: end, y: intercept + slope * end} for end in (low, high)]
    if not points:
        return []
    table: Rows = pd.DataFrame(points)
    table = table.assign(name=names_of(table, view, [by]))
    names = end_names(table, "name", x, y, float(np.ptp(runs[y])))
    return [Marks(rows=table, value=y, line=1.2, color=LINE, detail=by), replace(names, color="black")]


def draw_matrix(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns values in the cells of two keys, a panel for each value of a third."""
    titles = {key.name: key.title for key in view.keys}
    x, y, panel = (text(node, name) for name in ("x", "y", "panel"))
    rows = rows.assign(series=names_of(rows, view, [panel])) if panel else rows
    order = {name: [view.label(name, value, short=True) for value in view.levels[name]] for name in (x, y)}
    rows = rows.assign(**{name: names_of(rows, view, [name]) for name in (x, y)})
    across = alt.X(f"{x}:O", title=titles[x], sort=order[x], axis=alt.Axis(labelAngle=0))
    down = alt.Y(f"{y}:O", title=titles[y], sort=order[y])
    legend = view.measures[str(rows["measure"].iloc[0])].title
    title, subtitle = text(node, "title"), text(node, "subtitle")
    if contrasts(node, view):
        return change_matrix(rows.assign(change=rows["value"]), across, down, legend, title, subtitle=subtitle)
    return heat_map(rows, across, down, legend, title, subtitle, panel="series" if panel else "")


def draw_distribution(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns the values of all runs, a line of points for each series."""
    rows, order = in_series(rows, node, view)
    shown, title = rows[["series", "value", "seed"]], value_title(node, view, rows)
    better = view.measures[str(rows["measure"].iloc[0])].better
    return distribution(shown, order, title, text(node, "title"), text(node, "subtitle"), better)


DRAW = {
    "estimates": draw_estimates, "lines": draw_lines, "scatter": draw_scatter, "matrix": draw_matrix,
    "distribution": draw_distribution,
}  # fmt: skip


def draw(node: Node, view: View, tables: Tables) -> Chart:
    """Returns the chart of a figure."""
    return DRAW[str(node["form"])](node, view, selected(node, view, tables), tables)
