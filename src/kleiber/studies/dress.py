"""How figures look: axes with few and sensible ticks, colours that survive grey print and colour blindness, quiet
frames.

One place for what every figure shares. It draws no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

WIDTH, HEIGHT = 440, 320
PALETTE = "viridis"
# Black, blue, orange, green, purple: told apart in grey and without red or green (Okabe and Ito 2008).
KINDS = ["#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"]
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_axis(name: str, title: str, data: Any, every: int | None = None, room: float = 1.15, kind: Any = alt.X) -> Any:
    """A logarithmic axis from the data's least to its most, `room` to spare at the far end.

    Ticks at powers of ten, with 2 and 5 between them under two and a half decades, or at each factor of `every` from
    the least.
    """
    low, high = float(np.min(data)), float(np.max(data))
    scale = alt.Scale(type="log", domain=[low / 1.15, high * room], nice=False)
    ticks = log_ticks(low / 1.15, high * min(room, 1.3), every and float(every), low)
    text = "".join(f"abs(datum.value / {tick!r} - 1) < 1e-6 ? '{written(tick)}' : " for tick in ticks) + "''"
    return kind(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, labelExpr=text, labelFlush=False))


def log_ticks(low: float, high: float, every: float | None, first: float) -> list[float]:
    if every:
        return [first * every**k for k in range(int(np.log(high / first) / np.log(every) + 1.01))]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    return [m * 10.0**k for k in decades for m in steps if low <= m * 10.0**k <= high]


def written(number: float) -> str:
    """A tick in words: 20k, 4M, and beyond that 5·10¹²."""
    if number < 1e11:
        return human(number)
    power = int(np.floor(np.log10(number) + 1e-9))
    lead = round(number / 10.0**power, 1)
    if lead == 10:
        lead, power = 1.0, power + 1
    tail = "10" + str(power).translate(SUPERSCRIPT)
    return tail if lead == 1 else f"{lead:g}·{tail}"


def loss_axis(name: str = "loss", title: str = "validation loss (nats per token)", log: bool = True) -> Any:
    scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=12)
    return alt.Y(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))


def sizes_color(sizes: Sequence[str], legend: Any = None, title: str = "parameters N") -> Any:
    """Sequential colours for sizes, dark for small; the palette's pale end is left out, which paper swallows."""
    scale = alt.Scale(domain=list(sizes), range=shades(len(sizes)))
    return alt.Color("size:N", sort=list(sizes), scale=scale, legend=legend, title=title)


def kinds_color(kinds: Sequence[str], name: str = "kind", legend: Any = None) -> Any:
    """Distinct colours for kinds; the first is black."""
    scale = alt.Scale(domain=list(kinds), range=[KINDS[i % len(KINDS)] for i in range(len(kinds))])
    return alt.Color(f"{name}:N", sort=list(kinds), scale=scale, legend=legend, title=None)


def shades(count: int) -> list[str]:
    """Viridis from its dark end to four fifths of the way, by `count` steps."""
    stops = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98]], dtype=np.float64)
    at = np.linspace(0, len(stops) - 1, max(count, 2))[:count]
    found = [[np.interp(x, range(len(stops)), stops[:, c]) for c in range(3)] for x in at]
    return ["#" + "".join(f"{round(v):02x}" for v in one) for one in found]


def human(number: float) -> str:
    """12_400 as `12.4k`; whole batches of a round number of tokens as that number."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def human_tip(name: str, title: str | None = None) -> Any:
    return alt.Tooltip(f"{name}:Q", format=".3s", title=title or name)


def sized(chart: Any, title: str, height: int = HEIGHT, subtitle: str = "") -> Any:
    """A chart in the house's size and dress."""
    heading = alt.TitleParams(title, subtitle=subtitle) if subtitle else title
    return dressed(chart.properties(width=WIDTH, height=height, title=heading))


def dressed(chart: Any) -> Any:
    """A chart, or several side by side, in the house's dress."""
    quiet = {"gridColor": "#ececec", "domainColor": "#999", "tickColor": "#999", "labelColor": "#333"}
    return (
        chart.configure_view(stroke=None)
        .configure_axis(titleFontWeight="normal", titleColor="#333", titlePadding=8, labelFontSize=11, **quiet)
        .configure_title(
            anchor="start", fontSize=13, fontWeight="bold", offset=10, subtitleColor="#555", subtitleFontSize=11
        )
        .configure_legend(titleFontWeight="normal", symbolOpacity=1, labelFontSize=11)
    )
