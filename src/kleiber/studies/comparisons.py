"""Figures of comparisons: means over seeds against one quantity, a line and a shape for each kind, named at its end."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.dress import kinds_color, log_axis, loss_axis, sized

NEAR = 0.045  # of the span of the values: names closer than that would lie on one another


def apart(values: np.ndarray, gap: float) -> np.ndarray:
    """The values moved up by as little as keeps each `gap` above the one below it."""
    moved, floor = values.astype(float), -np.inf
    for i in np.argsort(values, kind="stable"):
        floor = moved[i] = max(moved[i], floor + gap)
    return moved


def lines(
    means: pd.DataFrame, x: str, title: str, kind: str, heading: str, every: int | None = None,
    value: str = "validation loss (nats per token)", log: bool = False, subtitle: str = "", zero: bool = False,
) -> Any:  # fmt: skip
    """`means` as `seeds.seed_means` gives them; bars are its intervals, and absent without seeds."""
    shown = means.rename(columns={"mean": "value"}).assign(kind=means[kind].astype(str))
    kinds = list(dict.fromkeys(shown["kind"]))
    across = log_axis(x, title, np.array(shown[x], dtype=float), every=every, room=1.8)
    y, low = (loss_axis(name, value, log) for name in ("value", "lo"))
    color = kinds_color(kinds)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=kinds), legend=None)
    base = alt.Chart(shown).encode(x=across, color=color)
    layers = [base.mark_line(strokeWidth=1.6).encode(y=y)]
    if np.isfinite(shown["half"]).any():
        layers.append(base.mark_rule(strokeWidth=1.4).encode(y=low, y2="hi:Q"))
    tips = ["kind:N", f"{x}:Q", alt.Tooltip("value:Q", format=".4f"), alt.Tooltip("half:Q", format=".4f"), "seeds:Q"]
    layers.append(base.mark_point(filled=True, size=56, opacity=1).encode(y=y, shape=shape, tooltip=tips))
    ends = shown.loc[shown.groupby("kind")[x].idxmax()]
    ends = ends.assign(at=apart(ends["value"].to_numpy(), np.ptp(shown["value"]) * NEAR))
    beside = loss_axis("at", value, log)
    named = alt.Chart(ends).mark_text(align="left", dx=9, fontSize=11)
    names = named.encode(x=across, y=beside, text="kind:N", color=color)
    if zero:
        layers.insert(0, alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(color="#888").encode(y="y:Q"))
    return sized(alt.layer(*layers, names), heading, subtitle=subtitle)
