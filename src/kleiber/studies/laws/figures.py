"""Figures of a law: each function makes an altair chart from rows and the record of the law.

Model sizes have a sequential palette that stays readable in gray, and are labeled at the end of their line, or in a
legend where lines cross. Every interval is drawn; lines are dashed outside the range of the rows.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts import theme
from kleiber.charts.theme import Chart, count_tip, format_count, kind_color, log_axis, loss_axis, size_color, with_title
from kleiber.studies.laws.backtest import NAIVE_LABELS
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.prediction import decades_outside, fitted_values, widen_interval
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.types import Row

BEYOND = 4.0  # the frontier is drawn up to this multiple of the largest run's compute
TIP = ["run:N", "stage:N", "seed:O", "size:N"]


def ladder(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Validation loss vs training tokens, with the law's curve for each model size; hollow points were not fitted."""
    least = record["domain"]["D"][0]
    shown = rows.assign(fitted=rows["D"] >= 0.999 * least, size=[format_count(n) for n in rows["N"]])
    sizes = [format_count(n) for n in sorted(rows["N"].unique())]
    tokens = np.geomspace(rows["D"].min(), rows["D"].max(), 60)
    lines = pd.concat(
        pd.DataFrame({"D": tokens, "loss": curve(law, record, N=np.full(60, n), D=tokens), "size": format_count(n)})
        for n in sorted(rows["N"].unique())
    ).assign(before=lambda lines: lines["D"] < 0.999 * least)
    color = size_color(sizes)
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
            fill=alt.condition("datum.fitted", size_color(sizes), alt.value("white")),
            tooltip=[*TIP, count_tip("D"), alt.Tooltip("loss:Q", format=".4f")],
        )
    )  # fmt: skip
    ends = lines[lines["D"] == tokens[-1]]
    names = alt.Chart(ends).mark_text(align="left", dx=9, fontSize=11).encode(x=x, y=y, text="size:N", color=color)
    open_points = "hollow points were not fitted" if not all(shown["fitted"]) else ""
    return with_title(early + base + points + names, "Validation loss vs training tokens", subtitle=open_points)


def frontier(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Returns a chart of validation loss vs compute 6 N D.

    It shows the runs, the law's curve for each size, and the minimum of the law over sizes with its interval.
    """
    rows = rows.assign(C=6 * rows["N"] * rows["D"])  # the convention of the allocation
    rows = pd.DataFrame(rows[rows["D"] >= 0.999 * record["domain"]["D"][0]])
    budgets = np.geomspace(rows["C"].min(), BEYOND * rows["C"].max(), 60)
    best = optimum(law, record, budgets)
    best["beyond"] = best["C"] > rows["C"].max()
    sizes = [format_count(n) for n in sorted(rows["N"].unique())]
    x, y = log_axis("C", "training compute 6 N D (FLOPs)", budgets), loss_axis()
    color = size_color(sizes, alt.Legend())
    layers = []
    if "lo" in best:
        band = alt.Chart(best).mark_area(opacity=0.22, color="#444")
        layers.append(band.encode(x=x, y=loss_axis("lo"), y2="hi:Q"))
    lines = size_curves(rows, law, record)
    layers.append(alt.Chart(lines).mark_line(strokeWidth=1, opacity=0.75).encode(x=x, y=y, color=color))
    meets = best["beyond"] | best["beyond"].shift(-1, fill_value=True)  # the dashes begin where the line ends
    for part, dash in ((best[~best["beyond"]], [1, 0]), (best[meets], [5, 4])):
        layers.append(alt.Chart(part).mark_line(color="black", strokeWidth=2, strokeDash=dash).encode(x=x, y=y))
    named = rows.assign(size=[format_count(n) for n in rows["N"]])
    points = alt.Chart(named).mark_point(filled=True, size=40, opacity=0.95)
    tip = [*TIP, count_tip("C", "6 N D"), alt.Tooltip("loss:Q", format=".4f")]
    layers.append(points.encode(x=x, y=y, color=color, tooltip=tip))
    subtitle = f"black: the law's lowest loss over sizes, {percent(record['level'])} interval; dashed: extrapolated"
    return with_title(alt.layer(*layers), "Validation loss vs training compute", subtitle=subtitle)


def size_curves(rows: pd.DataFrame, law: Law, record: Row) -> pd.DataFrame:
    """Returns the law's curve for each size over the range of its tokens: columns C, loss, size."""
    parts = []
    for n in sorted(rows["N"].unique().tolist()):
        of_size = rows[rows["N"] == n]
        tokens = np.geomspace(of_size["D"].min(), of_size["D"].max(), 30)
        loss = curve(law, record, N=np.full(30, n), D=tokens)
        parts.append(pd.DataFrame({"C": 6 * n * tokens, "loss": loss, "size": format_count(n)}))
    return pd.concat(parts, ignore_index=True)


def residuals(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Residuals of single runs in percent of the loss vs compute; a pattern means that the law does not fit."""
    fitted = pd.DataFrame(rows[rows["D"] >= 0.999 * record["domain"]["D"][0]])
    predicted = curve(law, record, N=np.array(fitted["N"]), D=np.array(fitted["D"]))
    sizes = [format_count(n) for n in sorted(rows["N"].unique())]
    shown = fitted.assign(
        percent=100 * np.log(np.array(fitted["loss"]) / predicted), size=[format_count(n) for n in fitted["N"]]
    )
    x, y = log_axis("C", "training compute C (FLOPs)", np.array(fitted["C"])), "observed minus predicted loss (%)"
    base = alt.Chart(shown).encode(x=x, y=alt.Y("percent:Q", title=y), color=size_color(sizes, alt.Legend()))
    points = base.mark_point(filled=True, size=46).encode(tooltip=[*TIP, alt.Tooltip("percent:Q", format="+.2f")])
    trunks = base.mark_line(strokeWidth=0.8, opacity=0.5).encode(detail="run:N")
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#666").encode(y="y:Q")
    subtitle = "a line joins the branches of one trunk, which share noise; color: parameters N"
    return with_title(zero + trunks + points, "Residuals vs training compute", subtitle=subtitle)


def exponents(record: Row) -> Chart:
    """The allocation exponent a of N_opt ~ C^a, by approach and counting convention."""
    rows = pd.DataFrame(record["accounting"] or [{"convention": "", **exponent} for exponent in record["approaches"]])
    kinds = list(dict.fromkeys(exponent["approach"] for exponent in record["approaches"]))
    rows = rows[rows["approach"].isin(kinds)]
    scale = alt.Scale(zero=False, padding=14)
    x, low = (
        alt.X(f"{name}:Q", title="allocation exponent a, N_opt ~ C^a", scale=scale, axis=alt.Axis(tickCount=6))
        for name in ("a", "lo")
    )
    names = list(dict.fromkeys(rows["convention"]))
    y = alt.Y("convention:N", title=None, sort=names, axis=alt.Axis(labelLimit=240))
    color, shape = approach_marks(kinds)
    base = alt.Chart(rows).encode(y=y, yOffset=alt.YOffset("approach:N", sort=kinds), color=color)
    bars = base.mark_rule(strokeWidth=2).encode(x=low, x2="hi")
    tips = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("a", "lo", "hi")]
    dots = base.mark_point(filled=True, size=64, opacity=1).encode(x=x, shape=shape, tooltip=["approach:N", *tips])
    counting = ", by counting convention for N and C" if record["accounting"] else ""
    subtitle = f"{percent(record['level'])} intervals{counting}"
    title = "Compute-optimal allocation exponent"
    return with_title(bars + dots, title, height=max(90, 26 * len(kinds) * len(names)), subtitle=subtitle)


def allocation(record: Row) -> Chart:
    """Compute-optimal parameters vs compute: the law with its interval, and the points of the other approaches."""
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
        *(value for name in ("N", "lo", "hi") if name in marks for value in marks[name].dropna()),
    ]
    at, low = (log_axis(name, "compute-optimal parameters N", held, kind=alt.Y) for name in ("N", "N_lo"))
    if len(rows):
        base, beyond = alt.Chart(rows).encode(x=x), rows["C"] > 1.001 * record["domain"]["C"][1]
        layers.append(base.mark_area(opacity=0.22, color="#444").encode(y=low, y2="N_hi:Q"))
        for part, dash in ((rows[~beyond], [1, 0]), (rows[beyond | beyond.shift(-1, fill_value=False)], [5, 4])):
            layers.append(alt.Chart(part).mark_line(color="black", strokeWidth=2, strokeDash=dash).encode(x=x, y=at))
    if len(marks):
        kinds = sorted(marks["approach"].unique())
        color, shape = approach_marks(kinds)
        points = alt.Chart(marks).mark_point(filled=True, size=60, opacity=1)
        tip = ["approach:N", count_tip("C"), count_tip("N")]
        bars = alt.Chart(marks).mark_rule(opacity=0.35)
        layers.append(bars.encode(x=x, y=lower_end_axis(marks, held), y2="hi:Q", color=color))
        layers.append(points.encode(x=x, y=at, color=color, shape=shape, tooltip=tip))
    subtitle = f"line and band: the fitted law (C = 6 N D), {percent(record['level'])} interval"
    return with_title(alt.layer(*layers), "Compute-optimal model size vs training compute", subtitle=subtitle)


def approach_marks(names: list[str]) -> tuple[alt.Color, alt.Shape]:
    """Returns the colors and shapes of approaches to the allocation, by the number that their names begin with.

    The parametric approach, 3, is black as the fitted law is.
    """
    order = [next((name for name in names if name[0] == number), number) for number in "312"]
    shapes = [("circle", "square", "triangle-up")[order.index(name)] for name in names]
    scale = alt.Scale(domain=list(names), range=shapes)
    shape = alt.Shape("approach:N", title=None, sort=list(names), scale=scale)
    return kind_color(names, "approach", alt.Legend(), order), shape


def lower_end_axis(marks: pd.DataFrame, held: list[float]) -> Chart:
    """Returns the axis of the intervals' lower ends, or of the points if they have no interval."""
    return log_axis("lo" if "lo" in marks else "N", "compute-optimal parameters N", held, kind=alt.Y)


def backtests(record: Row) -> Chart:
    """Error of the law and the naive predictors above each cut in compute, or in size."""
    axis = {"C": "training compute at the cut (FLOPs)", "N": "parameters N at the cut"}[record["backtests"][0]["along"]]
    rows = [
        {"cut": theme.tick_text(float(f"{test['cut']:.2g}")), "who": NAIVE_LABELS.get(who, who), "error": 100 * error}
        for test in sorted(record["backtests"], key=lambda test: test["cut"])
        for who, error in {"law": test["mare"], **test["naive"]}.items()
    ]
    who = list(dict.fromkeys(row["who"] for row in rows))  # the law first, in black
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("cut:N", title=axis, sort=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("error:Q", title="mean absolute error above the cut (%)", scale=alt.Scale(zero=True)),
        color=kind_color(who, "who", alt.Legend()),
    )
    tip = ["who:N", "cut:N", alt.Tooltip("error:Q", format=".2f")]
    shape = alt.Shape("who:N", title=None, scale=alt.Scale(domain=who))
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(shape=shape, tooltip=tip)
    subtitle = "fitted to the runs below the cut, tested on those above"
    return with_title(base.mark_line(opacity=0.4) + dots, "Backtests", height=220, subtitle=subtitle)


def profile(record: Row, name: str = "E") -> Chart:
    """Profile likelihood of a parameter: how much worse the fit is with the parameter fixed at other values.

    If the curve stays below the threshold, the parameter is not identified.
    """
    profiled = record["profiles"][name]
    top = 4 * profiled["threshold"]
    pairs = zip(profiled["values"], profiled["statistic"], strict=True)
    shown = [(value, statistic) for value, statistic in pairs if statistic is not None and statistic <= top]
    rows = pd.DataFrame(shown, columns=pd.Index(["value", "statistic"]))
    scale = alt.Scale(zero=False, nice=False, padding=14)
    x = alt.X("value:Q", title=f"irreducible loss {name} (nats per token)", scale=scale, axis=alt.Axis(tickCount=7))
    title = f"F statistic (dashed: {percent(record['level'])} limit)"
    y = alt.Y("statistic:Q", title=title, scale=alt.Scale(domain=[0, top], clamp=True))
    line = alt.Chart(rows).mark_line(color="black", point={"color": "black"}, clip=True).encode(x=x, y=y)
    limit = alt.Chart(pd.DataFrame({"y": [profiled["threshold"]]})).mark_rule(strokeDash=[5, 4], color="#555")
    reason = record["params"][name].get("reason")
    reason = reason or f"{percent(record['level'])} interval: values at which the curve is below the dashed line"
    return with_title(line + limit.encode(y="y:Q"), f"Profile likelihood of {name}", height=220, subtitle=reason)


def curve(law: Law, record: Row, **inputs: np.ndarray) -> np.ndarray:
    """Returns the law's prediction at the fitted parameters, (rows,)."""
    return law.predict(inputs, fitted_values(record))[0]


def optimum(law: Law, record: Row, budgets: np.ndarray) -> pd.DataFrame:
    """Returns the lowest loss over N at each compute C = 6 N D, with its interval: columns C, loss, lo, hi.

    Outside the range of the rows, the interval includes the misfit of the law.
    """
    sizes = np.geomspace(1e3, 1e9, 400)
    rows = []
    draws = np.array(record["draws"])
    for budget in budgets:
        inputs = {"N": sizes, "D": budget / (6 * sizes)}
        row = {"C": budget, "loss": float(law.predict(inputs, fitted_values(record))[0].min())}
        if len(draws):
            ends = interval(law.predict(inputs, draws).min(axis=1), record["level"])
            far = decades_outside({"C": record["domain"]["C"]}, {"C": np.array(budget)})
            rate = record["misfit"]["at_one_decade"]
            lo, hi = widen_interval(np.array(row["loss"]), *ends, rate, far, record["level"])
            row |= {"lo": float(lo), "hi": float(hi)}
        rows.append(row)
    return pd.DataFrame(rows)


WIDE = 20.0  # an axis is logarithmic if its largest value exceeds its smallest by more than this factor


def fitted(rows: pd.DataFrame, form: Law) -> Chart:
    """Observed vs predicted target of each row; exact predictions lie on the diagonal."""
    values = rows[["observed", "predicted"]].to_numpy(dtype=float)
    ends = pd.DataFrame({"predicted": [values.min(), values.max()], "observed": [values.min(), values.max()]})
    if values.min() > 0 and values.max() / values.min() > WIDE:
        x = log_axis("predicted", "predicted by the law", values)
        y = log_axis("observed", "observed", values, kind=alt.Y)
    else:
        style = {"scale": alt.Scale(zero=False, padding=12), "axis": alt.Axis(tickCount=6)}
        x = alt.X("predicted:Q", title="predicted by the law", **style)
        y = alt.Y("observed:Q", title="observed", **style)
    line = alt.Chart(ends).mark_line(color="#666", strokeWidth=1).encode(x=x, y=y)
    return with_title(line + row_points(rows, form, x, y), "Observed vs predicted")


def percent_residuals(rows: pd.DataFrame, form: Law) -> Chart:
    """Residuals in percent of the prediction vs compute, or vs the first input of the law if compute is unknown."""
    shown = rows.assign(percent=100 * (rows["observed"] / rows["predicted"] - 1))
    along = "C" if "C" in rows else form.inputs[0]
    title = "training compute C (FLOPs)" if along == "C" else along
    at = np.array(rows[along], dtype=float)
    x = log_axis(along, title, at) if at.min() > 0 else alt.X(f"{along}:Q", title=title)
    y = alt.Y("percent:Q", title="observed minus predicted (%)")
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#666").encode(y="y:Q")
    return with_title(zero + row_points(shown, form, x, y), "Residuals")


def row_points(rows: pd.DataFrame, form: Law, x: Chart, y: Chart) -> Chart:
    """Draws a point for each row, colored by the first input of the law if it varies; the tooltip shows the row."""
    first = form.inputs[0]
    tip = ["row:N", *(alt.Tooltip(f"{n}:Q", format=".4~s") for n in form.inputs), "observed:Q", "predicted:Q"]
    chart = alt.Chart(rows).mark_point(filled=True, size=46, opacity=0.85)
    span = np.array(rows[first], dtype=float)
    if span.min() <= 0 or span.max() / span.min() < 1.01:
        return chart.encode(x=x, y=y, tooltip=tip)
    legend = alt.Legend(title=first, format=".2~s")
    color = alt.Color(f"{first}:Q", scale=alt.Scale(type="log", scheme="viridis"), legend=legend)
    return chart.encode(x=x, y=y, color=color, tooltip=tip)
