"""Heat maps of the recall of a needle over its depth and the length of the haystack."""

from __future__ import annotations

import altair as alt

from kleiber.charts import Chart, Rows, heat_map

PLACE = "datum.value == 0 ? 'start' : datum.value == 1 ? 'end' : format(datum.value, '.0%')"


def heat_maps(rows: Rows, title: str, subtitle: str = "", columns: int = 2) -> Chart:
    """Returns a panel for each value of `panel`, in order of appearance, with the accuracy written into each cell.

    rows  panel, length (tokens), depth (0 to 1) and value (0 to 1)
    """
    x = alt.X("length:O", title="haystack (tokens)", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    y = alt.Y("depth:O", title="place of the needle", axis=alt.Axis(labelExpr=PLACE, domain=False, ticks=False))
    legend = alt.Legend(title="accuracy", format=".0%", values=[0, 0.5, 1])
    return heat_map(
        rows, x, y, legend, title, subtitle, domain=(0, 1), style=".0%", panel="panel", columns=columns,
        tips=["panel:N", "length:O", "depth:O", alt.Tooltip("value:Q", title="accuracy", format=".1%")],
    )  # fmt: skip
