"""The figures of a panel: five forms, each declared by the columns that it shows.

{name: arms, form: estimates, table: Means, series: arm, line: [arm, size], panel: measure, title: ...}
{name: sizes, form: lines, table: Means, measures: loss, x: size, series: arm, title: ...}
{name: trade_off, form: scatter, table: Means, x: MEASURE, y: MEASURE, series: arm, shape: size, title: ...}
{name: recall, form: matrix, table: Means, x: length, y: depth, panel: arm, title: ...}
{name: seeds, form: distribution, measures: loss, series: arm, title: ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from kleiber.studies.compare.rows import Rows
from kleiber.studies.panel_table import mapping, texts
from kleiber.types import Row

if TYPE_CHECKING:
    from kleiber.studies.panel import View

Node = Mapping[str, object]
FORMS = {  # the keys that each form needs, and those that it may have
    "estimates": (("table",), ("measures", "series", "line", "panel", "zero", "x_title")),
    "lines": (("table", "x"), ("measures", "series", "panel", "linear", "log", "begin")),
    "scatter": (("table", "x", "y"), ("series", "shape", "rule")),
    "matrix": (("table", "x", "y"), ("measures", "panel")),
    "distribution": (("measures",), ("series", "panel", "where")),
}
COMMON = ("name", "form", "title", "subtitle")


def check(nodes: Sequence[Node], tables: Sequence[str]) -> None:
    """Raises ValueError, which names the key, for a figure of another form, with other keys, or of another table."""
    for at, node in enumerate(nodes):
        key, form = f"study.figures[{at}]", str(node.get("form"))
        if form not in FORMS:
            raise ValueError(f"{key}.form={form} must be one of {', '.join(FORMS)}")
        needed, optional = FORMS[form]
        absent = [name for name in ("name", "title", *needed) if name not in node]
        unknown = [name for name in node if name not in (*COMMON, *needed, *optional)]
        if absent or unknown:
            what = f"needs {absent[0]}" if absent else f"does not have the key {unknown[0]}"
            raise ValueError(f"{key}: the form {form} {what}; its keys are {', '.join((*COMMON, *needed, *optional))}")
        if "table" in needed and node["table"] not in tables:
            raise ValueError(f"{key}.table={node['table']} must be the title of one of the tables: {', '.join(tables)}")


def draw(node: Node, view: View, tables: Mapping[str, Sequence[Row]]) -> object:
    """Returns the chart of a figure."""
    forms = {
        "estimates": draw_estimates, "lines": draw_lines, "scatter": draw_scatter, "matrix": draw_matrix,
        "distribution": draw_distribution,
    }  # fmt: skip
    return forms[str(node["form"])](node, view, shown_rows(node, view, tables))


def shown_rows(node: Node, view: View, tables: Mapping[str, Sequence[Row]]) -> Rows:
    """Returns the rows of the figure's table, or of the runs: columns are keys, measure, title, value, lo and hi."""
    names = texts(node.get("measures"), "measures") or [*view.measures]
    measures = {view.measures[name].label: view.measures[name] for name in names}
    if "table" not in node:
        where = mapping(node.get("where"), "where")
        parts = [view.rows(name, where).assign(measure=view.measures[name].label, lo=None, hi=None) for name in names]
        return pd.concat(parts).assign(title=view.measures[names[0]].title)
    rows = pd.DataFrame([row for row in tables[str(node["table"])] if row["measure"] in measures])
    rows = rows.rename(columns={key.title: key.name for key in view.keys})
    return rows.assign(title=[measures[label].title for label in rows["measure"]])


def column(node: Node, name: str) -> str:
    """Returns the column that a key of a figure names; "" without one."""
    return str(node.get(name) or "")


def names_of(rows: Rows, view: View, columns: Sequence[str]) -> list[str]:
    """Returns the values of some columns of each row as text, with a suffix for large numbers."""
    from kleiber.charts.theme import format_count

    def text(name: str, value: object) -> str:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return format_count(value)
        return view.label(name, value)

    return [", ".join(text(name, row[name]) for name in columns) for _, row in rows.iterrows()]


def in_series(rows: Rows, node: Node, view: View) -> tuple[Rows, list[str]]:
    """Returns the rows with the columns series and panel, where the figure has panels, and the order of the series."""
    series, panel = column(node, "series"), column(node, "panel")
    rows = rows.assign(series=names_of(rows, view, [series]) if series else "")
    if panel:
        rows = rows.assign(panel=rows["title"] if panel == "measure" else names_of(rows, view, [panel]))
    present = set(rows["series"])
    levels = pd.DataFrame({series: view.levels[series]}) if series else pd.DataFrame()
    order = [name for name in names_of(levels, view, [series]) if name in present] if series else [""]
    return rows, order


def note_of(node: Node, view: View, rows: Rows) -> str:
    """Returns the subtitle: that of the figure, and the level of the intervals."""
    from kleiber.studies.compare.chart_forms import interval_note

    return "; ".join(filter(None, (column(node, "subtitle"), interval_note(view.study.level, rows))))


def draw_estimates(node: Node, view: View, rows: Rows) -> object:
    """Returns dots with intervals, a panel for each measure or value of a key."""
    from kleiber.studies.compare.chart_forms import estimates

    rows, order = in_series(rows, node, view)
    line = node.get("line")
    if isinstance(line, list):
        rows = rows.assign(name=names_of(rows, view, [str(name) for name in line]))
    title = column(node, "x_title") or ("" if column(node, "panel") == "measure" else str(rows["title"].iloc[0]))
    return estimates(
        rows.to_dict("records"), order, title, str(node["title"]), zero=bool(node.get("zero")),
        subtitle=note_of(node, view, rows),
    )  # fmt: skip


def draw_lines(node: Node, view: View, rows: Rows) -> object:
    """Returns a measure over a numeric key, a line with intervals for each series."""
    from kleiber.charts.theme import count_axis
    from kleiber.studies.compare.chart_forms import lines, values_axis

    begin = node.get("begin")
    if isinstance(begin, Mapping):
        ((key, value),) = begin.items()
        first = rows[rows[key] == view.label(str(key), value)]
        others = rows[rows[key] != view.label(str(key), value)]
        rows = pd.concat([*(first.assign(**{str(key): name}) for name in dict.fromkeys(others[key])), others])
    rows, order = in_series(rows, node, view)
    x = column(node, "x")
    title = next(key.title for key in view.keys if key.name == x)
    axis = count_axis(x, title, rows[x]) if node.get("linear") else values_axis(x, title, rows[x])
    several = column(node, "panel") == "measure"
    return lines(
        rows, axis, "" if several else str(rows["title"].iloc[0]), order, str(node["title"]), log=bool(node.get("log")),
        own_scales=several, subtitle=note_of(node, view, rows),
    )  # fmt: skip


def draw_scatter(node: Node, view: View, rows: Rows) -> object:
    """Returns one measure against another, a point for each row of the table."""
    import altair as alt

    from kleiber.charts.theme import with_title
    from kleiber.studies.compare.chart_forms import arm_color, span

    keys = [key.name for key in view.keys if key.name in rows]
    x, y = (view.measures[str(node[name])] for name in ("x", "y"))
    wide = rows.pivot_table(index=keys, columns="measure", values="value", sort=False).reset_index()
    wide = wide.dropna(subset=[x.label, y.label])
    wide, order = in_series(wide.assign(title=x.title), node, view)
    wide = wide.rename(columns={x.label: "across", y.label: "up"})
    shape = column(node, "shape")
    encoding = {
        "x": alt.X("across:Q", title=x.title, scale=span(wide["across"])),
        "y": alt.Y("up:Q", title=y.title, scale=span(wide["up"])),
        "color": arm_color(order, [name for name in order if name in set(wide["series"])]),
    }
    if shape:
        wide = wide.assign(form=names_of(wide, view, [shape]))
        title = next(key.title for key in view.keys if key.name == shape)
        encoding["shape"] = alt.Shape("form:N", title=title, sort=list(dict.fromkeys(wide["form"])))
    points = alt.Chart(wide).mark_point(filled=True, size=90, opacity=1).encode(**encoding)
    return with_title(points, str(node["title"]), subtitle=column(node, "subtitle"))


def draw_matrix(node: Node, view: View, rows: Rows) -> object:
    """Returns values in the cells of two keys, a panel for each series."""
    import altair as alt

    from kleiber.studies.compare.chart_forms import matrix

    panel = column(node, "panel")
    rows = rows.assign(change=rows["value"])
    if panel:
        rows = rows.assign(series=names_of(rows, view, [panel]))
    titles = {key.name: key.title for key in view.keys}
    x, y = (str(node[name]) for name in ("x", "y"))
    axes = alt.X(f"{x}:O", title=titles[x], axis=alt.Axis(labelAngle=0)), alt.Y(f"{y}:O", title=titles[y])
    return matrix(rows, *axes, str(rows["title"].iloc[0]), str(node["title"]), subtitle=column(node, "subtitle"))


def draw_distribution(node: Node, view: View, rows: Rows) -> object:
    """Returns the values of all runs, a line of points for each series."""
    import altair as alt

    from kleiber.charts.theme import with_title
    from kleiber.studies.compare.chart_forms import arm_color, span

    rows, order = in_series(rows, node, view)
    x = alt.X("value:Q", title=str(rows["title"].iloc[0]), scale=span(rows["value"]))
    y = alt.Y("series:N", sort=order, title=None)
    marks = alt.Chart(rows[["series", "value", "seed"]]).mark_tick(thickness=2)
    chart = marks.encode(
        x=x, y=y, color=arm_color(order, order, legend=False), tooltip=["series:N", "value:Q", "seed:N"]
    )
    return with_title(chart, str(node["title"]), 30 + 24 * len(order), column(node, "subtitle"))
