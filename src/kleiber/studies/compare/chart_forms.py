"""What figures of studies say of their points and intervals, and the titles of the axes of those that fine-tune."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from kleiber.charts.theme import Rows
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Row

FORGETTING, TARGET = "forgetting F (nats per token)", "loss on the new text (nats per token)"
DODGE = 0.012  # distance of lines that share values of the horizontal axis, so that their intervals are seen
NEAREST = 0.08  # least distance of ticks, as a share of the length of a logarithmic axis


def interval_note(
    level: float, rows: Sequence[Row] | Rows, points: str = "means", joint: bool = False, pooled: bool = False,
    samples: str = "seeds",
) -> str:  # fmt: skip
    """Returns what a figure says of its points and intervals; "" where no row has an interval.

    rows     columns lo and hi; n, on how many samples a point rests; level, of its interval if it is not `level`
    points   what points are
    joint    whether the intervals hold together at `level`
    pooled   whether their widths rest on the noise of the samples in all rows together
    samples  what they are, in the plural
    """
    table = pd.DataFrame(rows)
    if not np.isfinite(table["lo"].astype(float)).any():
        return ""
    counts = sorted({int(n) for n in table["n"]}) if "n" in table else []
    number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
    drawn = f"points: {points} over {number} {samples}; " if counts else ""
    levels = set(table["level"].dropna()) if "level" in table else set()
    claims = bool(levels - {level})
    simultaneous = joint or (claims and len(levels) == 1)
    bars = f"bars: {'simultaneous ' * simultaneous}{percent(level)} intervals"
    notes = ["those of claims are simultaneous"] * (claims and len(levels) > 1)
    notes += ["noise pooled over all rows"] * pooled
    return drawn + bars + (f" ({', '.join(notes)})" if notes else "")


def apart(values: Iterable[float]) -> list[float]:
    """Returns values of a logarithmic axis, with its ends, that are far enough from each other for a tick each."""
    ordered = sorted({float(value) for value in values})
    kept, least = ordered[:1], (ordered[-1] / ordered[0]) ** NEAREST
    for value in ordered[1:-1]:
        if value >= least * kept[-1] and value * least <= ordered[-1]:
            kept.append(value)
    return kept + ordered[-1:] * (len(ordered) > 1)


def shifted(rows: Rows, x: str, order: Sequence[str], linear: bool, by: float = DODGE) -> list[float]:
    """Returns the values of the horizontal axis, moved apart for each series of `order` by a share of its length."""
    values = rows[x].astype(float)
    if rows.empty or not order:
        return values.tolist()
    spread = float(np.ptp(values)) if linear else float(np.log(values.max() / values.min()))
    moves = np.array([by * spread * (order.index(name) - (len(order) - 1) / 2) for name in rows["series"]])
    return (values + moves if linear else values * np.exp(moves)).tolist()
