"""The theme of every figure: axes, colors and titles.

The colors of categories differ in gray print and with color blindness. Altair is imported with this module. A figure
may have any number of rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

alt.data_transformers.disable_max_rows()  # a figure of many sizes is drawn, not refused at 5,000 rows

Chart = Any  # an altair chart or encoding channel; their classes share no base with the methods used here
Rows = Any  # a DataFrame, or a row or column of one; the stubs of pandas do not type what indexing returns
WIDTH, HEIGHT = 440, 320
PALETTE: Final = "viridis"
# The first seven are distinct for color-blind readers (Okabe and Ito 2008), the first five also in gray.
KINDS = ["#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#7F7F7F", "#7B4173",
         "#31A354", "#B2182B"]  # fmt: skip
BLACK, BLUE, ORANGE, GREEN, PINK, SKY, RED, BROWN, SILVER, PURPLE = KINDS[:10]
# Methods that several studies compare, each with its color on all pages, and references in black. Variants of a method,
# whose names begin with its name, are shades of its color; other categories take the next color that is free.
METHODS: Final = {
    "plain": BLACK, "plain fine-tuning": BLACK, "plain training": BLACK, "baseline": BLACK, "dense": BLACK,
    "full fine-tuning": BLACK, "SFT": BLACK, "replay": BLUE, "self-generated replay": SKY, "LoRA": GREEN,
    "WiSE-FT": PINK, "LwF": BROWN, "A-GEM": ORANGE, "L2-SP": RED, "EWC": PURPLE, "DP-SGD": ORANGE, "DPO": ORANGE,
    "GRPO": GREEN, "QK-norm": BLUE, "no QK-norm": BLUE, "Muon": ORANGE, "mixture of experts": RED, "GELU": SKY,
    "ReLU²": BROWN, "no positions": SILVER, "untied": GREEN, "GQA": PINK, "dropout": RED,
}  # fmt: skip
PALEST = 0.6  # share of white in the palest shade of a color
LABEL_GAP = 0.045  # least distance of the names of lines, as a share of the span of the values
LINE, TITLE_LINE = 88, 78  # letters of a line of a subtitle, and of a title
GRAY = "#888"  # of references
ARROWS = {"lower": "← better", "higher": "better →"}  # behind the title of an axis, where one side is better
LOSS_TITLE: Final = "validation loss (nats per token)\N{EM SPACE}" + ARROWS["lower"]
LEGEND, SYMBOL, LETTER = 500, 36, 5  # widths: of a legend, a symbol with its margins, and a letter
FEW = 8  # values of a horizontal logarithmic axis up to which each has a tick
SAME = 0.02  # values that differ by less have one tick
UNLIKE = {"⁰", "⁻"}  # letters that Liberation Sans lacks
TALL = 4.9  # mean height of a letter of the title of a vertical axis
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_axis(
    name: str, title: str, data: ArrayLike, every: int | None = None, room: float = 1.15, kind: type = alt.X
) -> Chart:
    """Returns a logarithmic axis over the data.

    name   column of the data
    every  factor between ticks, which begin at the smallest value; None: a horizontal axis of at most FEW values has a
           tick at each of them, another axis those of `log_ticks`
    room   factor by which the axis extends beyond the largest value
    kind   altair's class of the axis: alt.X or alt.Y
    """
    values = np.unique(np.asarray(data, dtype=float))
    low, high = float(values[0]), float(values[-1])
    scale = alt.Scale(type="log", domain=[low / 1.15, high * room], nice=False)
    ticks = apart(values)
    if every is not None or kind is not alt.X or len(ticks) > FEW:
        ticks = log_ticks(low / 1.12, high * min(room, 1.12), every and float(every), low)
    return kind(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(**tick_labels(ticks)))


def apart(values: Iterable[float]) -> list[float]:
    """Returns sorted positive values without those within SAME of one before: budgets in whole steps differ."""
    kept: list[float] = []
    for value in values:
        if not kept or value > (1 + SAME) * kept[-1]:
            kept.append(float(value))
    return kept


def tick_labels(ticks: Sequence[float]) -> dict[str, Chart]:
    """Returns the properties of an axis with these ticks, each label centered on its tick, in one notation."""
    texts = [tick_text(tick, max(ticks, default=None)) for tick in ticks]
    if any(set(text) & UNLIKE for text in texts):  # such a label would be set in another font than those beside it
        texts = [f"{tick:.2g}".replace("e+", "e").replace("e-0", "e-") for tick in ticks]
    cases = [f"abs(datum.value / {tick!r} - 1) < 1e-6 ? '{text}' : " for tick, text in zip(ticks, texts, strict=True)]
    size = {"labelFontSize": 10} if len(ticks) > 5 and max(map(len, texts)) > 5 else {}  # many long labels
    return {"values": [*ticks], "labelExpr": "".join(cases) + "''", "labelOverlap": "greedy", **size}


def count_axis(name: str, title: str, data: ArrayLike) -> Chart:
    """Returns a linear horizontal axis with a tick at each value of the data, and room for names of lines."""
    values = np.unique(np.asarray(data, dtype=float))
    span = max(float(np.ptp(values)), 1.0)
    scale = alt.Scale(domain=[float(values[0]) - 0.05 * span, float(values[-1]) + 0.45 * span], nice=False)
    return alt.X(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(values=values.tolist(), format="~g"))


def values_axis(name: str, title: str, values: Rows, style: str = "") -> alt.X:
    """Returns a logarithmic axis with a tick at every value that occurs, written in the format `style`, if any."""
    ticks = sorted(set(map(float, values)))
    scale = alt.Scale(type="log", domain=[ticks[0] / 1.2, ticks[-1] * 1.2], nice=False)
    labels: dict[str, Chart] = tick_labels(ticks)
    if style:
        labels = {name: value for name, value in labels.items() if name != "labelExpr"} | {"format": style}
    return alt.X(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(grid=False, **labels))


def pointed(title: str, better: str) -> str:
    """Returns the title of an axis with an arrow to its better side, `lower` or `higher`, after a wide space."""
    return f"{title}\N{EM SPACE}{ARROWS[better]}".strip() if better in ARROWS else title


def span(values: Sequence[float] | np.ndarray) -> alt.Scale:
    """Returns a scale over the finite values, with a little room on both sides."""
    finite = np.asarray(values, dtype=float)[np.isfinite(np.asarray(values, dtype=float))]
    low, high = float(finite.min()), float(finite.max())
    room = 0.05 * max(high - low, 0.01 * abs(high), 1e-3)
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False)


def over(axis: Chart, column: str) -> Chart:
    """Returns the same axis for another column; `column` may be an aggregate such as mean(value)."""
    other = axis.copy(deep=False)
    other["shorthand"] = f"{column}:Q"
    return other


def reference_line(axis: Chart, value: float, **style: object) -> Chart:
    """Returns a dashed line across the panel at a value of an axis."""
    dashes = {"strokeDash": [4, 4], "color": GRAY, **style}
    rule = alt.Chart(pd.DataFrame({"reference": [value]})).mark_rule(**dashes)
    return rule.encode(**{"x" if isinstance(axis, alt.X) else "y": over(axis, "reference")})


def log_ticks(low: float, high: float, every: float | None, first: float) -> list[float]:
    """Returns the ticks of a logarithmic axis from `low` to `high`.

    every  ratio of successive ticks, which begin at `first`. None: ticks are 1, 2 and 5 times powers of ten, or powers
           of ten alone where high / low >= 300 (also 3 times those if they are fewer than three), or equally spaced
           where there are fewer than three
    """
    if every:
        return [first * every**k for k in range(int(np.log(high / first) / np.log(every) + 1.01))]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in [(1, 2, 5)] if high / low < 300 else [(1,), (1, 3)]:
        ticks = [m * 10.0**k for k in decades for m in steps if low <= m * 10.0**k <= high]
        if len(ticks) > 2:
            return ticks
    power = 10.0 ** np.floor(np.log10(high - low))
    step = next(m * power for m in (0.2, 0.5, 1, 2) if high - low <= 7 * m * power)
    return [float(k * step) for k in range(int(np.ceil(low / step - 1e-9)), int(high / step + 1e-9) + 1)]


def tick_text(number: float, largest: float | None = None) -> str:
    """Returns the label of a tick, such as 20k, 4M, 1,024 or 5·10¹².

    largest  the largest tick of the axis, which decides how all of them are written; None: `number`

    Two digits are enough where whole steps missed a planned number a little.
    """
    if (number if largest is None else largest) < 1e11:
        if 1e3 < number < 1e5 and np.log2(number) % 1 == 0:
            return f"{number:,.0f}"
        short = float(f"{number:.2g}")
        return format_count(short if abs(number / short - 1) < 0.002 else number)
    power = int(np.floor(np.log10(number) + 1e-9))
    lead = round(number / 10.0**power, 1)
    if lead == 10:
        lead, power = 1.0, power + 1
    tail = "10" + str(power).translate(SUPERSCRIPT)
    return tail if lead == 1 else f"{lead:g}·{tail}"


def loss_axis(
    name: str = "loss",
    title: str = LOSS_TITLE,
    log: bool = True,
    losses: ArrayLike | None = None,
) -> Chart:
    """Returns the vertical axis of a loss, logarithmic or linear, without zero.

    losses  the values; the ticks of a logarithmic axis over them have equally many digits
    """
    axis = alt.Axis(tickCount=6)
    if losses is not None:
        ticks = span_ticks(losses)
        axis = alt.Axis(values=ticks, format=f".{decimals_of(ticks)}f")
    scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=12)
    return alt.Y(f"{name}:Q", title=title, scale=scale, axis=axis)


def span_ticks(values: ArrayLike) -> list[float]:
    """Returns about six equally spaced round numbers within the values."""
    finite = np.asarray(values, dtype=float)
    low, high = float(np.nanmin(finite)), float(np.nanmax(finite))
    power = 10.0 ** np.floor(np.log10(max(high - low, 1e-9)))
    step = next(m * power for m in (0.1, 0.2, 0.5, 1, 2) if high - low <= 7 * m * power)
    return [round(float(k * step), 12) for k in range(int(np.ceil(low / step - 0.5)), int(high / step + 0.5) + 1)]


def decimals_of(ticks: Sequence[float]) -> int:
    """Returns how many decimals the ticks need, at most six."""
    return next((n for n in range(7) if all(abs(round(tick, n) - tick) < 1e-9 for tick in ticks)), 6)


def size_color(
    sizes: Sequence[str], legend: alt.Legend | None = None, title: str = "parameters", name: str = "size"
) -> Chart:
    """Returns colors of model sizes, or of the column `name`, from dark to light, in the order of `sizes`."""
    scale, legend = alt.Scale(domain=list(sizes), range=sequential_colors(len(sizes))), in_columns(legend, sizes)
    return alt.Color(f"{name}:N", sort=list(sizes), scale=scale, legend=legend, title=title)


def kind_color(
    kinds: Iterable[str], name: str = "kind", legend: alt.Legend | None = None,
    order: Sequence[str] | Mapping[str, str] = (),
) -> Chart:  # fmt: skip
    """Returns distinct colors of categories; the first is black.

    order  the categories of all figures of a page, in which each has one color, or their colors; by default `kinds`
    """
    kinds = list(kinds)
    colors = order if isinstance(order, Mapping) else colors_of(order or kinds)
    scale, legend = alt.Scale(domain=kinds, range=[colors[kind] for kind in kinds]), in_columns(legend, kinds)
    return alt.Color(f"{name}:N", sort=kinds, scale=scale, legend=legend, title=None)


def in_columns(legend: alt.Legend | None, kinds: Sequence[str]) -> alt.Legend | None:
    """Returns a legend above a figure in as many columns as are as wide as a panel."""
    if legend is not None and legend["columns"] is alt.Undefined:
        legend["columns"] = columns_in(LEGEND, kinds)
    return legend


def columns_in(width: int, kinds: Sequence[str]) -> int:
    """Returns how many columns a legend of some categories has that is about so wide."""
    return max(1, min(len(kinds), width // (SYMBOL + LETTER * max(map(len, kinds), default=1))))


def colors_of(kinds: Sequence[str]) -> dict[str, str]:
    """Returns the color of each category: that of its method, or the next one of KINDS that no method here has.

    Variants of a method are shades of its color, in order from the color itself to a pale one. Methods that share a
    color in METHODS are rarely in one figure; where they are, the first has it.
    """
    methods: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        methods.setdefault(method_of(kind) or kind, []).append(kind)
    owners = {METHODS[name]: name for name in reversed(methods) if name in METHODS}
    named = {name: color for color, name in owners.items()}
    free = [color for color in KINDS if color not in named.values()]
    others = [name for name in methods if name not in named]
    named |= {name: free[place % len(free)] for place, name in enumerate(others)}
    shades = {name: shades_of(named[name], len(variants)) for name, variants in methods.items()}
    return {kind: shade for name, kinds in methods.items() for kind, shade in zip(kinds, shades[name], strict=True)}


def method_of(kind: str) -> str:
    """Returns the method of METHODS that a category is, or whose name it begins with; "" for none."""
    names = [name for name in METHODS if kind == name or kind.startswith((f"{name} ", f"{name},"))]
    return max(names, key=len, default="")


def shades_of(color: str, count: int) -> list[str]:
    """Returns a color and `count` - 1 paler shades of it."""
    levels = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    shares = np.linspace(0, PALEST if count > 2 else PALEST - 0.05, max(count, 2))[:count]
    return ["#" + "".join(f"{round(level + (255 - level) * share):02X}" for level in levels) for share in shares]


def sequential_colors(count: int) -> list[str]:
    """Returns `count` colors of viridis from its dark end; the pale last fifth is left out."""
    stops = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98]], dtype=np.float64)
    at = np.linspace(0, len(stops) - 1, max(count, 2))[:count]
    colors = [[np.interp(x, range(len(stops)), stops[:, c]) for c in range(3)] for x in at]
    return ["#" + "".join(f"{round(v):02x}" for v in color) for color in colors]


def format_count(number: float) -> str:
    """Returns a number with three digits and a suffix, such as `12.4k` for 12_400."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def round_count(number: float) -> str:
    """Returns a planned number, which whole steps missed a little, with two digits: `1M` for 999_424."""
    return format_count(float(f"{number:.2g}"))


def count_tip(name: str, title: str | None = None) -> Chart:
    """Returns a tooltip that shows the column `name` with three digits and an SI suffix, labeled `title`."""
    return alt.Tooltip(f"{name}:Q", format=".3s", title=title or name)


def heading(label: str) -> str:
    """Returns the label of an axis as the beginning of a title: without its unit, and with a capital letter."""
    name = label.partition(" (")[0]
    return name[:1].upper() + name[1:]


def with_title(chart: Chart, title: str, height: int = HEIGHT, subtitle: str = "") -> Chart:
    """Returns a chart with a title, in the standard size and theme."""
    return apply_theme(chart.properties(width=WIDTH, height=height, title=title_above(title, subtitle)))


def title_above(title: str, subtitle: str) -> alt.TitleParams | str:
    """Returns a title with a subtitle, if there is one; both are cut into lines, a subtitle at its semicolons."""
    lines: list[str] = []
    for part in filter(str.strip, subtitle.split("; ")):
        first, *rest = textwrap.wrap(part, LINE)
        if lines and len(lines[-1]) + len(first) + 2 <= LINE:
            first = f"{lines.pop()}; {first}"
        lines += [first, *rest]
    text = title if len(title) <= TITLE_LINE else textwrap.wrap(title, TITLE_LINE) or ""
    if not lines:
        return alt.TitleParams(text) if isinstance(text, list) else text
    return alt.TitleParams(text, subtitle=lines if lines[1:] else lines[0])


def in_rows(panels: Sequence[Chart], title: str, subtitle: str = "", columns: int = 2) -> Chart:
    """Returns panels in rows under one title."""
    return apply_theme(alt.concat(*panels, columns=columns).properties(title=title_above(title, subtitle)))


def with_group(chart: Chart, group: str) -> Chart:
    """Returns a chart whose subtitle begins with the group of rows that it shows."""
    shown = chart.title if isinstance(chart.title, alt.TitleParams) else alt.TitleParams(chart.title)
    title = shown.text if isinstance(shown.text, str) else " ".join(shown.text)
    below = "; ".join(lines_of(shown.subtitle))
    return chart.properties(title=title_above(title, "; ".join(filter(None, [group, below]))))


def lines_of(subtitle: Chart) -> list[str]:
    """Returns the lines of a subtitle, which altair holds as a text, as a list, or as undefined."""
    return [subtitle] if isinstance(subtitle, str) else [] if subtitle is alt.Undefined else subtitle


def apply_theme(chart: Chart) -> Chart:
    """Returns a chart, or several side by side, in the standard theme."""
    fit_titles(chart, HEIGHT)
    quiet = {"gridColor": "#ececec", "domainColor": "#999", "tickColor": "#999", "labelColor": "#333"}
    return (
        chart.configure_view(stroke=None)
        .configure_axis(
            titleFontWeight="normal", titleColor="#333", titlePadding=8, labelFontSize=11, labelFlush=False, **quiet
        )
        .configure_title(
            anchor="start", fontSize=13, fontWeight="bold", offset=10, subtitleColor="#555", subtitleFontSize=11
        )
        .configure_legend(
            orient="top", titleFontWeight="normal", symbolOpacity=1, labelFontSize=11, labelLimit=300, columnPadding=14
        )
    )


def fit_titles(chart: Chart, height: float) -> None:
    """Cuts titles of vertical axes that are longer than their panel into lines."""
    if isinstance(chart, alt.ConcatChart):
        for part in chart.concat:
            fit_titles(part, height)
    if not isinstance(chart, (alt.Chart, alt.LayerChart)):
        return
    height = chart.height if isinstance(chart.height, (int, float)) else height
    for part in chart.layer if isinstance(chart, alt.LayerChart) else ():
        fit_titles(part, height)
    axis = chart.encoding.y if isinstance(chart.encoding, alt.FacetedEncoding) else None
    if isinstance(axis, alt.Y) and isinstance(title := axis["title"], str) and TALL * len(title) > height:
        axis["title"] = title_lines(title, max(12, int(height / TALL)))


def title_lines(title: str, letters: int) -> list[str]:
    """Returns the lines of the title of an axis, of so many letters: where they fit, its name, then unit and arrow."""
    name, bracket, rest = title.rpartition(" (")
    if bracket and max(len(name), len(rest) + 1) <= letters:
        return [name, f"({rest}"]
    return [line for part in title.split("\N{EM SPACE}") for line in textwrap.wrap(part, letters)]
