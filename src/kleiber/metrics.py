"""metrics.jsonl as rows: what a run logged, in order, read without the libraries that wrote it.

It refuses to repair: a last line without its end was being written when the run was cut, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"
MOST = 200  # rows of a kind that an analysis reads of a stage
PER_EXPERT = "moe/load/"

Row = dict[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's folder; none where it has logged nothing yet."""
    path = folder / NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def having(rows: Sequence[Row], prefix: str) -> list[Row]:
    """The rows with an entry whose name begins so."""
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def condensed(rows: Iterable[Row]) -> list[Row]:
    """The rows that analyses read: of each stage at most MOST of each kind, evenly spread and with the last of them.

    Rows of one kind have the same keys. The load of each single expert is left out: it grows with their number.
    """
    shorter = [{key: value for key, value in row.items() if not key.startswith(PER_EXPERT)} for row in rows]
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(shorter):
        if row.keys() - {"stage", "step"}:
            kinds.setdefault((row.get("stage"), *sorted(row)), []).append(place)
    return [shorter[place] for place in sorted(place for places in kinds.values() for place in spread(places))]


def spread(places: Sequence[int]) -> list[int]:
    """At most MOST of them, evenly spread, the first and the last among them."""
    if len(places) <= MOST:
        return list(places)
    return [places[round(number * (len(places) - 1) / (MOST - 1))] for number in range(MOST)]
