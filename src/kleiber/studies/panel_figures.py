"""The figures of a panel: five forms, each declared by the columns that it shows.

{name: arms, form: estimates, table: Means, series: arm, line: [arm, size], panel: measure, title: ...}
{name: sizes, form: lines, table: Means, measures: loss, x: size, series: arm, title: ...}
{name: trade_off, form: scatter, table: Means, x: MEASURE, y: MEASURE, series: arm, shape: size, title: ...}
{name: recall, form: matrix, table: Means, x: length, y: depth, panel: arm, title: ...}
{name: seeds, form: distribution, measures: loss, series: arm, title: ...}

A line at 0 is drawn for tables of differences, and a line at the reference of a measure for tables of means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.studies.claims import expand
from kleiber.studies.compare.rows import Rows
from kleiber.studies.panel_declaration import Table, entries, mapping, refuse_unknown, texts
from kleiber.studies.panel_table import REFERENCE
from kleiber.studies.panel_view import View
from kleiber.types import Row

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

Node = Mapping[str, object]
Tables = Mapping[str, Sequence[Row]]  # rows with the names of keys and measures, by title
MEASURE = "measure"  # of `panel`: a panel for each measure
FORMS = {  # the keys that each form needs, and those that it may have
    "estimates": (("table",), ("measures", "where", "series", "line", "panel", "x_title")),
    "lines": (("table", "x"), ("measures", "where", "series", "dash", "panel", "linear", "log", "begin", "runs")),
    "scatter": (("table", "x", "y"), ("where", "series", "shape", "runs", "path", "fit")),
    "matrix": (("table", "x", "y"), ("measures", "where", "panel")),
    "distribution": (("measures",), ("where", "series")),
}
COMMON = ("name", "form", "title", "subtitle")
COLUMNS = ("series", "line", "panel", "dash", "shape")  # keys of a figure whose values are keys of the panel
DODGE = 0.012  # distance of lines that share values of the horizontal axis, so that their intervals are seen


def check(nodes: Sequence[Node], tables: Mapping[str, Table], measures: Sequence[str], keys: Sequence[str]) -> None:
    """Raises ValueError, which names the key, for a figure of another form, or of unknown tables, measures and keys."""
    for at, node in enumerate(nodes):
        place, form = f"study.figures[{at}]", str(node.get("form"))
        if form not in FORMS:
            raise ValueError(f"{place}.form={form} must be one of {', '.join(FORMS)}")
        needed, optional = FORMS[form]
        entries(node, place, (*COMMON, *needed, *optional))
        absent = [name for name in ("name", "title", *needed) if name not in node]
        if absent:
            raise ValueError(f"{place} needs {absent[0]}: the form {form} needs name, title, {', '.join(needed)}")
        shown, columns = measures, keys
        if "table" in needed:
            if node["table"] not in tables:
                raise ValueError(f"{place}.table={node['table']} must be the title of a table: {', '.join(tables)}")
            shown, columns = tables[str(node["table"])].measures, columns_of(tables[str(node["table"])])
        axes = ("x", "y") if form == "matrix" else ("x",) if form == "lines" else ()
        for name in (*COLUMNS, *axes):
            refuse_unknown(f"{place}.{name}", texts(node.get(name), f"{place}.{name}"), [*columns, MEASURE])
        for name in ("measures", *(("x", "y") if form == "scatter" else ())):
            refuse_unknown(f"{place}.{name}", texts(node.get(name), f"{place}.{name}"), shown)
        refuse_unknown(f"{place}.where", [*mapping(node.get("where"), f"{place}.where")], keys)


def columns_of(table: Table) -> list[str]:
    """Returns the keys that the rows of a table have."""
    return [*mapping(table.contrast.get("each"), "each"), *table.by]


def is_shown(node: Node, view: View, tables: Tables) -> bool:
    """Whether a figure has anything to show: rows, and for lines at least two values of the horizontal axis."""
    rows = selected(node, view, tables)
    return bool(len(rows)) and (node["form"] != "lines" or rows[str(node["x"])].nunique() > 1)


def draw(node: Node, view: View, tables: Tables) -> Chart:
    """Returns the chart of a figure."""
    rows = selected(node, view, tables)
    if node["form"] == "estimates":
        return draw_estimates(node, view, rows)
    if node["form"] == "lines":
        return draw_lines(node, view, rows)
    if node["form"] == "scatter":
        return draw_scatter(node, view, rows, tables)
    return draw_matrix(node, view, rows) if node["form"] == "matrix" else draw_distribution(node, view, rows)


def selected(node: Node, view: View, tables: Tables) -> Rows:
    """Returns the rows of a figure's table, or of the runs: keys, measure, value, lo, hi, and `reference` or nan."""
    names = texts(node.get("measures"), "measures")
    if "table" in node:
        rows: Rows = pd.DataFrame(tables[str(node["table"])])
        if rows.empty:
            return rows
        rows = rows.astype({"lo": float, "hi": float})
        rows = rows[rows["measure"].isin(names)] if names else rows
        contrast = bool(view.tables[str(node["table"])].contrast)
    else:
        rows, contrast = view.table[view.table["measure"].isin(names)].assign(lo=np.nan, hi=np.nan), False
    (claim,) = expand({"of": mapping(node.get("where"), "where"), **view.first}, view.levels)
    rows = view.chosen(rows, claim.of)
    return rows.assign(reference=[0.0 if contrast else reference_of(view, name) for name in rows["measure"]])


def reference_of(view: View, name: str) -> float:
    """Returns the value with which a measure is compared; nan without one."""
    reference = view.measures[name].reference
    if isinstance(reference, str):
        return float(view.table.loc[view.table["measure"] == f"{name}{REFERENCE}", "value"].mean())
    return float("nan") if reference is None else reference


def text(node: Node, name: str) -> str:
    """Returns the text of a key of a figure; "" without one."""
    return str(node.get(name) or "")


def names_of(rows: Rows, view: View, keys: Sequence[str]) -> list[str]:
    """Returns what figures call the values of some keys of each row."""
    named = [
        [view.measures[value].label if key == MEASURE else view.label(key, value, short=True) for value in rows[key]]
        for key in keys
    ]
    return [", ".join(filter(None, parts)) for parts in zip(*named, strict=True)] if keys else [""] * len(rows)


def in_series(rows: Rows, node: Node, view: View) -> tuple[Rows, list[str]]:
    """Returns the rows with the columns series and panel, and all series of the study in order, for their colors."""
    series = texts(node.get("series"), "series")
    levels: Rows = pd.DataFrame([*product(*(view.levels[key] for key in series))], columns=series)
    rows, panels = rows.assign(series=names_of(rows, view, series)), texts(node.get("panel"), "panel")
    if panels == [MEASURE]:
        rows = rows.assign(panel=[view.measures[name].title for name in rows["measure"]])
    else:
        rows = rows.assign(panel=names_of(rows, view, panels))
    return rows, list(dict.fromkeys(names_of(levels, view, series))) if series else [""]


def note_of(node: Node, view: View, rows: Rows) -> str:
    """Returns the subtitle: that of the figure, the level of the intervals, and what dashed lines are."""
    from kleiber.studies.compare.chart_forms import interval_note

    contrast = "table" in node and view.tables[str(node["table"])].contrast
    joint = "table" in node and view.tables[str(node["table"])].joint
    note = interval_note(view.level, rows)
    called = {view.measures[name].called for name in dict.fromkeys(rows["measure"])} - {""}
    dashed = "" if contrast or not called else f"dashed: {', '.join(sorted(called))}"
    return "; ".join(filter(None, (text(node, "subtitle"), f"{note}, together" if note and joint else note, dashed)))


def value_title(node: Node, view: View, rows: Rows) -> str:
    """Returns the title of the axis of values; "" where panels of several measures have titles of their own."""
    return "" if MEASURE in texts(node.get("panel"), "panel") else view.measures[str(rows["measure"].iloc[0])].title


def draw_estimates(node: Node, view: View, rows: Rows) -> Chart:
    """Returns dots with intervals, a panel for each measure or value of a key."""
    from kleiber.studies.compare.chart_forms import estimates

    rows, order = in_series(rows, node, view)
    lines = texts(node.get("line"), "line")
    rows = rows.assign(name=names_of(rows, view, lines) if lines else rows["series"])
    title = text(node, "x_title") or value_title(node, view, rows)
    columns = ["series", "name", "panel", "value", "lo", "hi", "reference"]
    records = rows[columns].to_dict("records")
    return estimates(records, order, title, text(node, "title"), subtitle=note_of(node, view, rows))


def draw_lines(node: Node, view: View, rows: Rows) -> Chart:
    """Returns measures over a numeric key, a line with intervals for each series."""
    from kleiber.charts.theme import with_title
    from kleiber.studies.compare.chart_forms import in_rows

    x, dash = text(node, "x"), text(node, "dash")
    runs = view.table[view.table["measure"].isin(set(rows["measure"]))] if node.get("runs") else rows[:0]
    frames = []
    for part in (rows, view.chosen(runs, mapping(node.get("where"), "where"))):
        begun = with_beginning(part, node.get("begin"))
        frames.append(in_series(begun.assign(dash=names_of(begun, view, [dash] if dash else [])), node, view))
    (rows, order), (runs, _) = frames
    order = [name for name in order if name in set(rows["series"])]
    rows, runs = (part.assign(at=shifted(part, x, order, bool(node.get("linear")))) for part in (rows, runs))
    note = note_of(node, view, rows)
    if not node.get("panel"):
        return with_title(line_panel(node, view, rows, runs, order, rows), text(node, "title"), subtitle=note)
    panels = []
    for name, part in rows.groupby("panel", sort=False):
        shared = part if MEASURE in texts(node["panel"], "panel") else rows
        chart = line_panel(node, view, part, runs[runs["panel"] == name], order, shared)
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
    """Returns the values of the horizontal axis, moved a little apart for each series."""
    if rows.empty:
        return []
    at = [DODGE * (order.index(name) - (len(order) - 1) / 2) for name in rows["series"]]
    values = rows[x].astype(float)
    spread = float(np.ptp(values)) if linear else float(np.log(values.max() / values.min()))
    moved = values + np.array(at) * spread if linear else values * np.exp(np.array(at) * spread)
    return moved.tolist()


def line_panel(node: Node, view: View, rows: Rows, runs: Rows, order: Sequence[str], shared: Rows) -> Chart:
    """Returns one panel of lines; the vertical scale is that of the rows `shared`."""
    import altair as alt

    from kleiber.charts.theme import LABEL_GAP, count_axis, log_axis, separate_labels
    from kleiber.studies.compare.chart_forms import arm_color, span

    x, dashes = text(node, "x"), list(dict.fromkeys(rows["dash"]))
    ends = rows.loc[rows.groupby(["series", "dash"])[x].idxmax()]
    direct = not node.get("panel") and len(dashes) == 1 and ends[x].nunique() == 1 and len(order) > 1
    title = next(key.title for key in view.keys if key.name == x)
    values, linear = shared[x].astype(float), bool(node.get("linear"))
    axis = count_axis("at", title, values) if linear else log_axis("at", title, values, room=1.8 if direct else 1.3)
    if linear and not direct:
        room = 0.06 * float(np.ptp(values))
        axis.scale = alt.Scale(domain=[float(values.min()) - room, float(values.max()) + room], nice=False)
    bounds = np.concatenate([part[name].to_numpy(dtype=float) for part, name in vertical_parts(shared, runs)])
    bounds = bounds[np.isfinite(bounds)]
    measure = view.measures[str(rows["measure"].iloc[0])]
    label = measure.unit or None if MEASURE in texts(node.get("panel"), "panel") else measure.title
    scale = alt.Scale(type="log", domain=[bounds.min(), bounds.max()], padding=10) if node.get("log") else span(bounds)

    def y(name: str) -> Chart:
        return alt.Y(f"{name}:Q", title=label, scale=scale, axis=alt.Axis(tickCount=6))

    color = arm_color(order, order, legend=not direct and len(order) > 1)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=[*order]), legend=None)
    styles = alt.Scale(domain=dashes, range=[*([2 + 2 * n, 3] for n in range(len(dashes) - 1)), [1, 0]])
    dash = alt.StrokeDash("dash:N", title=None, sort=dashes, scale=styles, legend=alt.Legend() if dashes[1:] else None)
    base, tips = (
        alt.Chart(rows).encode(x=axis, color=color),
        ["series:N", f"{x}:Q", alt.Tooltip("value:Q", format=".4f")],
    )
    layers = []
    if np.isfinite(rows["reference"]).any():
        line = alt.Chart(rows[["reference"]].head(1)).mark_rule(strokeDash=[4, 3], color="#888")
        layers.append(line.encode(y=y("reference")))
    layers.append(base.mark_line(strokeWidth=1.6).encode(y=y("value"), strokeDash=dash))
    if np.isfinite(rows["lo"]).any():
        layers.append(base.mark_rule(strokeWidth=1.3, opacity=0.7).encode(y=y("lo"), y2="hi:Q"))
    if len(runs):
        layers.append(alt.Chart(runs).mark_point(size=12, opacity=0.6).encode(x=axis, y=y("value"), color=color))
    layers.append(base.mark_point(filled=True, size=44, opacity=1).encode(y=y("value"), shape=shape, tooltip=tips))
    if direct:
        heights = separate_labels(ends["value"].to_numpy(), LABEL_GAP * float(np.ptp(bounds)))
        names = alt.Chart(ends.assign(height=heights, at=ends["at"].max())).mark_text(align="left", dx=9, fontSize=11)
        layers.append(names.encode(x=axis, y=y("height"), text="series:N", color=color))
    return alt.layer(*layers)


def vertical_parts(rows: Rows, runs: Rows) -> list[tuple[Rows, str]]:
    """Returns the columns over which a vertical axis extends."""
    return [*((rows, name) for name in ("value", "lo", "hi", "reference")), (runs, "value")]


def draw_scatter(node: Node, view: View, rows: Rows, tables: Tables) -> Chart:
    """Returns one measure against another: a point for each row of the table, smaller ones for runs."""
    import altair as alt

    from kleiber.charts.theme import with_title
    from kleiber.studies.compare.chart_forms import arm_color, span

    x, y, runs = text(node, "x"), text(node, "y"), str(node.get("runs") or "")
    keys = columns_of(view.tables[text(node, "table")])
    means, single = wide(rows, keys, x, y), wide(view.chosen(view.table, where_of(node, view)), [*keys, "run"], x, y)
    shape, parts = texts(node.get("shape"), "shape"), []
    for part in (means, single):
        part, order = in_series(part.assign(measure=y), node, view)
        parts.append(part.assign(form=names_of(part, view, shape)))
    means, single = parts
    shown = [single] if runs == "only" else [means, single] if runs else [means]
    ends = {name: [*np.concatenate([part[name] for part in shown]), reference_of(view, name)] for name in (x, y)}
    axes = {"x": alt.X(f"{x}:Q", title=view.measures[x].title, scale=span(np.array(ends[x]))),
            "y": alt.Y(f"{y}:Q", title=view.measures[y].title, scale=span(np.array(ends[y])))}  # fmt: skip
    drawn = [name for name in order if name in set(means["series"])]
    encoding = {**axes, "color": arm_color(order, drawn)}
    if shape or runs == "only":
        column, names = ("form", list(dict.fromkeys(means["form"]))) if shape else ("series", drawn)
        legend = alt.Legend(title=None) if shape else None
        encoding["shape"] = alt.Shape(f"{column}:N", scale=alt.Scale(domain=names), legend=legend)
    layers = [
        alt.Chart(pd.DataFrame({name: [reference_of(view, name)]})).mark_rule(strokeDash=[4, 4], color="#888").encode(
            **{axis: axes[axis]})
        for axis, name in (("x", x), ("y", y)) if np.isfinite(reference_of(view, name))
    ]  # fmt: skip
    layers += [*path_layers(node, view, tables, axes), *fit_layers(node, view, single, axes)]
    if runs:
        size, opacity = (40, 0.9) if runs == "only" else (14, 0.45)
        layers.append(
            alt.Chart(single).mark_point(filled=runs == "only", size=size, opacity=opacity).encode(**encoding)
        )
    if runs != "only":
        layers.append(alt.Chart(means).mark_point(filled=True, size=90, opacity=1).encode(**encoding))
    note = note_of(node, view, rows.assign(lo=np.nan))
    return with_title(alt.layer(*layers), text(node, "title"), subtitle=note)


def where_of(node: Node, view: View) -> Mapping[str, object]:
    """Returns the values of keys that a figure shows."""
    (claim,) = expand({"of": mapping(node.get("where"), "where"), **view.first}, view.levels)
    return claim.of


def wide(rows: Rows, keys: Sequence[str], x: str, y: str) -> Rows:
    """Returns a row for each combination of keys that has two measures, which are columns."""
    part = rows[rows["measure"].isin([x, y])]
    table = part.pivot_table(index=[*keys], columns="measure", values="value", sort=False).reset_index()
    return table.dropna(subset=[x, y]) if {x, y} <= {*table.columns} else table[:0].assign(**{x: [], y: []})


def path_layers(node: Node, view: View, tables: Tables, axes: Mapping[str, Chart]) -> list[Chart]:
    """Returns a dashed line through the points of another table, in the order of a key."""
    import altair as alt

    path = mapping(node.get("path"), "path")
    if not path:
        return []
    x, y, order = (str(path[name]) for name in ("x", "y", "order"))
    rows = selected({**path, "measures": [x, y]}, view, tables)
    points = wide(rows, [order], x, y).rename(columns={x: text(node, "x"), y: text(node, "y")})
    line = alt.Chart(points).mark_line(color="#999", strokeDash=[4, 3])
    return [line.encode(**axes, order=f"{order}:Q")]


def fit_layers(node: Node, view: View, runs: Rows, axes: Mapping[str, Chart]) -> list[Chart]:
    """Returns for each value of a key a straight line through the runs of some group, with its name at the end."""
    import altair as alt

    from kleiber.charts.theme import LABEL_GAP, separate_labels

    fit = mapping(node.get("fit"), "fit")
    if not fit:
        return []
    x, y, by = text(node, "x"), text(node, "y"), str(fit["by"])
    low, high, lines = float(runs[x].min()), float(runs[x].max()), []
    for level, part in view.chosen(runs, mapping(fit.get("where"), "where")).groupby(by, sort=False):
        if part[x].nunique() > 1:
            slope, intercept = np.polyfit(part[x], part[y], 1)
            lines += [{by: level, x: end, y: intercept + slope * end} for end in (low, high)]
    if not lines:
        return []
    table: Rows = pd.DataFrame(lines)
    right = table[table[x] == high].assign(name=names_of(table[table[x] == high], view, [by]))
    right = right.assign(**{y: separate_labels(right[y].to_numpy(), LABEL_GAP * float(np.ptp(runs[y])))})
    rule = alt.Chart(table).mark_line(color="#999", strokeWidth=1.2).encode(**axes, detail=f"{by}:N")
    return [rule, alt.Chart(right).mark_text(align="left", dx=12, fontSize=11).encode(**axes, text="name:N")]


def draw_matrix(node: Node, view: View, rows: Rows) -> Chart:
    """Returns values in the cells of two keys, a panel for each value of a third."""
    import altair as alt

    from kleiber.studies.compare.chart_forms import matrix

    titles = {key.name: key.title for key in view.keys}
    x, y, panel = (text(node, name) for name in ("x", "y", "panel"))
    rows = rows.assign(change=rows["value"])
    rows = rows.assign(series=names_of(rows, view, [panel])) if panel else rows
    order = {name: [view.label(name, value, short=True) for value in view.levels[name]] for name in (x, y)}
    rows = rows.assign(**{name: names_of(rows, view, [name]) for name in (x, y)})
    axes = (
        alt.X(f"{x}:O", title=titles[x], sort=order[x], axis=alt.Axis(labelAngle=0)),
        alt.Y(f"{y}:O", title=titles[y], sort=order[y]),
    )
    legend = view.measures[str(rows["measure"].iloc[0])].title
    return matrix(rows, *axes, legend, text(node, "title"), subtitle=text(node, "subtitle"))


def draw_distribution(node: Node, view: View, rows: Rows) -> Chart:
    """Returns the values of all runs, a line of ticks for each series."""
    import altair as alt

    from kleiber.charts.theme import with_title
    from kleiber.studies.compare.chart_forms import arm_color, span

    rows, order = in_series(rows, node, view)
    x = alt.X("value:Q", title=value_title(node, view, rows), scale=span(rows["value"]))
    y = alt.Y("series:N", sort=order, title=None)
    color, tips = arm_color(order, order, legend=False), ["series:N", "value:Q", "seed:N"]
    marks = alt.Chart(rows[["series", "value", "seed"]]).mark_tick(thickness=2)
    chart = marks.encode(x=x, y=y, color=color, tooltip=tips)
    return with_title(chart, text(node, "title"), 30 + 24 * len(order), text(node, "subtitle"))
