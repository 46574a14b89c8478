"""Which decimals a text quotes, and whether a record has them."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

# Code, links and identifiers of papers hold no results.
NO_RESULTS = re.compile(r"(?ms)^```.*?^```$|^ {4}.*?$|`[^`\n]*`|\]\([^)]*\)|arXiv:[\d.]+")
NUMBER = re.compile(r"(?<![\w.])[-+]?(\d*\.\d+)(e[+-]?\d+)?( %)?(?!\d)")
INTERVAL = re.compile(r"\[[-+]?(\d*\.\d+), [-+]?(\d*\.\d+)\]")


def without_code(text: str) -> str:
    """The text in which numbers are results."""
    return NO_RESULTS.sub("", text)


def quoted(text: str) -> set[str]:
    """Every decimal of a text without its sign."""
    return {mantissa + exponent for mantissa, exponent, _ in NUMBER.findall(without_code(text))}


def numbers(node: object) -> Iterator[float]:
    """The size of every number of a nested record, those within its texts included; seconds also as minutes, hours."""
    if isinstance(node, str):
        yield from (float(text) for text in re.findall(r"\d*\.?\d+(?:e[+-]?\d+)?", node))
    elif isinstance(node, dict):
        for value in node.values():
            yield from numbers(value)
        if isinstance(seconds := node.get("seconds"), float):
            yield from (seconds / 60, seconds / 3600)
    elif isinstance(node, list):
        for value in node:
            yield from numbers(value)
    elif isinstance(node, int | float):
        yield abs(float(node))


def objects(node: object) -> Iterator[dict]:
    """Every object of a nested record: the rows of its tables, its verdicts, its parameters."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(child)
    if isinstance(node, dict):
        yield node


def rounds_to(values: Iterable[float], text: str) -> bool:
    """Whether one of the values is the text when it is rounded to as many places."""
    mantissa, _, exponent = text.partition("e")
    step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return any(abs(value - float(text)) <= 0.5001 * step for value in values)


def unrecorded(text: str, records: object) -> list[str]:
    """The decimals of a text that are in no record; one before a percent sign may be recorded as a share."""
    values = [*numbers(records)]
    in_percent = [value * 100 for value in values]
    return [
        mantissa + exponent
        for mantissa, exponent, percent in NUMBER.findall(without_code(text))
        if not rounds_to([*values, *(in_percent if percent else [])], mantissa + exponent)
    ]


def unrecorded_intervals(text: str, records: object) -> list[tuple[str, str]]:
    """The intervals of a text whose ends are not in one row, parameter or verdict of the records."""
    rows = [[*numbers(row)] for row in objects(records)]
    return [
        (low, high)
        for low, high in INTERVAL.findall(without_code(text))
        if not any(rounds_to(row, low) and rounds_to(row, high) for row in rows)
    ]


def read(folder: Path) -> list[object]:
    """The records of a study: every JSON file of its folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
