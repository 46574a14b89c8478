"""Which samples share a row: a fixed assignment of lengths to rows, tight and the same on every machine."""

from __future__ import annotations

import bisect

import numpy as np
from jaxtyping import Int


def packed(lengths: Int[np.ndarray, "_"], room: int) -> list[list[int]]:
    """Samples by row, best fit with the longest first: each goes to the fullest row that still has room for it.

    At most 11/9 of the rows that are needed at best, plus one (Johnson 1974). Raises ValueError for a sample that no
    row can hold.
    """
    if len(lengths) and int(lengths.max()) > room:
        raise ValueError(f"a sample of {int(lengths.max())} tokens does not fit a row of {room}")
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for sample in np.argsort(-lengths, kind="stable").tolist():
        needed = int(lengths[sample])
        at = bisect.bisect_left(open_rows, (needed, -1))
        if at < len(open_rows):
            left, row = open_rows.pop(at)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(sample)
        bisect.insort(open_rows, (left - needed, row))
    return rows
