"""Figures of an ablation: the gap over training compute, and the gaps of several changes side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from kleiber.studies.ablation_ladder import UNIT, Ladder, predict
from kleiber.studies.compare.labels import readable
from kleiber.studies.decision import mean_estimate
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.ablation import Change


def scale_rows(change: Change, level: float) -> list[Json]:
    """Returns a table row for each scale: its place, the best rates and the gap with its interval over seeds."""
    rows = []
    for scale in (*change.fitted, *change.held_out):
        gap = mean_estimate(list(scale.gaps.values()), level, UNIT)
        if gap is not None:
            rows.append({"arm": change.name, "width": scale.width, "tokens": scale.tokens, "compute": scale.compute,
                         "gap": gap.value, "lo": gap.lo, "hi": gap.hi, "rate of the plain arm": scale.rates[0],
                         "rate of the changed arm": scale.rates[1],
                         "fitted": "yes" if scale in change.fitted else "held out"})  # fmt: skip
    return rows


def gap_figure(change: Change, ladder: Ladder, plain: str, level: float) -> object:
    """Gap vs training compute: each scale with its interval, the line, and its band up to the largest prediction."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.series import Marks, lines
    from kleiber.charts.theme import kind_color, log_axis, pointed

    rows = pd.DataFrame([{**row, **_percent(row)} for row in scale_rows(change, level)])
    rows = rows.assign(fitted=rows["fitted"].replace("yes", "fitted"))
    largest = float(ladder.compute.max())
    at = np.geomspace(ladder.compute.min(), max(largest * max(change.predictions), rows["compute"].max()), 60)
    predicted = [asdict(predict(ladder, C / largest, level)) for C in at.tolist()]
    band = pd.DataFrame([_percent({**gap, "gap": gap["value"]}) for gap in predicted])
    band = band.assign(compute=at, beyond=at > largest)
    legend = alt.Legend() if change.held_out else None
    tables = [
        Marks(rows=band, value="gap", line=2.0, dashed="beyond", band=0.15, color="black"),
        Marks(rows=rows, value="gap", bars=1.0, points=50),
    ]
    y = alt.Y("gap:Q", title=pointed(f"loss relative to {readable(plain)} (%)", "lower"))
    return lines(
        tables, log_axis("compute", "training compute (FLOPs)", at), y, reference=0.0,
        title=f"Loss with {readable(change.name)} relative to {readable(plain)} vs training compute",
        color=kind_color(["fitted", "held out"], "fitted", legend, ["", "fitted", "held out"]),
        subtitle=f"{level:.0%} intervals over seeds; line and band: fitted to blue points, dashed: extrapolated",
    )  # fmt: skip


def arms_figure(changes: Sequence[Change], target: float, plain: str, level: float) -> object:
    """The gap of each changed arm at the largest fitted scale, and predicted at a larger one, with intervals.

    The larger scale is the largest that was held out, with the gap that was measured there; `target` where none was.
    """
    from kleiber.charts.intervals import estimates
    from kleiber.studies.compare.chart_forms import interval_note

    rows = []
    for change in sorted(changes, key=lambda change: change.predictions[1.0].value):
        largest = float(change.ladder.compute.max()) if change.ladder is not None else 1.0
        held_out = max((s for s in change.held_out if s.gaps), key=lambda scale: scale.compute, default=None)
        gaps = {"measured with the most compute of the fit": change.predictions[1.0]}
        if held_out is None or change.ladder is None:
            gaps[f"predicted for {target:g} times that compute"] = change.predictions[target]
        else:
            times = held_out.compute / largest
            measured = mean_estimate(list(held_out.gaps.values()), level, UNIT)
            gaps[f"predicted for {times:.2g} times that compute"] = predict(change.ladder, times, level)
            gaps |= {"measured there, not in the fit": measured} if measured is not None else {}
        for place, gap in gaps.items():
            percents = _percent({**asdict(gap), "gap": gap.value})
            rows.append({"name": readable(change.name), "series": place, **percents, "value": percents["gap"],
                         "better": "lower"})  # fmt: skip
    places = list(dict.fromkeys(row["series"] for row in rows))
    return estimates(
        rows, places, f"loss relative to {readable(plain)} (%)",
        f"Loss with each change relative to {readable(plain)}", zero=True, dodge=True, step=18 * len(places) + 4,
        subtitle=f"{interval_note(level, rows)}; dashed: no change", symlog=True,
    )  # fmt: skip


def _percent(row: Row) -> Row:
    """The columns gap, lo and hi of a row, differences of log losses, as percent of the loss of the plain arm."""
    return {key: None if row[key] is None else 100 * math.expm1(row[key]) for key in ("gap", "lo", "hi")}
