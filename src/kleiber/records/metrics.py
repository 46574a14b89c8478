"""The logged rows of a run in its metrics.jsonl, and those that analyses read.

Lines that a killed run did not finish, or that are damaged, are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from kleiber.records.files import read_lines
from kleiber.types import Json, Row

METRICS_FILE = "metrics.jsonl"
MOST_ROWS = 200  # rows of each kind and stage that an analysis reads
PER_EXPERT = "moe/load/"


def read_rows(folder: Path) -> list[Json]:
    """The rows of metrics.jsonl in a run's folder, without damaged ones; none where the run has logged nothing."""
    return [row for _, row in read_lines(folder / METRICS_FILE, parse_row)]


def parse_row(line: str) -> Json:
    """The row in a line of metrics.jsonl. Raises ValueError unless it is a JSON object with an integer "step"."""
    row = json.loads(line)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError(f"{line} has no step")
    return row


def rows_with(rows: Sequence[Row], prefix: str) -> list[Row]:
    """The rows with a key that begins with `prefix`."""
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def condense(rows: Iterable[Row]) -> list[Json]:
    """The rows that analyses read: at most MOST_ROWS of each stage and kind, evenly spread, with the last.

    Rows of one kind have the same keys. Loads of single experts are left out, because their number grows with the
    number of experts.
    """
    shorter = [{key: value for key, value in row.items() if not key.startswith(PER_EXPERT)} for row in rows]
    kinds: dict[tuple[str | None, ...], list[int]] = {}
    for number, row in enumerate(shorter):
        if row.keys() - {"stage", "step"}:
            kinds.setdefault((row.get("stage"), *sorted(row)), []).append(number)
    return [shorter[number] for number in sorted(number for numbers in kinds.values() for number in thin(numbers))]


def thin(numbers: Sequence[int]) -> list[int]:
    """At most MOST_ROWS of the numbers, evenly spread, with the first and the last."""
    if len(numbers) <= MOST_ROWS:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]
