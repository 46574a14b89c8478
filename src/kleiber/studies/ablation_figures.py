"""Figures of an ablation: the gap over training compute, and the gaps of several changes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from kleiber.studies.ablation_ladder import UNIT, Ladder, predict, predict_at
from kleiber.studies.compare.decision import mean_estimate
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
    """Gap vs training compute: scales with intervals, fitted lines by width, and the way to the largest prediction."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import log_axis, with_title

    rows = [{**row, **_percent(row)} for row in scale_rows(change, level)]
    largest, times = float(ladder.compute.max()), np.geomspace(1.0, max(change.predictions), 60)
    way = [(largest * k, predict(ladder, k, level)) for k in times.tolist()]
    band = pd.DataFrame([{"compute": C, **_percent(asdict(gap) | {"gap": gap.value})} for C, gap in way])
    lines = pd.DataFrame(width_lines(change, ladder, level))
    x = log_axis("compute", "training compute (FLOPs)", np.array([*lines["compute"], *band["compute"]]))
    y, low = (alt.Y(f"{name}:Q", title=f"loss relative to {plain} (%)") for name in ("gap", "lo"))
    colors = alt.Scale(domain=["yes", "held out"], range=["#0072B2", "#D55E00"])
    color = alt.Color("fitted:N", scale=colors, legend=alt.Legend(title="in the fit") if change.held_out else None)
    base, line = (alt.Chart(pd.DataFrame(each)).encode(x=x, color=color) for each in (rows, lines))
    ahead = alt.Chart(band).encode(x=x)
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(y=y)
    shape = alt.Shape("width:N", legend=alt.Legend(title="width")) if ladder.size_and_length else alt.value("circle")
    layers = [
        zero, ahead.mark_area(opacity=0.2, color="#444").encode(y=low, y2="hi:Q"),
        ahead.mark_line(color="black", strokeDash=[5, 4]).encode(y=y),
        line.mark_line(strokeWidth=1.5).encode(y=y, detail="line:N"), base.mark_rule().encode(y=low, y2="hi:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape),
    ]  # fmt: skip
    subtitle = (
        f"points: {level:.0%} intervals over seeds; lines: fit to the blue points; dashed: predicted, with its band"
    )
    return with_title(alt.layer(*layers), f"Gap of {change.name} vs training compute", subtitle=subtitle)


def width_lines(change: Change, ladder: Ladder, level: float) -> list[Json]:
    """Returns the predicted gap at all scales, in percent: a line for each width, or one if the gap is a line."""
    rows = []
    for scale in (*change.fitted, *change.held_out):
        if scale.gaps:
            gap = predict_at(ladder, scale.compute, scale.tokens, level)
            line, fitted = scale.width if ladder.size_and_length else 0, scale in change.fitted
            rows.append({"compute": scale.compute, "line": line, "fitted": "yes" if fitted else "held out",
                         **_percent(asdict(gap) | {"gap": gap.value})})  # fmt: skip
    return rows


def arms_figure(changes: Sequence[Change], target: float) -> object:
    """The gap of each changed arm at the largest fitted scale and predicted at the target, with intervals."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import kind_color, with_title

    places = {1.0: "largest run", target: f"{target:g} times the largest run"}
    rows = [
        {"arm": change.name, "at": place, **_percent(asdict(gap) | {"gap": gap.value})}
        for change in changes
        for times, place in places.items()
        for gap in [change.predictions[times]]
    ]
    order = sorted(
        (change.name for change in changes), key=lambda name: next(r["gap"] for r in rows if r["arm"] == name)
    )
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("arm:N", title=None, sort=order), yOffset=alt.YOffset("at:N", sort=list(places.values())),
        color=kind_color(list(places.values()), "at", alt.Legend(title=None)),
    )  # fmt: skip
    x, low = (alt.X(f"{name}:Q", title="loss relative to the plain arm (%)") for name in ("gap", "lo"))
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(x=x)
    layers = [zero, base.mark_rule().encode(x=low, x2="hi:Q"), base.mark_point(filled=True, size=50).encode(x=x)]
    return with_title(
        alt.layer(*layers), "Gap of each change, at the largest run and predicted", height=60 + 40 * len(changes)
    )


def _percent(row: Row) -> Row:
    """The columns gap, lo and hi of a row in percent."""
    return {key: None if row[key] is None else 100 * row[key] for key in ("gap", "lo", "hi")}
