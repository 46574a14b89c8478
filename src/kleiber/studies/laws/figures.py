"""The figures of a law: one function a figure, from rows and a record to an altair chart. Nothing here fits.

Sizes are told by a sequential palette that survives grey print, and named at the end of their line; every interval is
drawn. What lies beyond the rows is dashed.

Figures of a fit to any table: found against predicted, and what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import KINDS, human, human_tip, log_axis, loss_axis, sized, sizes_color, written
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.laws_json import percent
from kleiber.studies.laws.prediction import fitted_values, outside, widened
from kleiber.studies.laws.uncertainty import interval

BEYOND = 4.0  # how far the frontier is drawn past the largest run, in compute: 2x in N and in D
TIP = ["run:N", "stage:N", "seed:O", "size:N"]


def ladder(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> Any:
    """Loss against training tokens, a line of the law for each size; open points are left out of the fit."""
    least = record["domain"]["D"][0]
    shown = rows.assign(fitted=rows["D"] >= 0.999 * least, size=[human(n) for n in rows["N"]])
    sizes = [human(n) for n in sorted(rows["N"].unique())]
    tokens = np.geomspace(rows["D"].min(), rows["D"].max(), 60)
    lines = pd.concat(
        pd.DataFrame({"D": tokens, "loss": curve(law, record, N=np.full(60, n), D=tokens), "size": human(n)})
        for n in sorted(rows["N"].unique())
    ).assign(before=lambda lines: lines["D"] < 0.999 * least)
    color = sizes_color(sizes)
    x = log_axis("D", "training tokens D", np.array(rows["D"]), every=2, room=1.5)
    y = loss_axis()
    line = alt.Chart(lines).encode(x=x, y=y, color=color)
    base = line.transform_filter("!datum.before").mark_line(strokeWidth=1.7)
    early = line.transform_filter("datum.before").mark_line(strokeWidth=1, strokeDash=[2, 3], opacity=0.7)
    points = (
        alt.Chart(shown)
        .mark_point(size=42, strokeWidth=1.4, opacity=1)
        .encode(
            x=x, y=y, color=color,
            fill=alt.condition("datum.fitted", sizes_color(sizes), alt.value("white")),
            tooltip=[*TIP, human_tip("D"), alt.Tooltip("loss:Q", format=".4f")],
        )
    )  # fmt: skip
    ends = lines[lines["D"] == tokens[-1]]
    names = alt.Chart(ends).mark_text(align="left", dx=9, fontSize=11).encode(x=x, y=y, text="size:N", color=color)
    open_points = "open points are left out of the fit" if not all(shown["fitted"]) else ""
    return sized(early + base + points + names, "Loss against tokens, by parameters N", subtitle=open_points)


def frontier(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> Any:
    """Loss against 6 N D: each size's curve of the law, and the least over sizes with its interval, dashed beyond."""
    rows = rows.assign(C=6 * rows["N"] * rows["D"])  # the allocation's convention, which the frontier follows
    rows = pd.DataFrame(rows[rows["D"] >= 0.999 * record["domain"]["D"][0]])
    budgets = np.geomspace(rows["C"].min(), BEYOND * rows["C"].max(), 60)
    best = optimum(law, record, budgets)
    best["beyond"] = best["C"] > rows["C"].max()
    sizes = [human(n) for n in sorted(rows["N"].unique())]
    x, y, color = log_axis("C", "training compute 6 N D (FLOPs)", budgets), loss_axis(), sizes_color(sizes)
    layers = []
    if "lo" in best:
        band = alt.Chart(best).mark_area(opacity=0.22, color="#444")
        layers.append(band.encode(x=x, y=loss_axis("lo"), y2="hi:Q"))
    lines = fan(rows, law, record)
    layers.append(alt.Chart(lines).mark_line(strokeWidth=1, opacity=0.75).encode(x=x, y=y, color=color))
    meets = best["beyond"] | best["beyond"].shift(-1, fill_value=True)  # the dashes begin where the line ends
    for part, dash in ((best[~best["beyond"]], [1, 0]), (best[meets], [5, 4])):
        layers.append(alt.Chart(part).mark_line(color="black", strokeWidth=2, strokeDash=dash).encode(x=x, y=y))
    points = alt.Chart(rows.assign(size=[human(n) for n in rows["N"]])).mark_point(filled=True, size=40, opacity=0.95)
    tip = [*TIP, human_tip("C", "6 N D"), alt.Tooltip("loss:Q", format=".4f")]
    layers.append(points.encode(x=x, y=y, color=color, tooltip=tip))
    ends = rows.assign(size=[human(n) for n in rows["N"]]).sort_values("loss", ascending=False)
    ends = ends.loc[ends.groupby("size")["C"].idxmin()]
    names = alt.Chart(ends).mark_text(align="left", dx=4, dy=-11, fontSize=11)
    layers.append(names.encode(x=x, y=y, text="size:N", color=color))
    subtitle = (
        f"black: the least loss of any size by the law, {percent(record['level'])} interval, dashed beyond the runs"
    )
    return sized(alt.layer(*layers), "Loss against compute, by parameters N", subtitle=subtitle)


def fan(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> pd.DataFrame:
    """The law's curve of each size over the tokens that it was trained for."""
    parts = []
    for n in sorted(rows["N"].unique().tolist()):
        of_size = rows[rows["N"] == n]
        tokens = np.geomspace(of_size["D"].min(), of_size["D"].max(), 30)
        loss = curve(law, record, N=np.full(30, n), D=tokens)
        parts.append(pd.DataFrame({"C": 6 * n * tokens, "loss": loss, "size": human(n)}))
    return pd.concat(parts, ignore_index=True)


def residuals(rows: pd.DataFrame, law: Law, record: Mapping[str, Any]) -> Any:
    """What the law leaves, in percent of the loss, against compute: structure here is misfit."""
    fitted = pd.DataFrame(rows[rows["D"] >= 0.999 * record["domain"]["D"][0]])
    predicted = curve(law, record, N=np.array(fitted["N"]), D=np.array(fitted["D"]))
    sizes = [human(n) for n in sorted(rows["N"].unique())]
    shown = fitted.assign(
        percent=100 * np.log(np.array(fitted["loss"]) / predicted), size=[human(n) for n in fitted["N"]]
    )
    x, y = log_axis("C", "training compute C (FLOPs)", np.array(fitted["C"])), "observed above the law (%)"
    base = alt.Chart(shown).encode(x=x, y=alt.Y("percent:Q", title=y), color=sizes_color(sizes, alt.Legend()))
    points = base.mark_point(filled=True, size=46).encode(tooltip=[*TIP, alt.Tooltip("percent:Q", format="+.2f")])
    trunks = base.mark_line(strokeWidth=0.8, opacity=0.5).encode(detail="run:N")
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#666").encode(y="y:Q")
    subtitle = "a line joins the branches of one trunk, whose noise is shared"
    return sized(zero + trunks + points, "Residuals of single runs", subtitle=subtitle)


def exponents(record: Mapping[str, Any]) -> Any:
    """The allocation exponent a, N_opt ~ C^a, by approach and, where counted in several ways, by convention."""
    rows = pd.DataFrame(record["accounting"] or [{"convention": "", **exponent} for exponent in record["approaches"]])
    kinds = list(dict.fromkeys(exponent["approach"] for exponent in record["approaches"]))
    scale = alt.Scale(zero=False, padding=14)
    x, low = (
        alt.X(f"{name}:Q", title="allocation exponent a, N_opt ~ C^a", scale=scale, axis=alt.Axis(tickCount=6))
        for name in ("a", "lo")
    )
    names = list(dict.fromkeys(rows["convention"]))
    y = alt.Y("convention:N", title=None, sort=names, axis=alt.Axis(labelLimit=240))
    color = alt.Color("approach:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds, range=KINDS[: len(kinds)]))
    shape = alt.Shape("approach:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds))
    base = alt.Chart(rows).encode(y=y, yOffset=alt.YOffset("approach:N", sort=kinds), color=color)
    bars = base.mark_rule(strokeWidth=2).encode(x=low, x2="hi")
    tips = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("a", "lo", "hi")]
    dots = base.mark_point(filled=True, size=64, opacity=1).encode(x=x, shape=shape, tooltip=["approach:N", *tips])
    subtitle = f"{percent(record['level'])} intervals" + (
        ", by what is counted as N and C" if record["accounting"] else ""
    )
    title = "Allocation exponent, by approach"
    return sized(bars + dots, title, height=max(90, 26 * len(kinds) * len(names)), subtitle=subtitle)


def allocation(record: Mapping[str, Any]) -> Any:
    """N_opt against compute: the law's with its band, and the points of the other approaches."""
    rows = pd.DataFrame(record["allocation"])
    marks = pd.DataFrame(
        [
            {"approach": exponent["approach"], **point}
            for exponent in record["approaches"]
            for point in exponent["points"]
        ]
    )
    every = [*rows["C"], *(marks["C"] if len(marks) else ())] if len(rows) else list(marks["C"])
    x, layers = log_axis("C", "training compute C (FLOPs)", every), []
    held = [
        *(rows["N_lo"] if len(rows) else ()),
        *(rows["N_hi"] if len(rows) else ()),
        *(marks["N"] if len(marks) else ()),
    ]
    at, low = (log_axis(name, "compute-optimal parameters N", held, kind=alt.Y) for name in ("N", "N_lo"))
    if len(rows):
        base, beyond = alt.Chart(rows).encode(x=x), rows["C"] > 1.001 * record["domain"]["C"][1]
        layers.append(base.mark_area(opacity=0.22, color="#444").encode(y=low, y2="N_hi:Q"))
        for part, dash in ((rows[~beyond], [1, 0]), (rows[beyond | beyond.shift(-1, fill_value=False)], [5, 4])):
            layers.append(alt.Chart(part).mark_line(color="black", strokeWidth=2, strokeDash=dash).encode(x=x, y=at))
    if len(marks):
        kinds = sorted(marks["approach"].unique())
        color = alt.Color("approach:N", title=None, scale=alt.Scale(domain=kinds, range=KINDS[1 : 1 + len(kinds)]))
        shape = alt.Shape("approach:N", title=None, scale=alt.Scale(domain=kinds))
        points = alt.Chart(marks).mark_point(filled=True, size=60, opacity=1)
        tip = ["approach:N", human_tip("C"), human_tip("N")]
        layers.append(
            alt.Chart(marks).mark_rule(opacity=0.35).encode(x=x, y=low_of(marks, held), y2="hi:Q", color=color)
        )
        layers.append(points.encode(x=x, y=at, color=color, shape=shape, tooltip=tip))
    subtitle = f"line and band: the parametric law (C = 6 N D), {percent(record['level'])}"
    return sized(alt.layer(*layers), "How large a model, by compute", subtitle=subtitle)


def low_of(marks: pd.DataFrame, held: Any) -> Any:
    """The lower ends of points' intervals on the axis of the points; the points themselves where they have none."""
    return log_axis("lo" if "lo" in marks else "N", "compute-optimal parameters N", held, kind=alt.Y)


def backtests(record: Mapping[str, Any]) -> Any:
    """Error above each cut in compute, or in size where none is known: the law beside predictors that know no law."""
    axis = {"C": "compute cut (FLOPs)", "N": "cut in parameters N"}[record["backtests"][0]["along"]]
    rows = [
        {"cut": written(float(f"{test['cut']:.2g}")), "who": who.replace("_", " "), "error": 100 * error}
        for test in sorted(record["backtests"], key=lambda test: test["cut"])
        for who, error in {"the law": test["mare"], **test["naive"]}.items()
    ]
    who = list(dict.fromkeys(row["who"] for row in rows))  # the law first, in black
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("cut:N", title=axis, sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("error:Q", title="mean error above the cut (%)", scale=alt.Scale(zero=True)),
        color=alt.Color("who:N", title=None, scale=alt.Scale(domain=who, range=KINDS[: len(who)])),
    )
    tip = ["who:N", "cut:N", alt.Tooltip("error:Q", format=".2f")]
    shape = alt.Shape("who:N", title=None, scale=alt.Scale(domain=who))
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(shape=shape, tooltip=tip)
    return sized(base.mark_line(opacity=0.4) + dots, "Backtests: trained below the cut, tested above", height=220)


def profile(record: Mapping[str, Any], name: str = "E") -> Any:
    """How much worse the fit gets when a parameter is held at other values; flat means that the rows do not say."""
    profiled = record["profiles"][name]
    pairs = [(v, s) for v, s in zip(profiled["values"], profiled["statistic"], strict=True) if s is not None]
    rows = pd.DataFrame(pairs, columns=pd.Index(["value", "statistic"]))
    top = 4 * profiled["threshold"]
    rows = rows[rows["statistic"] <= top]
    scale = alt.Scale(zero=False, nice=False, padding=14)
    x = alt.X("value:Q", title=f"{name} held at (nats per token)", scale=scale, axis=alt.Axis(tickCount=7))
    y = alt.Y("statistic:Q", title="loss of fit (F statistic)", scale=alt.Scale(domain=[0, top], clamp=True))
    line = alt.Chart(rows).mark_line(color="black", point={"color": "black"}, clip=True).encode(x=x, y=y)
    limit = alt.Chart(pd.DataFrame({"y": [profiled["threshold"]]})).mark_rule(strokeDash=[5, 4], color="#555")
    reason = record["params"][name].get("reason") or f"{percent(record['level'])} interval below the dashed line"
    return sized(line + limit.encode(y="y:Q"), f"Profile of {name}", height=220, subtitle=reason)


def curve(law: Law, record: Mapping[str, Any], **inputs: np.ndarray) -> np.ndarray:
    """The law's prediction at the fitted parameters."""
    return law.predict(inputs, fitted_values(record))[0]


def optimum(law: Law, record: Mapping[str, Any], budgets: np.ndarray) -> pd.DataFrame:
    """The least loss over N at each compute by search over N (C = 6 N D), and its interval over the draws,
    beyond the rows with the law's misfit."""
    sizes = np.geomspace(1e3, 1e9, 400)
    rows = []
    draws = np.array(record["draws"])
    for budget in budgets:
        inputs = {"N": sizes, "D": budget / (6 * sizes)}
        row = {"C": budget, "loss": float(law.predict(inputs, fitted_values(record))[0].min())}
        if len(draws):
            ends = interval(law.predict(inputs, draws).min(axis=1), record["level"])
            far = outside({"C": record["domain"]["C"]}, {"C": np.array(budget)})
            rate = record["misfit"]["at_one_decade"]
            lo, hi = widened(np.array(row["loss"]), *ends, rate, far, record["level"])
            row |= {"lo": float(lo), "hi": float(hi)}
        rows.append(row)
    return pd.DataFrame(rows)


WIDE = 20.0  # the range from which on an axis is logarithmic


def fitted(rows: pd.DataFrame, form: Law, name: str) -> Any:
    """Each row's target against the law's prediction; on the diagonal they agree."""
    values = rows[["found", "predicted"]].to_numpy(dtype=float)
    ends = pd.DataFrame({"predicted": [values.min(), values.max()], "found": [values.min(), values.max()]})
    if values.min() > 0 and values.max() / values.min() > WIDE:
        x = log_axis("predicted", "predicted by the law", values)
        y = log_axis("found", "found", values, kind=alt.Y)
    else:
        style = {"scale": alt.Scale(zero=False, padding=12), "axis": alt.Axis(tickCount=6)}
        x, y = alt.X("predicted:Q", title="predicted by the law", **style), alt.Y("found:Q", title="found", **style)
    line = alt.Chart(ends).mark_line(color="#666", strokeWidth=1).encode(x=x, y=y)
    return sized(line + dots(rows, form, x, y), "Found against predicted", subtitle=name)


def percent_residuals(rows: pd.DataFrame, form: Law, name: str) -> Any:
    """What the law leaves, in percent of the prediction, against compute or its first input."""
    shown = rows.assign(percent=100 * (rows["found"] / rows["predicted"] - 1))
    along = "C" if "C" in rows else form.inputs[0]
    title = "training compute C (FLOPs)" if along == "C" else along
    at = np.array(rows[along], dtype=float)
    x = log_axis(along, title, at) if at.min() > 0 else alt.X(f"{along}:Q", title=title)
    y = alt.Y("percent:Q", title="found above the law (%)")
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#666").encode(y="y:Q")
    return sized(zero + dots(shown, form, x, y), "Residuals", subtitle=name)


def dots(rows: pd.DataFrame, form: Law, x: Any, y: Any) -> Any:
    """A point a row, coloured by the first input where that spans anything; hovering names the row."""
    first = form.inputs[0]
    tip = ["row:N", *(alt.Tooltip(f"{n}:Q", format=".4~s") for n in form.inputs), "found:Q", "predicted:Q"]
    chart = alt.Chart(rows).mark_point(filled=True, size=46, opacity=0.85)
    span = np.array(rows[first], dtype=float)
    if span.min() <= 0 or span.max() / span.min() < 1.01:
        return chart.encode(x=x, y=y, tooltip=tip)
    legend = alt.Legend(title=first, format=".2~s")
    color = alt.Color(f"{first}:Q", scale=alt.Scale(type="log", scheme="viridis"), legend=legend)
    return chart.encode(x=x, y=y, color=color, tooltip=tip)
