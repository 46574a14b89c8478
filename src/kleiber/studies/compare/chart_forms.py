"""The frontier of forgetting against target loss, and what figures of the studies that fine-tune say of intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.intervals import ARROWS
from kleiber.charts.series import MOST, Marks, arm_color, draw, small_multiples
from kleiber.charts.theme import Rows, reference_line, span
from kleiber.studies.compare.rows import label
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Row

BETTER = ARROWS["lower"]
FORGETTING, TARGET = "forgetting F (nats per token)", "target loss (nats per token)"


def interval_note(level: float, rows: Sequence[Row] | Rows) -> str:
    """Returns what a figure says of the intervals of its rows, columns lo and hi; "" where no row has one."""
    ends = pd.DataFrame(rows)["lo"].astype(float)
    return f"{percent(level)} intervals over seeds" if np.isfinite(ends).any() else ""


def frontier(points: Rows, order: Sequence[str], at: float | None = None) -> alt.TopLevelMixin:
    """F vs target loss: a point for each setting with the sd of its seeds, a line for the frontier of each arm.

    Settings far from all frontiers are left out, and the subtitle says how many.

    at  the target loss at which arms are compared, drawn as a dashed line
    """
    best = points[points["best"]]
    near = pd.Series(True, index=points.index)
    for name in ("target", "F"):
        near &= points[name] <= best[name].max() + (best[name].max() - best[name].min())
    near |= points["best"]
    if at is not None:
        least = float(best["target"].min())
        near &= points["target"] <= at + 6 * max(at - least, 0.01 * at)
    sd = points["F_sd"].fillna(0)
    shown = points.assign(series=points["method"].map(label), low=points["F"] - sd, high=points["F"] + sd)[near]
    names, lines_at = [label(arm) for arm in order], [] if at is None else [at]
    notes = ["a point for each setting; lines: settings that no other of the arm beats"]
    notes += [f"dashed: the loss {loss:.3g} at which arms are compared" for loss in lines_at]
    notes += [] if near.all() else [f"{int((~near).sum())} outside the axes"]
    x = alt.X(
        "target:Q",
        title=f"target loss (nats) {BETTER}",
        axis=alt.Axis(tickCount=6),
        scale=span([*shown["target"], *lines_at]),
    )
    y = alt.Y("F:Q", title=f"forgetting F (nats) {BETTER}", scale=span(shown[["low", "high"]].to_numpy()))
    exact = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tips = ["series:N", "setting:N", alt.Tooltip("lr:Q", format=".2g"), "n:Q", *exact]
    dots = Marks(rows=shown, value="F", ends=("low", "high"), bars=0.5, points=40, opacity=0.9, tips=tips)
    path = Marks(rows=shown[shown["best"]], value="F", line=1.3, order="target")

    def panel(arms: Sequence[str]) -> alt.LayerChart:
        """The panel of some of the arms."""
        tables = [replace(table, rows=table.rows[table.rows["series"].isin(arms)]) for table in (path, dots)]
        dashed = [reference_line(x, loss) for loss in lines_at]
        return draw(tables, x, y, arm_color(names, arms, len(names) <= MOST), dashed)

    return small_multiples(panel, names, "Forgetting vs target loss", "; ".join(notes))
