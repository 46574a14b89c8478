"""The charts of a panel's figures: how rows are drawn in each of the five forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import (
    HEIGHT,
    LABEL_GAP,
    Chart,
    count_axis,
    kind_color,
    log_axis,
    separate_labels,
    with_title,
)
from kleiber.studies.compare.chart_forms import GRAY, arm_color, estimates, in_rows, matrix, span
from kleiber.studies.compare.rows import Rows
from kleiber.studies.panel_declaration import mapping, texts
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
    text,
    value_title,
    where_of,
    wide,
)
from kleiber.studies.panel_view import View

DODGE = 0.012  # distance of lines that share values of the horizontal axis, so that their intervals are seen
LINE = "#999"


def draw_estimates(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns dots with intervals, a panel for each measure or value of a key."""
    rows, order = in_series(rows, node, view)
    lines = texts(node.get("line"), "line")
    rows = rows.assign(name=names_of(rows, view, lines) if lines else rows["series"])
    rows = rows.sort_values("value") if node.get("sort") else rows
    title = text(node, "x_title") or value_title(node, view, rows)
    records = rows[["series", "name", "panel", "value", "lo", "hi", "reference"]].to_dict("records")
    return estimates(records, order, title, text(node, "title"), subtitle=note_of(node, view, rows))


def draw_lines(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns measures over a numeric key, a line with intervals, or with its runs, for each series."""
    x, dash = text(node, "x"), texts(node.get("dash"), "dash")
    runs = view.table[view.table["measure"].isin(set(rows["measure"]))] if node.get("runs") else rows[:0]
    frames = []
    for part in (rows, view.chosen(runs, where_of(node, view))):
        begun = with_beginning(part, node.get("begin"))
        frames.append(in_series(begun.assign(dash=names_of(begun, view, dash)), node, view))
    (rows, order), (runs, _) = frames
    drawn = [name for name in order if name in set(rows["series"])]
    apart = drawn if runs.empty else []  # intervals need room, points of runs do not
    rows, runs = (part.assign(at=shifted(part, x, apart, bool(node.get("linear")))) for part in (rows, runs))
    note = note_of(node, view, rows.assign(lo=np.nan) if node.get("runs") else rows)
    if not node.get("panel"):
        return with_title(line_panel(node, view, rows, runs, order, (rows, runs)), text(node, "title"), subtitle=note)
    panels = []
    for name, part in rows.groupby("panel", sort=False):
        points = runs[runs["panel"] == name]
        shared = (part, points) if MEASURE in texts(node["panel"], "panel") else (rows, runs)
        chart = line_panel(node, view, part, points, order, shared)
        panels.append(chart.properties(title=str(name), width=235, height=165))
    return in_rows(panels, text(node, "title"), note, 2 if len(panels) < 5 else 3)


def with_beginning(rows: Rows, begin: object) -> Rows:
    """Returns rows in which every line begins with those of one level of a key, such as {arm: base}."""
    if not isinstance(begin, Mapping):
        return rows
    ((key, value),) = begin.items()
    first, others = rows[rows[key] == value], rows[rows[key] != value]
    return pd.concat([*(first.assign(**{str(key): name}) for name in dict.fromkeys(others[key])), others])


def shifted(rows: Rows, x: str, order: Sequence[str], linear: bool) -> list[float]:
    """Returns the values of the horizontal axis, moved a little apart for each series of `order`."""
    values = rows[x].astype(float)
    if rows.empty or not order:
        return values.tolist()
    spread = float(np.ptp(values)) if linear else float(np.log(values.max() / values.min()))
    moves = np.array([DODGE * spread * (order.index(name) - (len(order) - 1) / 2) for name in rows["series"]])
    return (values + moves if linear else values * np.exp(moves)).tolist()


def line_panel(
    node: Node, view: View, rows: Rows, runs: Rows, order: Sequence[str], shared: tuple[Rows, Rows]
) -> Chart:
    """Returns one panel of lines; its scales and colors are those of `shared`, rows and runs."""
    x, dashes = text(node, "x"), list(dict.fromkeys(rows["dash"]))
    ends = rows.loc[rows.groupby(["series", "dash"])[x].idxmax()]
    direct = not node.get("panel") and len(dashes) == 1 and ends[x].nunique() == 1 and ends["series"].nunique() > 1
    axis, scale = line_scales(node, view, *shared, direct)
    drawn = [name for name in order if name in set(shared[0]["series"])]
    color = arm_color(order, drawn, legend=not direct and len(drawn) > 1)
    measure = view.measures[str(rows["measure"].iloc[0])]
    label = measure.unit or None if MEASURE in texts(node.get("panel"), "panel") else measure.title
    heights: dict[str, Chart] = {
        name: alt.Y(f"{name}:Q", title=label, scale=scale, axis=alt.Axis(tickCount=6))
        for name in ("value", "lo", "reference", "height")
    }
    shape = alt.Shape("series:N", scale=alt.Scale(domain=drawn), legend=None)
    styles = alt.Scale(domain=dashes, range=[*([2 + 2 * n, 3] for n in range(len(dashes) - 1)), [1, 0]])
    dash = alt.StrokeDash("dash:N", title=None, sort=dashes, scale=styles, legend=alt.Legend() if dashes[1:] else None)
    base, layers = alt.Chart(rows).encode(x=axis, color=color), list[Chart]()
    if np.isfinite(rows["reference"]).any():
        line = alt.Chart(rows[["reference"]].head(1)).mark_rule(strokeDash=[4, 3], color=GRAY)
        layers.append(line.encode(y=heights["reference"]))
    layers.append(base.mark_line(strokeWidth=1.6).encode(y=heights["value"], strokeDash=dash))
    if runs.empty and np.isfinite(rows["lo"]).any():
        layers.append(base.mark_rule(strokeWidth=1.3, opacity=0.7).encode(y=heights["lo"], y2="hi:Q"))
    if len(runs):
        points = alt.Chart(runs).mark_point(filled=True, size=12, opacity=0.6)
        layers.append(points.encode(x=axis, y=heights["value"], color=color))
    means = base.mark_point(filled=True, size=44 if runs.empty else 14, opacity=1)
    tips = ["series:N", f"{x}:Q", alt.Tooltip("value:Q", format=".4f")]
    layers.append(means.encode(y=heights["value"], shape=shape, tooltip=tips))
    if direct:
        gap = LABEL_GAP * float(np.ptp(scale.domain))
        ends = ends.assign(height=separate_labels(ends["value"].to_numpy(), gap), at=ends["at"].max())
        names = alt.Chart(ends).mark_text(align="left", dx=9, fontSize=11)
        layers.append(names.encode(x=axis, y=heights["height"], text="series:N", color=color))
    return alt.layer(*layers)


def line_scales(node: Node, view: View, rows: Rows, runs: Rows, direct: bool) -> tuple[Chart, alt.Scale]:
    """Returns the horizontal axis and the vertical scale over rows and runs, with room for the names of lines."""
    x = text(node, "x")
    values, title = rows[x].astype(float), next(key.title for key in view.keys if key.name == x)
    if node.get("linear"):
        axis = count_axis("at", title, values)
        room = 0.06 * float(np.ptp(values))
        if not direct:
            axis.scale = alt.Scale(domain=[float(values.min()) - room, float(values.max()) + room], nice=False)
    else:
        axis = log_axis("at", title, values, room=1.8 if direct else 1.3)
    ends = rows[["lo", "hi"]].to_numpy(dtype=float).ravel() if runs.empty else runs["value"]
    bounds = np.concatenate([rows[["value", "reference"]].to_numpy(dtype=float).ravel(), ends])
    bounds = bounds[np.isfinite(bounds)]
    if node.get("log"):
        return axis, alt.Scale(type="log", domain=[float(bounds.min()), float(bounds.max())], padding=10)
    return axis, span(bounds)


def draw_scatter(node: Node, view: View, rows: Rows, tables: Tables) -> Chart:
    """Returns one measure against another: a point for each row of the table, and smaller ones for runs."""
    x, y, runs = text(node, "x"), text(node, "y"), node.get("runs")
    keys = columns_of(view.tables[text(node, "table")])
    single = wide(view.chosen(view.table, where_of(node, view)), [*keys, "run"], x, y)
    frames = []
    for part in (wide(rows, keys, x, y), single):
        named, order = in_series(part.assign(measure=y), node, view)
        frames.append(named.assign(form=names_of(named, view, texts(node.get("shape"), "shape"))))
    means, single = frames
    shown = pd.concat([*([means] if runs != "only" else []), *([single] if runs else [])])
    references = {name: reference_of(view, name) for name in (x, y)}
    axes: dict[str, Chart] = {
        axis: kind(
            f"{name}:Q", title=view.measures[name].title, axis=alt.Axis(tickCount=7),
            scale=span(np.array([*shown[name], references[name]])),
        )
        for axis, name, kind in (("x", x, alt.X), ("y", y, alt.Y))
    }  # fmt: skip
    drawn = [name for name in order if name in set(means["series"])]
    legend = alt.Legend(orient="top" if node.get("fit") else "right")  # fitted lines have their names at the right
    color = kind_color(drawn, "series", legend, order)
    encoding: dict[str, Chart] = {**axes, "color": color}
    if node.get("shape") or runs == "only":
        column, legend = ("form", alt.Legend(title=None)) if node.get("shape") else ("series", None)
        domain = alt.Scale(domain=list(dict.fromkeys(means[column])))
        encoding["shape"] = alt.Shape(f"{column}:N", scale=domain, legend=legend)
    layers: list[Chart] = [
        alt.Chart(pd.DataFrame({name: [references[name]]})).mark_rule(strokeDash=[4, 4], color=GRAY).encode(
            **{axis: axes[axis]}
        )
        for axis, name in (("x", x), ("y", y)) if np.isfinite(references[name])
    ]  # fmt: skip
    layers += [*path_layers(node, view, tables, axes), *fit_layers(node, view, single, axes)]
    if runs:
        size, opacity = (40, 0.9) if runs == "only" else (14, 0.45)
        points = alt.Chart(single).mark_point(filled=runs == "only", size=size, opacity=opacity)
        layers.append(points.encode(**encoding))
    if runs != "only":
        layers.append(alt.Chart(means).mark_point(filled=True, size=90, opacity=1).encode(**encoding))
    height = round(1.3 * HEIGHT) if node.get("fit") else HEIGHT
    return with_title(alt.layer(*layers), text(node, "title"), height, note_of(node, view, rows.assign(lo=np.nan)))


def path_layers(node: Node, view: View, tables: Tables, axes: Mapping[str, Chart]) -> list[Chart]:
    """Returns a dashed line through the points of another table, in the order of a key."""
    path = mapping(node.get("path"), "path")
    if not path:
        return []
    x, y, order = (str(path[name]) for name in ("x", "y", "order"))
    rows = selected({**path, "measures": [x, y]}, view, tables)
    points = wide(rows, [order], x, y).rename(columns={x: text(node, "x"), y: text(node, "y")})
    return (
        []
        if points.empty
        else [alt.Chart(points).mark_line(color=LINE, strokeDash=[4, 3]).encode(**axes, order=f"{order}:Q")]
    )


def fit_layers(node: Node, view: View, runs: Rows, axes: Mapping[str, Chart]) -> list[Chart]:
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
    right = table[table[x] == high]
    heights = separate_labels(right[y].to_numpy(), LABEL_GAP * float(np.ptp(runs[y])))
    right = right.assign(**{"name": names_of(right, view, [by]), y: heights})
    lines = alt.Chart(table).mark_line(color=LINE, strokeWidth=1.2).encode(**axes, detail=f"{by}:N")
    return [lines, alt.Chart(right).mark_text(align="left", dx=12, fontSize=11).encode(**axes, text="name:N")]


def draw_matrix(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns values in the cells of two keys, a panel for each value of a third."""
    titles = {key.name: key.title for key in view.keys}
    x, y, panel = (text(node, name) for name in ("x", "y", "panel"))
    rows = rows.assign(change=rows["value"])
    rows = rows.assign(series=names_of(rows, view, [panel])) if panel else rows
    order = {name: [view.label(name, value, short=True) for value in view.levels[name]] for name in (x, y)}
    rows = rows.assign(**{name: names_of(rows, view, [name]) for name in (x, y)})
    across = alt.X(f"{x}:O", title=titles[x], sort=order[x], axis=alt.Axis(labelAngle=0))
    down = alt.Y(f"{y}:O", title=titles[y], sort=order[y])
    legend = view.measures[str(rows["measure"].iloc[0])].title
    return matrix(rows, across, down, legend, text(node, "title"), subtitle=text(node, "subtitle"))


def draw_distribution(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns the values of all runs, a line of ticks for each series."""
    rows, order = in_series(rows, node, view)
    x = alt.X("value:Q", title=value_title(node, view, rows), scale=span(rows["value"]))
    y = alt.Y("series:N", sort=order, title=None)
    color, tips = arm_color(order, order, legend=False), ["series:N", "value:Q", "seed:N"]
    marks = alt.Chart(rows[["series", "value", "seed"]]).mark_tick(thickness=2)
    chart = marks.encode(x=x, y=y, color=color, tooltip=tips)
    return with_title(chart, text(node, "title"), 30 + 24 * len(order), text(node, "subtitle"))


DRAW = {
    "estimates": draw_estimates, "lines": draw_lines, "scatter": draw_scatter, "matrix": draw_matrix,
    "distribution": draw_distribution,
}  # fmt: skip
