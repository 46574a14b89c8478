"""The frontier of forgetting against target loss, and what figures of the studies that fine-tune say of intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import MOST, Marks, arm_color, draw, small_multiples
from kleiber.charts.theme import Rows, pointed, reference_line, span
from kleiber.studies.compare.rows import label
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Row

FORGETTING, TARGET = "forgetting F (nats per token)", "loss on the new text (nats per token)"
SYMBOLS = (  # of Vega, in its order
    "circle", "square", "triangle-up", "cross", "diamond", "triangle-right", "triangle-down", "triangle-left"
)  # fmt: skip


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
    bars = f"bars: {percent(level)} intervals"
    bars += " that hold together" if joint or (claims and len(levels) == 1) else ""
    bars += ", wider where claims are decided together" if claims and len(levels) > 1 else ""
    noise = "seeds" if samples == "seeds" else "samples"
    return f"{drawn}{bars}{f', the noise of all {noise} pooled' * pooled}"


def frontier(points: Rows, order: Sequence[str], at: float | None = None) -> alt.TopLevelMixin:
    """F vs target loss: a point for each setting with the sd of its seeds, a line for the frontier of each arm.

    Settings far from all frontiers are left out, and the subtitle says how many of which arm.

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
    names, lines_at = [arm_label(arm) for arm in order], [] if at is None else [at]
    sd, labels = points["F_sd"].fillna(0), points["method"].map(arm_label)
    every = points.assign(series=labels, low=points["F"] - sd, high=points["F"] + sd)
    scales = {
        "target": span([*every["target"][near], *lines_at]),
        "F": span(every[["low", "high"]][near].to_numpy().ravel()),
    }
    near |= every["target"].between(*scales["target"]["domain"]) & every["F"].between(*scales["F"]["domain"])
    shown = every[near]
    shown = shown.sort_values("series", key=lambda series: -series.map(names.index))  # the reference is in front
    notes = ["points: settings of a method; bars: standard deviation over seeds"]
    notes += ["lines: settings that no other of the method beats on both axes"]
    notes += [f"dashed: the loss {loss:.3g} at which methods are compared" for loss in lines_at]
    notes += outside(labels, near)
    x, y = (
        kind(f"{name}:Q", title=pointed(title, "lower"), axis=alt.Axis(tickCount=6), scale=scales[name])
        for kind, name, title in ((alt.X, "target", TARGET), (alt.Y, "F", FORGETTING))
    )
    exact = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tips = ["series:N", "setting:N", alt.Tooltip("lr:Q", format=".2g"), "n:Q", *exact]
    drawn = [name for name in names if name in set(shown["series"])]
    symbols = alt.Scale(domain=drawn, range=[SYMBOLS[names.index(name) % len(SYMBOLS)] for name in drawn])
    shape = alt.Shape("series:N", title=None, sort=drawn, scale=symbols)
    dots = Marks(rows=shown, value="F", ends=("low", "high"), bars=0.5, points=50, opacity=0.9, shape=shape, tips=tips)
    path = Marks(rows=shown[shown["best"]], value="F", line=1.3, order="target")

    def panel(arms: Sequence[str]) -> alt.LayerChart:
        """The panel of some of the arms."""
        tables = [replace(table, rows=table.rows[table.rows["series"].isin(arms)]) for table in (path, dots)]
        dashed = [reference_line(x, loss) for loss in lines_at]
        return draw(tables, x, y, arm_color(names, arms, len(drawn) <= MOST), dashed)

    return small_multiples(panel, drawn, "Forgetting vs loss on the new text", "; ".join(notes))


def arm_label(arm: str) -> str:
    """Returns what a figure without the name of its study calls an arm: `LoRA, rank 4` for rank 4."""
    return f"LoRA, {arm}" if arm.startswith("rank ") else label(arm)


def outside(labels: Rows, near: Rows) -> list[str]:
    """Returns how many settings of which arms a figure leaves out; empty where it has all."""
    counts, all_of = labels[~near].value_counts(sort=False), labels.value_counts()
    parts = [f"{'all ' * bool(count == all_of[name])}{count} of {name}" for name, count in counts.items()]
    return [f"outside the axes: {', '.join(parts)}"] if parts else []
