"""One quantity against another: a point for each row, with references, lines and names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, draw
from kleiber.charts.theme import HEIGHT, Chart, Rows, reference_line, with_title

NEAR = 0.045  # share of the height by which names side by side are moved apart


def scatter(
    tables: Sequence[Marks], x: Chart, y: Chart, title: str, *, color: Chart = None, subtitle: str = "",
    references: tuple[float | None, float | None] = (None, None), equality: bool = False, height: int = HEIGHT,
) -> Chart:  # fmt: skip
    """Returns points of one or several tables over two axes.

    references  values of the horizontal and the vertical axis at which there are dashed lines
    equality    draws a dashed line on which both are equal, over the values of all tables with points
    """
    shown = [*tables]
    if equality:
        across = x.shorthand.partition(":")[0]
        values = np.concatenate(
            [marks.rows[[across, marks.value]].to_numpy(dtype=float) for marks in tables if marks.points]
        )
        ends = pd.DataFrame({name: [values.min(), values.max()] for name in (across, "value")})
        shown.insert(0, Marks(rows=ends, line=1.0, dash=[5, 4], color="#666"))
    dashed = [
        reference_line(axis, at)
        for axis, at in zip((x, y), references, strict=True)
        if at is not None and np.isfinite(at)
    ]
    return with_title(draw(shown, x, y, color, dashed), title, height, subtitle)


def point_names(places: Rows, name: str, x: str, y: str) -> Marks:
    """Returns the name of each point to its right; names that would overlap are moved up."""
    places = places.sort_values(y).reset_index(drop=True)
    xs, ys = np.array(places[x], dtype=float), np.array(places[y], dtype=float)
    room, wide = NEAR * max(float(np.ptp(ys)), 1e-12), 0.25 * np.ptp(xs)
    heights: list[float] = []
    for at, value in zip(xs, ys, strict=True):
        beside = [height + room for height, other in zip(heights, xs, strict=False) if abs(other - at) <= wide]
        heights.append(max([value, *beside]))
    return Marks(rows=places.assign(at=heights), value="at", name=name)
