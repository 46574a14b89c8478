"""Heat maps of the recall of a needle over its depth and the length of the haystack."""

from __future__ import annotations

import altair as alt
import pandas as pd

from kleiber.charts.theme import PALETTE, Chart, apply_theme

CELL = (46, 30)  # pixels, wide and high


def heat_maps(rows: pd.DataFrame, title: str, subtitle: str = "", columns: int = 2) -> Chart:
    """Returns a panel for each value of `panel`, in order of appearance, with the accuracy written into each cell.

    rows  panel, length (tokens), depth (0 to 1) and value (0 to 1)
    """
    panels = list(dict.fromkeys(rows["panel"]))
    x = alt.X("length:O", title="haystack (tokens)", axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    place = "datum.value == 0 ? 'start' : datum.value == 1 ? 'end' : format(datum.value, '.0%')"
    y = alt.Y("depth:O", title="place of the needle", axis=alt.Axis(labelExpr=place, domain=False, ticks=False))
    scale = alt.Scale(scheme=PALETTE, domain=[0, 1])
    color = alt.Color("value:Q", title="accuracy", scale=scale, legend=alt.Legend(format=".0%", values=[0, 0.5, 1]))
    tips = ["panel:N", "length:O", "depth:O", alt.Tooltip("value:Q", title="accuracy", format=".1%")]
    ink = alt.condition("datum.value > 0.6", alt.value("black"), alt.value("white"))
    base = alt.Chart(rows).encode(x=x, y=y)
    cells = base.mark_rect().encode(color=color, tooltip=tips)
    numbers = base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".0%"), color=ink)
    size = {"width": CELL[0] * rows["length"].nunique(), "height": CELL[1] * rows["depth"].nunique()}
    chart = alt.layer(cells, numbers).properties(**size)
    header = alt.Header(labelFontSize=12, labelFontWeight="bold")
    facets = chart.facet(facet=alt.Facet("panel:N", title=None, sort=panels, header=header), columns=columns)
    return apply_theme(facets.properties(title=alt.TitleParams(title, subtitle=subtitle)))
