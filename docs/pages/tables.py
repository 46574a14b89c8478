"""Markdown tables from rows of numbers and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COUNTS = ("seeds", "n")  # columns that may stand between an estimate and its interval
FOLDED_ROWS = 12  # a longer table is folded


def number(value: float) -> str:
    """Returns a number with four significant digits, whole ones with separators of thousands."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.3e}" if abs(value) >= 1e9 or abs(value) < 1e-4 else f"{value:.4g}"


def cell(value: object) -> str:
    """Returns the text of one cell, with nothing in it that a table could mistake for its own signs."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    parts = str(value).replace("|", "\\|").replace("\n", " ").split("`")
    parts[::2] = [escaped(part) for part in parts[::2]]  # the others are code
    return "`".join(parts)


def escaped(text: str) -> str:
    """Returns text in which no sign is Markdown's or HTML's; braces would be read as attributes of the cell."""
    for sign, entity in {"<": "&lt;", "*": "\\*", "{": "&#123;", "}": "&#125;"}.items():
        text = text.replace(sign, entity)
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def records_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns the table of rows with the same keys: a column a key, and one column for an estimate and its interval.

    Columns that are empty in every row are left out.
    """
    merged = [with_intervals(row) for row in rows]
    columns = list(dict.fromkeys(key for row in merged for key in row))
    columns = [key for key in columns if any(cell(row.get(key)) for row in merged)]
    return table([cell(key) for key in columns], [[cell(row.get(key)) for key in columns] for row in merged])


def with_intervals(row: Mapping[str, object]) -> dict[str, object]:
    """Returns the row with `lo` and `hi` (and `lo at equal time`, ...) written behind the estimate before them."""
    merged, estimate = dict[str, object](), ""
    for key, value in row.items():
        kind, _, suffix = key.partition(" ")
        if kind == "lo" and f"hi {suffix}".strip() in row:
            upper = row[f"hi {suffix}".strip()]
            if estimate and value is not None and upper is not None:
                merged[estimate] = f"{cell(row[estimate])} [{cell(value)}, {cell(upper)}]"
        elif kind != "hi":
            merged[key] = value
            if key not in COUNTS:
                estimate = key
    return merged


def folded(title: str, text: str) -> str:
    """Returns text that a reader unfolds."""
    indented = "\n".join(f"    {line}" if line else "" for line in text.splitlines())
    return f'??? note "{title}"\n\n{indented}'
