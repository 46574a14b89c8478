"""What figures of studies say of their points and intervals, and the titles of the axes of those that fine-tune."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from kleiber.charts.theme import Rows
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Row

FORGETTING = "forgetting: rise of the loss on the old text (nats per token)"
TARGET = "loss on the new text (nats per token)"
DODGE = 0.012  # distance of lines that share values of the horizontal axis, so that their intervals are seen
CLEAR = 0.03  # least distance of points that do not hide each other, as a share of the height of all values
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
    notes = ["with end caps: simultaneous"] * (claims and len(levels) > 1)
    notes += ["pooled noise"] * pooled
    return drawn + bars + (f" ({', '.join(notes)})" if notes else "")


def with_caps(rows: Rows, level: float) -> Rows:
    """Returns rows with the column capped, where intervals of some rows only are wider since they hold together."""
    wider = rows["level"].notna() & (rows["level"] != level) if "level" in rows else pd.Series(False, rows.index)
    return rows.assign(capped=wider & (not wider.all()))


def apart(values: Iterable[float]) -> list[float]:
    """Returns values of a logarithmic axis, with its ends, that are far enough from each other for a tick each."""
    ordered = sorted({float(value) for value in values})
    kept, least = ordered[:1], (ordered[-1] / ordered[0]) ** NEAREST
    for value in ordered[1:-1]:
        if value >= least * kept[-1] and value * least <= ordered[-1]:
            kept.append(value)
    return kept + ordered[-1:] * (len(ordered) > 1)


def shifted(rows: Rows, x: str, order: Sequence[str], linear: bool, by: float = DODGE) -> list[float]:
    """Returns the values of the horizontal axis, moved apart where series of `order` would hide each other.

    Points that are clear of all others stay on their value. `by` is the distance of the others, as a share of the
    length of the axis.
    """
    values = rows[x].astype(float)
    if rows.empty or not order:
        return values.tolist()
    spread = float(np.ptp(values)) if linear else float(np.log(values.max() / values.min()))
    moves = np.array([by * spread * rank for rank in ranks_in_overlaps(rows.assign(at=values), order)])
    return (values + moves if linear else values * np.exp(moves)).tolist()


def ranks_in_overlaps(rows: Rows, order: Sequence[str]) -> np.ndarray:
    """Returns the place of the series of each point among those that overlap there, in `order` and centered at 0.

    rows  columns series, at and value; lo and hi, ends of intervals; panel. Points overlap at one place of a panel if
          their intervals do, or if they are nearer than CLEAR of the height of the panel
    """
    low, high = (rows[name].fillna(rows["value"]) if name in rows else rows["value"] for name in ("lo", "hi"))
    table: Rows = pd.DataFrame({"low": low.astype(float), "high": high.astype(float), "at": rows["at"]})
    table = table.assign(panel=rows.get("panel", ""), rank=rows["series"].map(order.index)).reset_index(drop=True)
    ranks = np.zeros(len(rows))
    for _, part in table.groupby("panel"):
        margin = CLEAR * float(part["high"].max() - part["low"].min())
        for _, column in part.sort_values("low").groupby("at"):
            begins = column["low"] > column["high"].cummax().shift() + margin
            for _, group in column.groupby(begins.cumsum()):
                places = group["rank"].rank(method="dense").to_numpy()
                ranks[group.index] = places - (1 + places.max()) / 2
    return ranks
