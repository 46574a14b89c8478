"""The figures of a law: one function a figure, from rows and a record to an altair chart. Nothing here fits.

Sizes are told by a sequential palette that survives grey print, and named at the end of their line; every interval is
drawn. What lies beyond the rows is dashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.bootstrap import interval
from kleiber.studies.law import Law

WIDTH, HEIGHT = 420, 300
BEYOND = 4.0  # how far the frontier is drawn past the largest run, in compute: 2x in N and in D
PALETTE = "viridis"


def ladder(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> Any:
    """Loss against training tokens, a line of the law for each size; open points are left out of the fit."""
    least = record["domain"]["D"][0]
    shown = rows.assign(fitted=rows["D"] >= 0.999 * least, size=[human(n) for n in rows["N"]])
    sizes = [human(n) for n in sorted(rows["N"].unique())]
    tokens = np.geomspace(rows["D"].min(), rows["D"].max(), 60)
    lines = pd.concat(
        pd.DataFrame({"D": tokens, "loss": curve(law, record, N=np.full(60, n), D=tokens), "size": human(n)})
        for n in sorted(rows["N"].unique())
    )
    color = alt.Color("size:N", sort=sizes, scale=alt.Scale(scheme=PALETTE), legend=None)
    x = log_axis("D", "training tokens D", np.array(rows["D"]), every=2)
    y = loss_axis()
    base = alt.Chart(lines).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    points = (
        alt.Chart(shown)
        .mark_point(size=36, strokeWidth=1.3)
        .encode(
            x=x, y=y, color=color,
            fill=alt.condition("datum.fitted", color, alt.value("white")),
            tooltip=["run:N", "stage:N", "seed:O", "size:N", human_tip("D"), alt.Tooltip("loss:Q", format=".4f")],
        )
    )  # fmt: skip
    ends = lines[lines["D"] == tokens[-1]]
    names = alt.Chart(ends).mark_text(align="left", dx=6, fontSize=10).encode(x=x, y=y, text="size:N", color=color)
    return sized(base + points + names, "Loss against tokens, by parameters N")


def frontier(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> Any:
    """Loss against 6 N D, and the law's best loss at each with its interval, dashed beyond the runs."""
    rows = rows.assign(C=6 * rows["N"] * rows["D"])  # the allocation's convention, which the frontier follows
    budgets = np.geomspace(rows["C"].min(), BEYOND * rows["C"].max(), 60)
    best = optimum(law, record, budgets)
    best["beyond"] = best["C"] > rows["C"].max()
    sizes = [human(n) for n in sorted(rows["N"].unique())]
    shown = rows.assign(size=[human(n) for n in rows["N"]])
    x, y = log_axis("C", "training compute 6 N D (FLOPs)", budgets), loss_axis()
    layers = []
    if "lo" in best:
        band = alt.Chart(best).mark_area(opacity=0.25, color="#555")
        layers.append(band.encode(x=x, y=loss_axis("lo"), y2="hi:Q"))
    meets = best["beyond"] | best["beyond"].shift(-1, fill_value=True)  # the dashes begin where the line ends
    for part, dash in ((best[~best["beyond"]], [1, 0]), (best[meets], [5, 4])):
        layers.append(alt.Chart(part).mark_line(color="black", strokeDash=dash).encode(x=x, y=y))
    color = alt.Color("size:N", sort=sizes, scale=alt.Scale(scheme=PALETTE), title="parameters N")
    points = alt.Chart(shown).mark_point(filled=True, size=36, opacity=0.9)
    tip = ["run:N", "stage:N", "seed:O", "size:N", human_tip("C"), alt.Tooltip("loss:Q", format=".4f")]
    layers.append(points.encode(x=x, y=y, color=color, tooltip=tip))
    return sized(alt.layer(*layers), "Loss against compute, and the frontier that the law draws")


def residuals(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> Any:
    """What the law leaves, in percent of the loss, against compute: structure here is misfit."""
    fitted = pd.DataFrame(rows[rows["D"] >= 0.999 * record["domain"]["D"][0]])
    predicted = curve(law, record, N=np.array(fitted["N"]), D=np.array(fitted["D"]))
    sizes = [human(n) for n in sorted(rows["N"].unique())]
    shown = fitted.assign(
        percent=100 * np.log(np.array(fitted["loss"]) / predicted), size=[human(n) for n in fitted["N"]]
    )
    points = (
        alt.Chart(shown)
        .mark_point(filled=True, size=36)
        .encode(
            x=log_axis("C", "training compute C (FLOPs)", np.array(fitted["C"])),
            y=alt.Y("percent:Q", title="observed above the law (%)"),
            color=alt.Color("size:N", sort=sizes, scale=alt.Scale(scheme=PALETTE), title="parameters N"),
            tooltip=["run:N", "stage:N", "seed:O", "size:N", alt.Tooltip("percent:Q", format="+.2f")],
        )
    )
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#888").encode(y="y:Q")
    return sized(zero + points, "Residuals")


def exponents(record: Mapping[str, Any]) -> Any:
    """The allocation exponent a, N_opt ~ C^a, by approach, each with its interval."""
    found = pd.DataFrame(record["approaches"])[["approach", "a", "lo", "hi"]]
    y = alt.Y("approach:N", title=None, sort=list(found["approach"]))
    x, low = (
        alt.X(
            f"{name}:Q",
            title="allocation exponent a (N_opt ~ C^a)",
            scale=alt.Scale(zero=False, padding=12),
            axis=alt.Axis(tickCount=6),
        )
        for name in ("a", "lo")
    )
    bars = alt.Chart(found).mark_rule(strokeWidth=2).encode(y=y, x=low, x2="hi")
    dots = alt.Chart(found).mark_point(filled=True, size=60, color="black").encode(y=y, x=x, tooltip=["a", "lo", "hi"])
    return sized(bars + dots, f"Allocation by approach, {record['level']:.0%} intervals", height=120)


def backtests(record: Mapping[str, Any]) -> Any:
    """Error above each compute cut: the law beside predictors that know no law."""
    found = [
        {"cut": f"{test['cut']:.2g}", "who": who.replace("_", " "), "error": 100 * error}
        for test in sorted(record["backtests"], key=lambda test: test["cut"])
        for who, error in {"the law": test["mare"], **test["naive"]}.items()
    ]
    chart = alt.Chart(pd.DataFrame(found)).mark_point(filled=True, size=70)
    y = alt.Y("error:Q", title="mean error above the cut (%)", scale=alt.Scale(zero=True))
    who = list(dict.fromkeys(row["who"] for row in found))  # the law first, in black
    shape = alt.Shape("who:N", title=None, scale=alt.Scale(domain=who))
    color = alt.Color("who:N", title=None, scale=alt.Scale(domain=who, range=["#000000", "#3b73af", "#9a9a9a"]))
    tip = ["who:N", "cut:N", alt.Tooltip("error:Q", format=".2f")]
    chart = chart.encode(
        x=alt.X("cut:N", title="compute cut (FLOPs)", sort=None, axis=alt.Axis(labelAngle=0)),
        y=y,
        shape=shape,
        color=color,
        tooltip=tip,
    )
    return sized(chart, "Backtests: trained below the cut, tested above", height=200)


def curve(law: Law, record: Mapping[str, Any], **inputs: np.ndarray) -> np.ndarray:
    """The law's prediction at the fitted parameters."""
    return law.predict(inputs, values(record))[0]


def values(record: Mapping[str, Any]) -> np.ndarray:
    return np.array([[entry["value"] for entry in record["params"].values()]])


def optimum(law: Law, record: Mapping[str, Any], budgets: np.ndarray) -> pd.DataFrame:
    """The least loss over N at each compute by search over N (C = 6 N D), and its interval over the draws."""
    sizes = np.geomspace(1e3, 1e9, 400)
    found = []
    draws = np.array(record["draws"])
    for budget in budgets:
        inputs = {"N": sizes, "D": budget / (6 * sizes)}
        row = {"C": budget, "loss": float(law.predict(inputs, values(record))[0].min())}
        if len(draws):
            lo, hi = interval(law.predict(inputs, draws).min(axis=1), record["level"])
            row |= {"lo": float(lo), "hi": float(hi)}
        found.append(row)
    return pd.DataFrame(found)


def log_axis(name: str, title: str, data: np.ndarray, every: int | None = None) -> alt.X:
    """A logarithmic axis with a tick at each power of ten, or at each doubling where there are few of those."""
    low, high = float(np.min(data)), float(np.max(data))
    if every:
        ticks = [low * every**k for k in range(int(np.log(high / low) / np.log(every) + 1.01))]
    else:
        ticks = [10.0**k for k in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    text = "datum.value >= 1e9 ? format(datum.value, '.0e') : format(datum.value, '.3~s')"
    scale = alt.Scale(type="log", domain=[low / 1.15, high * (1.6 if every else 1.15)], nice=False)
    return alt.X(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, labelExpr=text))


def loss_axis(name: str = "loss") -> alt.Y:
    scale = alt.Scale(type="log", zero=False, nice=False, padding=10)
    return alt.Y(f"{name}:Q", title="validation loss (nats per token)", scale=scale)


def human(number: float) -> str:
    """12_400 as `12.4k`."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def human_tip(name: str) -> Any:
    return alt.Tooltip(f"{name}:Q", format=".3s")


def sized(chart: Any, title: str, height: int = HEIGHT) -> Any:
    """A chart in the house's size and dress."""
    return dressed(chart.properties(width=WIDTH, height=height, title=title))


def dressed(chart: Any) -> Any:
    """A chart, or several side by side, in the house's dress."""
    quiet = {
        "gridColor": "#eee",
        "domainColor": "#999",
        "tickColor": "#999",
        "labelColor": "#333",
        "titleColor": "#333",
    }
    return (
        chart.configure_view(stroke=None)
        .configure_axis(titleFontWeight="normal", **quiet)
        .configure_title(anchor="start", fontSize=13, fontWeight="bold")
        .configure_legend(titleFontWeight="normal", symbolOpacity=1)
    )
