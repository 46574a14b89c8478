"""Distributions: single runs beside each other, and histograms of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.intervals import color_of
from kleiber.charts.series import Marks, lines
from kleiber.charts.theme import WIDTH, Chart, Rows, in_rows, kind_color, pointed, span, with_title

BINS = 30


def distribution(
    rows: Rows, order: Sequence[str], x_title: str, title: str, subtitle: str = "", better: str = "none"
) -> Chart:
    """The values of all runs, a line of points for each series and a panel for each `panel` with a scale of its own.

    Lines are sorted by their means.

    rows    series, value, seed; hollow, whether the point is; panel
    better  the side of the axis that is: lower, higher or none
    """
    shown = rows.assign(**{name: value for name, value in {"hollow": False, "panel": ""}.items() if name not in rows})
    color = color_of(order, set(shown["series"]), dodge=False)
    fill: Chart = alt.condition("datum.hollow", alt.value("white"), color)
    x, panels = alt.X("value:Q", title=pointed(x_title, better), axis=alt.Axis(tickCount=6, labelOverlap=True)), []
    for heading, part in shown.groupby("panel", sort=False):
        names = part.groupby("series", sort=False)["value"].mean().sort_values().index.tolist()
        marks = alt.Chart(part).mark_point(size=46, strokeWidth=1.6, opacity=0.9).encode(
            x=x.copy(deep=False).scale(span(part["value"])),
            y=alt.Y("series:N", sort=names, title=None, axis=alt.Axis(labelLimit=260)),
            color=color, fill=fill,
            tooltip=["series:N", "seed:O", alt.Tooltip("value:Q", format=".4f")],
        )  # fmt: skip
        panels.append(
            marks.properties(title=alt.TitleParams(str(heading), frame="group"), width=WIDTH, height=26 * len(names))
        )
    if len(panels) == 1:
        return with_title(panels[0], title, 26 * len(names), subtitle)
    return in_rows(panels, title, subtitle, columns=1)


def histogram(samples: Mapping[str, Sequence[float]], x_title: str, y_title: str, title: str) -> Chart:
    """The shares of the values of each sample in common bins, as a line with steps."""
    edges = np.histogram_bin_edges(np.concatenate([*samples.values()]), BINS)
    rows = pd.DataFrame([
        {"kind": name, "lower": float(lower), "upper": float(upper), "value": float(share)}
        for name, values in samples.items()
        for lower, upper, share in zip(edges, edges[1:], np.histogram(values, edges)[0] / len(values), strict=False)
    ])  # fmt: skip
    x = alt.X("lower:Q", title=x_title, scale=alt.Scale(zero=False, nice=False))
    color = kind_color([*samples], legend=alt.Legend(orient="top", title=None))
    marks = Marks(rows=rows, line=1.8, style={"interpolate": "step-after"})
    return lines([marks], x, alt.Y("value:Q", title=y_title), title, color=color, height=240)
