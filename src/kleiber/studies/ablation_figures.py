"""Figures of an ablation: the gap over training compute, and the gaps of several changes side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from kleiber.studies.ablation_ladder import UNIT, Ladder, predict
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
    """Gap vs training compute: each scale with its interval, the line, and its band up to the largest prediction."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import log_axis, with_title
    from kleiber.studies.compare.labels import readable

    rows = [{**row, **_percent(row)} for row in scale_rows(change, level)]
    largest = float(ladder.compute.max())
    last = max(largest * max(change.predictions), max(row["compute"] for row in rows))
    at = np.geomspace(ladder.compute.min(), last, 60)
    predicted = [(C, predict(ladder, C / largest, level)) for C in at.tolist()]
    band = pd.DataFrame([{"compute": C, **_percent(asdict(gap) | {"gap": gap.value})} for C, gap in predicted])
    x = log_axis("compute", "training compute (FLOPs)", at)
    y, low = (alt.Y(f"{name}:Q", title=f"loss relative to {readable(plain)} (%)") for name in ("gap", "lo"))
    colors = alt.Scale(domain=["yes", "held out"], range=["#0072B2", "#D55E00"])
    color = alt.Color("fitted:N", scale=colors, legend=alt.Legend(title="in the fit") if change.held_out else None)
    base, line = alt.Chart(pd.DataFrame(rows)).encode(x=x, color=color), alt.Chart(band).encode(x=x)
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(y=y)
    inside = line.transform_filter(f"datum.compute <= {largest}").mark_line(color="black", strokeWidth=2).encode(y=y)
    layers = [
        zero, line.mark_area(opacity=0.2, color="#444").encode(y=low, y2="hi:Q"),
        line.mark_line(color="black", strokeDash=[5, 4]).encode(y=y), inside,
        base.mark_rule().encode(y=low, y2="hi:Q"), base.mark_point(filled=True, size=50, opacity=1).encode(y=y),
    ]  # fmt: skip
    subtitle = f"points: scales, {level:.0%} intervals over seeds; line and band: fitted, dashed where predicted"
    return with_title(alt.layer(*layers), f"Gap of {readable(change.name)} vs training compute", subtitle=subtitle)


def arms_figure(changes: Sequence[Change], target: float, level: float) -> object:
    """The gap of each changed arm at the largest fitted scale and predicted at the target, with intervals."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import kind_color, with_title
    from kleiber.studies.compare.chart_forms import interval_note
    from kleiber.studies.compare.labels import readable

    places = {1.0: "largest fitted run, by the line", target: f"{target:g} times its compute"}
    rows = [
        {"arm": readable(change.name), "at": place, **_percent(asdict(gap) | {"gap": gap.value})}
        for change in changes
        for times, place in places.items()
        for gap in [change.predictions[times]]
    ]
    order = [row["arm"] for row in sorted(rows, key=lambda row: row["gap"]) if row["at"] == places[1.0]]
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("arm:N", title=None, sort=order), yOffset=alt.YOffset("at:N", sort=list(places.values())),
        color=kind_color(list(places.values()), "at", alt.Legend(title=None)),
    )  # fmt: skip
    x, low = (alt.X(f"{name}:Q", title="loss relative to the plain arm (%)") for name in ("gap", "lo"))
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(x=x)
    layers = [zero, base.mark_rule().encode(x=low, x2="hi:Q"), base.mark_point(filled=True, size=50).encode(x=x)]
    title = "Gap of each change, at the largest fitted run and predicted"
    return with_title(alt.layer(*layers), title, 60 + 40 * len(changes), interval_note(level, rows))


def _percent(row: Row) -> Row:
    """The columns gap, lo and hi of a row, differences of log losses, as percent of the loss of the plain arm."""
    return {key: None if row[key] is None else 100 * math.expm1(row[key]) for key in ("gap", "lo", "hi")}
