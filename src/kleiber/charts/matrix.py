"""Values written into the cells of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt

from kleiber.charts.theme import PALETTE, Chart, Rows, apply_theme, title_above, with_title

WRITTEN = 16  # most columns whose values are written into their cells


def change_matrix(
    rows: Rows, x: alt.X, y: alt.Y, legend: str, title: str, worse: bool = False, subtitle: str = "", *,
    panel: str = "series", columns: int = 0, cell: tuple[int, int] = (42, 22), style: str = ".3f",
    tips: Sequence[Chart] = (),
) -> Chart:  # fmt: skip
    """Values written into cells whose color is the change: a panel for each value of `panel`, if there is the column.

    rows     columns value, change (nan leaves the cell white), and those of `x` and `y`; text, instead of the value
    worse    whether a positive change is for the worse, and so red
    columns  panels in a row; 0: as many as fit
    cell     width and height of a cell of a panel
    style    format of the values
    """
    largest = float(rows["change"].abs().max())  # nan without a colored cell
    step = 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0
    limit = round(math.ceil(largest / step - 1e-9) * step, 12) if largest > 0 else 1.0  # round, as the legend has it
    fill = alt.Scale(scheme="redblue", domain=[-limit, limit], reverse=worse)
    ticks = alt.Legend(gradientLength=120, titleLimit=200, values=[-limit, 0, limit], format="~g")
    color = alt.Color("change:Q", title=legend, scale=fill, legend=ticks)
    color = alt.condition("isValid(datum.change)", color, alt.value("white"))
    ink = alt.condition(f"abs(datum.change) > {0.6 * limit}", alt.value("white"), alt.value("#222"))
    text = alt.Text("text:N") if "text" in rows else alt.Text("value:Q", format=style)
    chart = cells(rows, x, y, color, text, ink, tips)
    across, down = (rows[axis.shorthand.partition(":")[0]].nunique() for axis in (x, y))
    if panel not in rows:
        return with_title(chart, title, height=26 * down, subtitle=subtitle)
    side = max(90, (50 if "text" in rows else cell[0]) * across)
    return in_panels(chart, rows, panel, title, subtitle, (side, cell[1] * down), columns or max(1, 560 // side))


def heat_map(
    rows: Rows, x: alt.X, y: alt.Y, legend: Chart, title: str, subtitle: str = "", *,
    domain: Sequence[float] | None = None, scale: alt.Scale | None = None, style: str = ".2f",
    cell: tuple[int, int] = (46, 30), panel: str = "", columns: int = 3, size: tuple[int, int] | None = None,
    tips: Sequence[Chart] = (),
) -> Chart:  # fmt: skip
    """Values from dark to light in the cells of a matrix, a panel for each value of `panel`; those of few columns are
    written.

    rows    columns value, and those of `x` and `y`
    legend  title of the colors, or the legend
    domain  of the values, by default theirs
    scale   other colors, whose cells have no texts
    style   format of the values
    cell    width and height of a cell; `size` is that of a panel
    """
    across, down = (max(2, rows[axis.shorthand.partition(":")[0]].nunique()) for axis in (x, y))
    low, high = domain or (float(rows["value"].min()), float(rows["value"].max()))
    fill = scale or alt.Scale(scheme=PALETTE, domain=[low, high], clamp=True)
    words: dict[str, Chart] = (
        {"title": legend, "legend": alt.Legend(values=[low, high], format=".3~g")}
        if isinstance(legend, str)
        else {"title": legend.title, "legend": legend}
    )
    text = alt.Text("value:Q", format=style) if style and scale is None and across <= WRITTEN else None
    ink = alt.condition(f"datum.value > {low + 0.6 * (high - low)}", alt.value("black"), alt.value("white"))
    hints = tips or [axis.shorthand for axis in (x, y)] + [alt.Tooltip("value:Q", format=".4f")]
    chart = cells(rows, x, y, alt.Color("value:Q", scale=fill, **words), text, ink, hints)
    return in_panels(chart, rows, panel, title, subtitle, size or (cell[0] * across, cell[1] * down), columns)


def cells(rows: Rows, x: Chart, y: Chart, color: Chart, text: Chart, ink: Chart, tips: Sequence[Chart]) -> Chart:
    """Returns colored cells, with texts where `text` is not None."""
    base = alt.Chart(rows).encode(x=x, y=y)
    layers = [base.mark_rect(stroke="white", strokeWidth=1, invalid=None).encode(color=color, tooltip=[*tips])]
    if text is not None:
        layers.append(base.mark_text(fontSize=10).encode(text=text, color=ink))
    return alt.layer(*layers)


def in_panels(
    chart: Chart, rows: Rows, panel: str, title: str, subtitle: str, size: tuple[int, int], columns: int
) -> Chart:
    """Returns a matrix under its title, a panel for each value of a column in order of appearance."""
    sized = chart.properties(width=size[0], height=size[1])
    if panel:
        header = alt.Header(labelFontSize=12, labelFontWeight="bold")
        facet = alt.Facet(f"{panel}:N", title=None, sort=list(dict.fromkeys(rows[panel])), header=header)
        sized = sized.facet(facet=facet, columns=columns, spacing=16)
    return apply_theme(sized.properties(title=title_above(title, subtitle)))
