"""Logged rows as columns, the form in which runs.jsonl.gz stores them.

The rows of a run have few different sets of keys, and many of their numbers are of single precision. Columns of such
numbers, written with as many digits as they have, take three quarters of the bytes of the rows in a gzip file, and are
equal to the last digit when they are read.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from kleiber.types import Json, Row


def pack_rows(rows: Sequence[Row]) -> Json:
    """The rows as `{order, kinds}`, which take three quarters of the bytes in a gzip file; see `unpack_rows`.

    kinds  of the rows with the same keys: by key the values of all of them (`pack_column`)
    order  the number of each row's kind
    """
    kinds: dict[tuple[str, ...], dict[str, list[object]]] = {}
    for row in rows:
        columns = kinds.setdefault(tuple(row), {key: [] for key in row})
        for key, value in row.items():
            columns[key].append(value)
    numbers = {keys: number for number, keys in enumerate(kinds)}
    packed = [{key: pack_column(values) for key, values in columns.items()} for columns in kinds.values()]
    return {"order": [numbers[tuple(row)] for row in rows], "kinds": packed}


def pack_column(values: list[object]) -> list[object] | Json:
    """The values, or `{"single": values}` with fewer digits where all of them are numbers of single precision."""
    numbers = [value for value in values if type(value) is float]
    if len(numbers) < len(values) or array("f", numbers).tolist() != numbers:
        return values
    return {"single": [shortest_single(number) for number in numbers]}


def shortest_single(number: float) -> float:
    """The number of fewest digits that is `number` in single precision."""
    rounded = (float(f"{number:.{digits}g}") for digits in range(6, 10))
    return next(short for short in rounded if array("f", [short])[0] == number)


def unpack_rows(packed: Json) -> list[Json]:
    """The rows of `pack_rows`.

    Raises ValueError, TypeError, KeyError, IndexError, AttributeError or OverflowError for anything else.
    """
    kinds = [zip(*map(unpack_column, columns.values()), strict=True) for columns in packed["kinds"]]
    keys = [tuple(columns) for columns in packed["kinds"]]
    rows = [dict(zip(keys[kind], next(kinds[kind], ()), strict=True)) for kind in packed["order"]]
    if any(next(values, None) is not None for values in kinds):
        raise ValueError("there are more values than rows")
    return rows


def unpack_column(column: Sequence[object] | Json) -> Sequence[object]:
    """The values of a column of `pack_column`."""
    return array("f", column["single"]).tolist() if isinstance(column, dict) else column
