"""Which decimals a text quotes, and whether a record has them."""

import re
from collections.abc import Iterable, Iterator

# Code, links and identifiers of papers hold no results.
NO_RESULTS = re.compile(r"(?ms)^```.*?^```$|^ {4}.*?$|`[^`\n]*`|\]\([^)]*\)|arXiv:[\d.]+")
NUMBER = re.compile(r"(?<![\w.])[-+]?(\d*\.\d+)(e[+-]?\d+)?( %)?(?!\d)")


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


def rounds_to(values: Iterable[float], text: str) -> bool:
    """Whether one of the values is the text when it is rounded to as many places."""
    mantissa, _, exponent = text.partition("e")
    step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return any(abs(value - float(text)) <= 0.5001 * step for value in values)
