"""One quantity against another: a point for each row, with references, lines and names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, draw, separate_labels
from kleiber.charts.theme import HEIGHT, Chart, Rows, reference_line, with_title

NEAR = 0.045  # share of the height by which names side by side are moved apart
BESIDE, RIGHT = 0.1, 0.6  # shares of the width: between points with names side by side, and where the right begins


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


def point_names(places: Rows, name: str, x: str, y: str, letter: float = 0.0) -> Marks:
    """Returns the name of each point beside it, to the left of those on the right, where the panel ends.

    Names on one side of points that are near each other are moved apart.

    letter  width of a letter in units of the horizontal axis, if there is room for all names on the right: they are
            there, and are moved apart if one reaches the next point
    """
    places = places.sort_values(x, kind="stable").reset_index(drop=True)
    xs, ys = places[x].to_numpy(dtype=float), places[y].to_numpy(dtype=float)
    along = (xs - xs.min()) / max(float(np.ptp(xs)), 1e-12)
    left, heights = (along > RIGHT) & (along.max() > 0) & (not letter), ys.copy()
    reach = letter * places[name].str.len().to_numpy(dtype=float) if letter else np.full(len(xs), BESIDE * np.ptp(xs))
    groups = np.cumsum(np.append(True, (np.diff(xs) > reach[:-1]) | np.diff(left)))
    for group in np.unique(groups):
        heights[groups == group] = separate_labels(ys[groups == group], NEAR * max(float(np.ptp(ys)), 1e-12))
    return Marks(rows=places.assign(at=heights, left=left), value="at", name=name)
