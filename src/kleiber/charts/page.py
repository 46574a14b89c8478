"""The HTML page that shows figures and tables: one file that needs no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup

    from kleiber.charts.theme import Chart

LONG = 60  # characters of a cell that is a sentence


class Link(NamedTuple):
    """The value of a table cell that leads to another page; the address is the caller's, never a stranger's text."""

    text: str
    address: str


class Cell(NamedTuple):
    """The text of a table cell of a page, with the page that it leads to; numbers are aligned to the right."""

    text: str
    is_number: bool = False
    address: str = ""


class PageTable(NamedTuple):
    """A table of a page: the columns of all rows in order of appearance, and the cells of each row."""

    columns: list[str]
    cells: list[list[Cell]]

    @property
    def is_list(self) -> bool:
        """Whether a narrow page shows the cells of a row one below the other: of links, and of sentences alone."""
        cells = [cell for row in self.cells for cell in row]
        is_prose = not any(cell.is_number for cell in cells) and any(len(cell.text) > LONG for cell in cells)
        return is_prose or any(cell.address for cell in cells)


def render_page(
    title: str, charts: Mapping[str, Chart], *, answer: str = "", question: str = "", notes: Sequence[str] = (),
    verdicts: Sequence[Mapping[str, object]] = (), tables: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    text: str = "", methods: str = "", details: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    sections: Mapping[str, str] | None = None, pictures: Mapping[str, str] | None = None, home: str = "",
) -> str:  # fmt: skip
    """Returns an HTML page that needs no network, since it contains the scripts that draw its charts (0.9 MB).

    Every text may be hostile: all but `sections` is escaped, and the data of charts cannot end their script element.

    title     title and first heading
    question  what the study asks
    answer    the result in a sentence
    notes     paragraphs below the answer
    verdicts  each with a `level` and a `text`
    tables    rows by heading; empty tables are left out
    text      lines below the tables, in a fixed-width font
    methods   paragraph on methods
    details   tables that are folded, by heading
    sections  HTML by heading, whose maker has escaped the texts in it
    pictures  addresses of finished figures by name, which a page shows in place of charts
    home      address of the page to which a link at the top leads; "" for none
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["code"] = with_code
    environment.policies["json.dumps_kwargs"] = {}  # keeps the order of keys; `tojson` also escapes <, > and &
    return environment.get_template("page.html.j2").render(
        title=title, answer=answer, question=question, notes=notes, verdicts=verdicts, text=text, methods=methods,
        tables={heading: page_table(rows) for heading, rows in (tables or {}).items() if rows},
        details={heading: page_table(rows) for heading, rows in (details or {}).items()},
        specs={name: chart.to_dict() for name, chart in charts.items()},
        sections={heading: Markup(html) for heading, html in (sections or {}).items()},
        scripts=chart_scripts() if charts else "", pictures=pictures or {}, home=home,
    )  # fmt: skip


def with_code(text: str) -> Markup:
    """Returns an escaped text in which what stands between two backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def chart_scripts() -> str:
    """Returns the JavaScript that draws the charts of a page."""
    import vl_convert

    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  (an argument that is optional)


def page_table(rows: Sequence[Mapping[str, object]]) -> PageTable:
    """Returns the table of a page with these rows; a row without a column has an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return PageTable([str(name) for name in names], [[cell(row.get(name)) for name in names] for row in rows])


def cell(value: object) -> Cell:
    """Returns the cell of a value; numbers have four significant digits, None and nan are empty."""
    if value is None or value != value:
        return Cell("")
    if isinstance(value, Link):
        return Cell(value.text, address=value.address)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(f"{value:,}", is_number=True)
    if isinstance(value, float):
        is_whole = 1e3 <= abs(value) < 1e9 and value == int(value)
        return Cell(f"{value:,.0f}" if is_whole else f"{value:.4g}", is_number=True)
    return Cell(str(value))
