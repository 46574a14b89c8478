"""The figure of a mixture's gain: a line for each pair over training tokens, at equal tokens and at equal time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.dress import kinds_color, log_axis, sized

WAYS = {"": "equal tokens", " at equal time": "equal training time"}


def over_tokens(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Below 0 the mixture is better; points of a pair are moved apart a little so that their bars can be read."""
    shown = pd.DataFrame([one for row in rows for one in both_ways(row)])
    kinds, pairs = list(dict.fromkeys(shown["kind"])), list(dict.fromkeys(shown["what"]))
    aside = {kind: 1.0 + 0.03 * (at - (len(kinds) - 1) / 2) for at, kind in enumerate(kinds)}
    shown["x"] = [tokens * aside[kind] for tokens, kind in zip(shown["tokens"], shown["kind"], strict=True)]
    across = log_axis("x", "training tokens", np.array(shown["tokens"], dtype=float), every=2, room=2.6)
    y = alt.Y("value:Q", title="mixture less dense (nats per token)", scale=alt.Scale(zero=True))
    dash = alt.StrokeDash("way:N", scale=alt.Scale(domain=list(WAYS.values()), range=[[1, 0], [4, 3]]), legend=None)
    color = kinds_color(pairs, "what")
    base = alt.Chart(shown).encode(x=across, color=color, detail="kind:N")
    tips = ["kind:N", "tokens:Q", alt.Tooltip("value:Q", format=".4f"), alt.Tooltip("lo:Q", format=".4f")]
    tips.append(alt.Tooltip("hi:Q", format=".4f"))
    zero = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color="#888").encode(y="y:Q")
    ends = shown.loc[shown.groupby("kind")["tokens"].idxmax()]
    names = alt.Chart(ends).mark_text(align="left", dx=8, fontSize=10).encode(x=across, y=y, text="kind:N", color=color)
    bars = base.mark_rule(strokeWidth=1.4).encode(y="lo:Q", y2="hi:Q")
    lines = base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash)
    dots = base.mark_point(filled=True, size=50, opacity=1).encode(y=y, tooltip=tips)
    return sized(alt.layer(zero, bars, lines, dots, names), "Gain of the mixture: below 0 it is better")


def both_ways(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A point for each way of being equal that has a difference."""
    found = []
    for suffix, way in WAYS.items():
        told = {key: row[f"{key}{suffix}"] for key in ("value", "lo", "hi")}
        if told["value"] is not None:
            found.append({"what": row["what"], "tokens": row["tokens"], "way": way, **told, "kind": kind(row, way)})
    return found


def kind(row: Mapping[str, Any], way: str) -> str:
    return f"{row['what']}, {way}"
