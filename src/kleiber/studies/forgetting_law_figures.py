"""The figures of the law of forgetting: the curve of replay, growth with new text, observed against fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import PALETTE, human, sized
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.figures import curve

FORGETTING = "forgetting F (nats per token)"


def named(record: Mapping[str, Any]) -> pd.DataFrame:
    """The cells of the grid, each with the name of its size and pre-training."""
    rows = pd.DataFrame(record["rows"])
    return rows.assign(series=[f"N {human(n)}, M {m:g}" for n, m in zip(rows["N"], rows["M"], strict=True)])


def series_color(rows: pd.DataFrame) -> Any:
    """By size, then by pre-training, dark to light."""
    order = list(dict.fromkeys(rows.sort_values(["N", "M"])["series"]))
    return alt.Color("series:N", title=None, sort=order, scale=alt.Scale(scheme=PALETTE, domain=order))


def fitted(record: Mapping[str, Any], rows: pd.DataFrame) -> np.ndarray:
    law = find(record["main"]["law"])
    return curve(law, record["main"], **{name: rows[name].to_numpy(dtype=float) for name in law.inputs})


def replay(rows: pd.DataFrame, record: Mapping[str, Any]) -> Any:
    """F against the replayed share where the new text is longest, the law as lines; what is tolerated is the rule."""
    longest = pd.DataFrame(rows[rows["beside"] == rows["beside"].max()])
    shares = np.linspace(0, longest["p"].max(), 60)
    parts = []
    for name, one in longest.groupby("series"):
        one = one.sort_values("p")
        new = np.interp(shares, one["p"], one["D"])  # what is replayed may be part of the budget
        line = pd.DataFrame([one.iloc[0]] * len(shares)).assign(p=shares, D=new, series=name)
        parts.append(line.assign(F=fitted(record, line)))
    color = series_color(rows)
    x = alt.X("p:Q", title="replayed share of the tokens", axis=alt.Axis(format="%"))
    y = alt.Y("F:Q", title=FORGETTING)
    tip = ["series:N", "p:Q", "n:Q", alt.Tooltip("F:Q", format=".4f")]
    points = alt.Chart(longest).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tip)
    lines = alt.Chart(pd.concat(parts)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    rule = alt.Chart(pd.DataFrame({"F": [record["critical"]["tolerate"]]})).mark_rule(strokeDash=[5, 4], color="#888")
    return sized(lines + points + rule.encode(y=y), "Forgetting against replay, longest fine-tuning")


def tokens(rows: pd.DataFrame) -> Any:
    """F against the tokens of new text, without replay."""
    plain = pd.DataFrame(rows[rows["p"] == 0])
    ticks = np.unique(plain["D"].to_numpy()).tolist()
    text = "datum.value >= 1e9 ? format(datum.value, '.0e') : format(datum.value, '.3~s')"
    axis, scale = alt.Axis(values=ticks, labelExpr=text), alt.Scale(type="log", nice=False, padding=14)
    x = alt.X("D:Q", title="tokens of new text", scale=scale, axis=axis)
    color = series_color(rows)
    tip = ["series:N", "D:Q", alt.Tooltip("F:Q", format=".4f")]
    chart = (
        alt.Chart(plain).mark_line(point=True).encode(x=x, y=alt.Y("F:Q", title=FORGETTING), color=color, tooltip=tip)
    )
    return sized(chart, "Forgetting against new text, no replay")


def observed(rows: pd.DataFrame, record: Mapping[str, Any]) -> Any:
    """Every cell of the grid against the law; the line is equality."""
    shown = rows.assign(law=fitted(record, rows))
    ends = [float(shown[["F", "law"]].min().min()), float(shown[["F", "law"]].max().max())]
    color = alt.Color("p:Q", title="replayed", scale=alt.Scale(scheme=PALETTE), legend=alt.Legend(format="%"))
    x, y = alt.X("law:Q", title="F of the law (nats)"), alt.Y("F:Q", title="F observed (nats)")
    tip = ["series:N", "D:Q", "p:Q", alt.Tooltip("F:Q", format=".4f"), alt.Tooltip("law:Q", format=".4f")]
    points = alt.Chart(shown).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tip)
    equal = alt.Chart(pd.DataFrame({"law": ends, "F": ends})).mark_line(color="#888", strokeDash=[5, 4])
    return sized(equal.encode(x=x, y=y) + points, "Observed against fitted")
