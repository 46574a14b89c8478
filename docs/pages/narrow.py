"""Tables that fit into a phone: each cell carries the name of its column, with which it stands alone there.

The style sheet shows the rows of a table one below the other where the window is narrow, and wraps cells elsewhere.
"""

from __future__ import annotations

import html
import re

TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
ROW = re.compile(r"<tr>(.*?)</tr>", re.DOTALL)
HEAD = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)
CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
LONG = re.compile(r"\S{21,}")  # a word that breaks in a cell, such as the name of a run
NUMBER = re.compile(r"[-+\u2212]?[\d.,]+(e[-+]?\d+)?%?")


def with_labels(page: str) -> str:
    """Returns the HTML of a page whose tables have the number of their columns, and cells the name of their column."""
    return TABLE.sub(lambda table: label_table(table[1]), page)


def label_table(content: str) -> str:
    """Returns a table with labels; `content` is what stands between its tags."""
    names = [html.escape(html.unescape(TAG.sub("", name)).strip(), quote=True) for name in HEAD.findall(content)]

    def label_row(row: re.Match[str]) -> str:
        """The row with labels; the row of the names has none."""
        left = iter(names)
        return f"<tr>{CELL.sub(lambda cell: label_cell(cell, next(left, '')), row[1])}</tr>"

    return f'<table data-columns="{len(names)}">{ROW.sub(label_row, content)}</table>'


def label_cell(cell: re.Match[str], name: str) -> str:
    """The cell with the name of its column, and whether it is a number, which is not wrapped, or has a long word."""
    text = html.unescape(TAG.sub("", cell[2])).strip()
    number = " data-number" if NUMBER.fullmatch(text) else ""
    long = " data-long" if LONG.search(text) else ""
    return f'<td{cell[1]} data-label="{name}"{number}{long}>{cell[2]}</td>'
