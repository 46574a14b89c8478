"""The figures of a panel: five forms, each declared by the columns that it shows.

{name: arms, form: estimates, table: Means, series: arm, line: [arm, size], panel: measure, title: ...}
{name: sizes, form: lines, table: Means, measures: loss, x: size, series: arm, title: ...}
{name: trade_off, form: scatter, table: Means, x: MEASURE, y: MEASURE, series: arm, shape: size, title: ...}
{name: recall, form: matrix, table: Means, x: length, y: depth, panel: arm, title: ...}
{name: seeds, form: distribution, measures: loss, series: arm, title: ...}

A line at 0 is drawn for tables of differences, and a line at the reference of a measure for tables of means. With
`runs: true`, lines show single runs in place of intervals. The table `Claims` has a row for each claim of the study,
with the interval that decides it and the verdict. Lines of estimates are sorted by their values unless `sort: false`;
those whose `line` leaves out a key of `series` show its values side by side. Points of a scatter with `join: [KEY,
ORDER]` are joined for each value of KEY in the order of ORDER; `log: true` makes its axes logarithmic, `color: KEY`
colors by a number, `pale: {KEY: VALUE}` draws some rows pale, and `equality: true` draws the line on which both
measures are equal. `names: {LABEL: NAME}` calls series, panels and groups of claims otherwise than tables do. Panels of
measures have their units as titles of their axes, or with `y_titles: {MEASURE: TITLE}` of lines others, which do not
say which side is better, and with `x_titles` of estimates others. `limits: {MEASURE: [LOW, HIGH]}` ends intervals of
estimates at limits.
Lines with `x_as: KEY` have the values of another key on their axis, which has one at each value of `x`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kleiber.studies.claims import expand
from kleiber.studies.compare.rows import Rows
from kleiber.studies.panel_declaration import Table, entries, mapping, refuse_unknown, texts
from kleiber.studies.panel_table import REFERENCE
from kleiber.studies.panel_view import View
from kleiber.types import Row

Node = Mapping[str, object]
Tables = Mapping[str, Sequence[Row]]  # rows with the names of keys and measures, by title
MEASURE = "measure"  # of `panel`: a panel for each measure
CLAIMS = "Claims"  # of `table`: the claims of the study
CLAIM_TABLE = Table(title=CLAIMS, measures=(), contrast={"of": {}}, joint=True)
FORMS = {  # the keys that each form needs, and those that it may have
    "estimates": (
        ("table",),
        ("measures", "where", "series", "line", "panel", "x_title", "x_titles", "sort", "limits"),
    ),
    "lines": (
        ("table", "x"),
        (
            "x_title",
            "y_title",
            "y_titles",
            "measures",
            "where",
            "series",
            "dash",
            "panel",
            "linear",
            "log",
            "begin",
            "runs",
            "x_as",
        ),
    ),
    "scatter": (
        ("table", "x", "y"),
        (
            "where",
            "series",
            "shape",
            "runs",
            "path",
            "fit",
            "log",
            "join",
            "color",
            "equality",
            "pale",
            "x_title",
            "y_title",
        ),
    ),
    "matrix": (("table", "x", "y"), ("measures", "where", "panel")),
    "distribution": (("measures",), ("where", "series")),
}
COMMON = ("name", "form", "title", "subtitle", "names")
COLUMNS = (
    "series",
    "line",
    "panel",
    "dash",
    "shape",
    "join",
    "color",
)  # keys of a figure whose values are keys of the panel


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
            if node["table"] not in (*tables, CLAIMS):
                raise ValueError(f"{place}.table={node['table']} must be the title of a table: {', '.join(tables)}")
            table = tables.get(str(node["table"]), CLAIM_TABLE)
            shown, columns = table.measures or measures, columns_of(table)
        axes = ("x", "y") if form == "matrix" else ("x",) if form == "lines" else ()
        for name in (*COLUMNS, *axes):
            refuse_unknown(f"{place}.{name}", texts(node.get(name), f"{place}.{name}"), [*columns, MEASURE])
        for name in ("measures", *(("x", "y") if form == "scatter" else ())):
            refuse_unknown(f"{place}.{name}", texts(node.get(name), f"{place}.{name}"), shown)
        refuse_unknown(f"{place}.x_as", texts(node.get("x_as"), f"{place}.x_as"), keys)
        for name in ("x_titles", "y_titles", "limits"):
            refuse_unknown(f"{place}.{name}", [*mapping(node.get(name), f"{place}.{name}")], shown)
        refuse_unknown(f"{place}.where", [*mapping(node.get("where"), f"{place}.where")], keys)
        refuse_unknown(f"{place}.pale", [*mapping(node.get("pale"), f"{place}.pale")], columns)
        path = entries(node.get("path"), f"{place}.path", ("table", "where", "x", "y", "order"))
        fit = entries(node.get("fit"), f"{place}.fit", ("where", "by"))
        if path:
            refuse_unknown(f"{place}.path.table", [str(path.get("table"))], [*tables])
            other = tables[str(path["table"])]
            refuse_unknown(f"{place}.path", [str(path.get(axis)) for axis in ("x", "y")], other.measures)
            refuse_unknown(f"{place}.path.order", [str(path.get("order"))], columns_of(other))
        if fit:
            refuse_unknown(f"{place}.fit.by", [str(fit.get("by"))], columns)


def columns_of(table: Table) -> list[str]:
    """Returns the keys that the rows of a table have."""
    return [*mapping(table.contrast.get("each"), "each"), *table.by]


def table_of(node: Node, view: View) -> Table | None:
    """Returns the table of a figure; None for one of single runs."""
    return view.tables.get(text(node, "table"), CLAIM_TABLE) if "table" in node else None


def is_shown(node: Node, view: View, tables: Tables) -> bool:
    """Whether a figure has anything to show: rows, for lines two values of their axis, for a scatter both measures."""
    rows = selected(node, view, tables)
    if node["form"] == "lines" and len(rows):
        return rows[str(node["x"])].nunique() > 1
    if node["form"] == "scatter" and len(rows):
        rows = wide(rows, columns_of(view.tables[text(node, "table")]), text(node, "x"), text(node, "y"))
    return bool(len(rows))


def wide(rows: Rows, keys: Sequence[str], x: str, y: str) -> Rows:
    """Returns a row for each combination of keys that has two measures, which are columns."""
    part = rows[rows["measure"].isin([x, y])]
    table = part.pivot_table(index=[*keys], columns="measure", values="value", sort=False).reset_index()
    return table.dropna(subset=[x, y]) if {x, y} <= {*table.columns} else table[:0].assign(**{x: [], y: []})


def selected(node: Node, view: View, tables: Tables) -> Rows:
    """Returns the rows of a figure's table, or of the runs: keys, measure, value, lo, hi, and `reference` or nan."""
    names, table = texts(node.get("measures"), "measures"), table_of(node, view)
    if table is not None:
        rows: Rows = pd.DataFrame(tables[str(node["table"])])
        if rows.empty:
            return rows
        rows = rows.astype({"lo": float, "hi": float})
        rows = rows[rows["measure"].isin(names)] if names else rows
        contrast = bool(table.contrast)
    else:
        rows, contrast = view.table[view.table["measure"].isin(names)].assign(lo=np.nan, hi=np.nan), False
    rows = view.chosen(rows, where_of(node, view))
    return rows.assign(reference=[0.0 if contrast else reference_of(view, name) for name in rows["measure"]])


def where_of(node: Node, view: View) -> Mapping[str, object]:
    """Returns the values of keys that a figure shows."""
    (claim,) = expand({"of": mapping(node.get("where"), "where"), **view.first}, view.levels)
    return claim.of


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
    series, names = texts(node.get("series"), "series"), mapping(node.get("names"), "names")
    ranks = {key: {value: rank for rank, value in enumerate(view.levels[key])} for key in series}
    present = view.table[series].dropna().drop_duplicates()
    levels = present.sort_values(series, key=lambda column: column.map(ranks[column.name])) if series else present
    shown, order = ([str(names.get(name, name)) for name in names_of(part, view, series)] for part in (rows, levels))
    panels = [str(names.get(name, name)) for name in names_of(rows, view, texts(node.get("panel"), "panel"))]
    rows = rows.assign(series=shown, panel=panels)
    return rows, list(dict.fromkeys(order)) if series else [""]


def note_of(node: Node, view: View, rows: Rows) -> str:
    """Returns the subtitle: that of the figure, what points and bars are, and what dashed lines are."""
    from kleiber.studies.compare.chart_forms import interval_note  # late, for the libraries of charts

    table = table_of(node, view)
    contrast = table is not None and bool(table.contrast)
    note = interval_note(
        view.level, rows, "mean differences" if contrast else "means", joint=table is not None and table.joint,
        pooled=table is not None and table.pooled is not None, samples=samples_of(table, view),
    )  # fmt: skip
    called = {view.measures[name].called for name in set(rows["measure"])} - {""}
    dashed = f"dashed gray: {', '.join(sorted(called))}" if called and not contrast else ""
    dashed = "dashed: no difference" if contrast and node["form"] in ("estimates", "lines") else dashed
    ticks = "blue ticks: claimed bounds" if "other" in rows and rows["other"].notna().any() else ""
    return "; ".join(filter(None, (text(node, "subtitle"), note, dashed, ticks)))


def samples_of(table: Table | None, view: View) -> str:
    """Returns what the samples of a table's rows are, in the plural: seeds, or values of the keys that make them."""
    if table is CLAIM_TABLE:
        return "seeds" if [*view.samples] == ["seed"] else "samples"  # those of each claim are others
    shown = [] if table is None else columns_of(table)
    varied = [name for name in view.samples if name not in shown and view.table[name].nunique() > 1]
    if varied in ([], ["seed"]):
        return "seeds"
    titles = {key.name: key.title for key in view.keys}
    named = " and ".join(titles.get(name, name) for name in varied)
    seeds = ", one seed each" if view.table["seed"].nunique() == 1 else ""
    return f"{'combinations' if varied[1:] else 'values'} of {named}{seeds}"


def value_title(node: Node, view: View, rows: Rows) -> str:
    """Returns the title of the axis of values; "" where panels of several measures have titles of their own."""
    if MEASURE in texts(node.get("panel"), "panel"):
        return ""
    table, title = table_of(node, view), view.measures[str(rows["measure"].iloc[0])].title
    return f"difference in {title}" if table is not None and table.contrast else title
