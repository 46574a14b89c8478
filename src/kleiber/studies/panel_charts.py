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
from kleiber.charts.theme import HEIGHT, Chart, Rows, count_axis, kind_color, log_axis, span
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
    line = texts(node.get("line"), "line")
    rows = rows.assign(name=names_of(rows, view, line) if line else rows["series"])
    rows = rows.sort_values("value") if node.get("sort") else rows
    title = text(node, "x_title") or value_title(node, view, rows)
    rows = rows.assign(better=[view.measures[name].better for name in rows["measure"]])
    records = rows[["series", "name", "panel", "value", "lo", "hi", "reference", "better"]].to_dict("records")
    return estimates(records, order, title, text(node, "title"), subtitle=note_of(node, view, rows))


def draw_lines(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns measures over a numeric key, a line with intervals, or with its runs, for each series."""
    x, dash, panel = text(node, "x"), texts(node.get("dash"), "dash"), texts(node.get("panel"), "panel")
    runs = view.table[view.table["measure"].isin(set(rows["measure"]))] if node.get("runs") else rows[:0]
    frames = []
    for part in (rows, view.chosen(runs, where_of(node, view))):
        begun = with_beginning(part, node.get("begin"))
        frames.append(in_series(begun.assign(dash=names_of(begun, view, dash)), node, view))
    (rows, order), (runs, _) = frames
    rows = rows.assign(lo=np.nan, hi=np.nan) if node.get("runs") else rows
    drawn, dashes = [name for name in order if name in set(rows["series"])], list(dict.fromkeys(rows["dash"]))
    apart = drawn if runs.empty else []  # intervals need room, points of runs do not
    rows, runs = (part.assign(at=shifted(part, x, apart, bool(node.get("linear")))) for part in (rows, runs))
    ends = rows.loc[rows.groupby(["series", "dash"])[x].idxmax()]
    direct = not panel and len(dashes) == 1 and ends[x].nunique() == 1 and ends["series"].nunique() > 1
    styles = alt.Scale(domain=dashes, range=[*([2 + 2 * n, 3] for n in range(len(dashes) - 1)), [1, 0]])
    legend = alt.Legend() if dashes[1:] else None
    means = Marks(
        rows=rows, line=1.6, bars=0.7, points=44 if runs.empty else 14,
        dash=alt.StrokeDash("dash:N", title=None, sort=dashes, scale=styles, legend=legend),
        shape=alt.Shape("series:N", scale=alt.Scale(domain=drawn), legend=None),
        tips=["series:N", f"{x}:Q", alt.Tooltip("value:Q", format=".4f")],
    )  # fmt: skip
    tables = [means, *([Marks(rows=runs, points=12, opacity=0.6)] if len(runs) else [])]
    scale = scale_over(tables, bool(node.get("log")), float(rows["reference"].iloc[0]))
    if direct:
        names = end_names(ends.assign(at=ends["at"].max()), "series", "at", spread=float(np.ptp(scale.domain)))
        tables.append(names)
    y = alt.Y("value:Q", title=value_title(node, view, rows), axis=alt.Axis(tickCount=6))
    y["scale"] = alt.Undefined if MEASURE in panel else scale
    return lines(
        tables, line_axis(node, view, rows, direct), y, text(node, "title"), log=bool(node.get("log")),
        color=arm_color(order, drawn, legend=not direct and len(drawn) > 1), subtitle=note_of(node, view, rows),
        reference="reference", panel="panel" if panel else "", own_scales=MEASURE in panel,
        units={measure.label: measure.unit for measure in view.measures.values()} if MEASURE in panel else None,
    )  # fmt: skip


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


def line_axis(node: Node, view: View, rows: Rows, direct: bool) -> Chart:
    """Returns the horizontal axis over the rows, with room for the names of lines."""
    x = text(node, "x")
    values, title = rows[x].astype(float), next(key.title for key in view.keys if key.name == x)
    if not node.get("linear"):
        return log_axis("at", title, values, room=1.8 if direct else 1.3)
    axis, room = count_axis("at", title, values), 0.06 * float(np.ptp(values))
    if not direct:
        axis.scale = alt.Scale(domain=[float(values.min()) - room, float(values.max()) + room], nice=False)
    return axis


def draw_scatter(node: Node, view: View, rows: Rows, other: Tables) -> Chart:
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
    across, up = (
        kind(
            f"{name}:Q", title=view.measures[name].title, axis=alt.Axis(tickCount=7),
            scale=span([*shown[name], references[name]]),
        )
        for name, kind in ((x, alt.X), (y, alt.Y))
    )  # fmt: skip
    drawn = [name for name in order if name in set(means["series"])]
    shape = None
    if node.get("shape") or runs == "only":
        column, legend = ("form", alt.Legend(title=None)) if node.get("shape") else ("series", None)
        shape = alt.Shape(f"{column}:N", scale=alt.Scale(domain=list(dict.fromkeys(means[column]))), legend=legend)
    tables = [*path_of(node, view, other), *fitted_lines(node, view, single)]
    if runs:
        size, opacity = (40, 0.9) if runs == "only" else (18, 0.45)
        tables.append(Marks(rows=single, value=y, points=size, opacity=opacity, shape=shape))
    if runs != "only":
        tables.append(Marks(rows=means, value=y, points=90, shape=shape))
    return scatter(
        tables, across, up, text(node, "title"), color=kind_color(drawn, "series", alt.Legend(), order),
        references=(references[x], references[y]), height=round(1.3 * HEIGHT) if node.get("fit") else HEIGHT,
        subtitle=note_of(node, view, rows.assign(lo=np.nan)),
    )  # fmt: skip


def path_of(node: Node, view: View, tables: Tables) -> list[Marks]:
    """Returns a dashed line through the points of another table, in the order of a key."""
    path = mapping(node.get("path"), "path")
    if not path:
        return []
    x, y, order = (str(path[name]) for name in ("x", "y", "order"))
    rows = selected({**path, "measures": [x, y]}, view, tables)
    points = wide(rows, [order], x, y).rename(columns={x: text(node, "x"), y: text(node, "y")})
    return (
        [Marks(rows=points, value=text(node, "y"), line=2, dash=[4, 3], color=LINE, order=order)] if len(points) else []
    )


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
    table = view.tables[text(node, "table")]
    rows = rows.assign(series=names_of(rows, view, [panel])) if panel else rows
    order = {name: [view.label(name, value, short=True) for value in view.levels[name]] for name in (x, y)}
    rows = rows.assign(**{name: names_of(rows, view, [name]) for name in (x, y)})
    across = alt.X(f"{x}:O", title=titles[x], sort=order[x], axis=alt.Axis(labelAngle=0))
    down = alt.Y(f"{y}:O", title=titles[y], sort=order[y])
    legend = view.measures[str(rows["measure"].iloc[0])].title
    title, subtitle = text(node, "title"), text(node, "subtitle")
    if table.contrast:
        return change_matrix(rows.assign(change=rows["value"]), across, down, legend, title, subtitle=subtitle)
    return heat_map(rows, across, down, legend, title, subtitle, panel="series" if panel else "")


def draw_distribution(node: Node, view: View, rows: Rows, _: Tables) -> Chart:
    """Returns the values of all runs, a line of points for each series."""
    rows, order = in_series(rows, node, view)
    shown, title = rows[["series", "value", "seed"]], value_title(node, view, rows)
    return distribution(shown, order, title, text(node, "title"), text(node, "subtitle"))


DRAW = {
    "estimates": draw_estimates, "lines": draw_lines, "scatter": draw_scatter, "matrix": draw_matrix,
    "distribution": draw_distribution,
}  # fmt: skip


def draw(node: Node, view: View, tables: Tables) -> Chart:
    """Returns the chart of a figure."""
    return DRAW[str(node["form"])](node, view, selected(node, view, tables), tables)
