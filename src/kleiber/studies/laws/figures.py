"""Figures of a law: each function makes an altair chart from rows and the record of the law.

Model sizes have a sequential palette that stays readable in gray, and are labeled at the end of their line, or in a
legend where lines cross. Every interval is drawn; lines are dashed outside the range of the rows.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.intervals import estimates
from kleiber.charts.scatter import scatter
from kleiber.charts.series import Marks, end_names, lines
from kleiber.charts.theme import (
    Chart,
    count_tip,
    format_count,
    kind_color,
    log_axis,
    loss_axis,
    pointed,
    size_color,
    tick_text,
)
from kleiber.studies.laws.backtest import NAIVE_LABELS
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.prediction import decades_outside, fitted_values, widen_interval
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.types import Row

APPROACHES = {"1": "envelope of training curves", "2": "minima of IsoFLOP curves", "3": "fitted law"}
BEYOND = 4.0  # the frontier is drawn up to this multiple of the largest run's compute
WIDE = 20.0  # an axis is logarithmic if its largest value exceeds its smallest by more than this factor
TIP = ["run:N", "stage:N", "seed:O", "size:N", alt.Tooltip("loss:Q", format=".4f")]
COMPUTE = "training compute 6 N D (FLOPs)"
LAW = {"color": "black", "line": 2.0, "band": 0.15}  # how the law itself is drawn


def with_sizes(rows: pd.DataFrame, record: Row) -> pd.DataFrame:
    """Returns the rows with the label of their size, and whether they lie below the fitted range of tokens."""
    early = rows["D"] < 0.999 * record["domain"]["D"][0]
    return rows.assign(size=[format_count(n) for n in rows["N"]], early=early).sort_values("N", kind="stable")


def ladder(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Validation loss vs training tokens, with the law's curve for each model size; hollow points were not fitted."""
    shown = with_sizes(rows, record)
    tokens = np.geomspace(rows["D"].min(), rows["D"].max(), 60)
    grid = pd.DataFrame([{"N": n, "D": D} for n in sorted(rows["N"].unique()) for D in tokens])
    curves = with_sizes(grid, record).assign(loss=curve(law, record, N=grid["N"].to_numpy(), D=grid["D"].to_numpy()))
    tables = [
        Marks(rows=curves, value="loss", line=1.7, dashed="early"),
        Marks(rows=shown, value="loss", points=42, hollow="early", tips=[*TIP, count_tip("D")]),
        end_names(curves, "size", "D", "loss"),
    ]
    x = log_axis("D", "training tokens D", np.array(rows["D"]), every=2, room=1.5)
    note = "points: runs; lines: the fitted law; numbers at the lines: parameters N"
    note += "; hollow points and dashed lines: too few tokens, not fitted" * bool(shown["early"].to_numpy().any())
    color, heading = size_color(list(dict.fromkeys(curves["size"]))), "Validation loss vs training tokens"
    return lines(tables, x, loss_axis(losses=[*shown["loss"], *curves["loss"]]), heading, color=color, subtitle=note)


def frontier(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Returns a chart of validation loss vs compute 6 N D.

    It shows the runs, the law's curve for each size, and the minimum of the law over sizes with its interval.
    """
    shown = with_sizes(rows.assign(C=6 * rows["N"] * rows["D"]), record)  # the convention of the allocation
    shown = pd.DataFrame(shown[~shown["early"]])
    budgets = np.geomspace(shown["C"].min(), BEYOND * shown["C"].max(), 60)
    best = optimum(law, record, budgets).assign(beyond=budgets > shown["C"].max())
    tables = [
        Marks(rows=size_curves(shown, law, record), value="loss", line=1.0),
        Marks(rows=best, value="loss", dashed="beyond", **LAW),
        Marks(rows=shown, value="loss", points=46, shape=size_shape(shown), tips=[*TIP, count_tip("C", "6 N D")]),
    ]
    x = log_axis("C", COMPUTE, budgets)
    color = size_color(list(dict.fromkeys(shown["size"])), alt.Legend())
    subtitle = (
        "points: runs; thin lines: the fitted law at each size; black: the lowest loss of the law at this compute, "
        f"over all sizes, with its {percent(record['level'])} interval; dashed: beyond the largest run"
    )
    losses = [*shown["loss"], *(best["lo"] if "lo" in best else best["loss"])]
    axis = loss_axis(losses=losses)
    return lines(tables, x, axis, "Validation loss vs training compute", color=color, subtitle=subtitle)


def size_shape(rows: pd.DataFrame) -> alt.Shape:
    """Returns shapes of model sizes, in the legend of their colors."""
    sizes = list(dict.fromkeys(rows["size"]))
    return alt.Shape("size:N", title="parameters N", sort=sizes, scale=alt.Scale(domain=sizes))


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
    """Residuals of runs in percent of the loss vs compute 6 N D; a pattern means that the law does not fit.

    They are those of the law as it was fitted, as are the slopes in the subtitle.
    """
    shown = with_sizes(rows.assign(C=6 * rows["N"] * rows["D"]), record)
    sizes, shown = list(dict.fromkeys(shown["size"])), pd.DataFrame(shown[~shown["early"]])
    predicted = curve(law, record, N=np.array(shown["N"]), D=np.array(shown["D"]))
    shown = shown.assign(percent=100 * np.log(np.array(shown["loss"]) / predicted))
    tips = [*TIP, alt.Tooltip("percent:Q", format="+.2f")]
    tables = [
        Marks(
            rows=shown.groupby(["size", "C"], as_index=False, sort=False)["percent"].mean(), value="percent", line=2.2
        ),
        Marks(rows=shown, value="percent", points=40, opacity=0.7, shape=size_shape(shown), tips=tips),
    ]
    x, y = log_axis("C", COMPUTE, shown["C"]), alt.Y("percent:Q", title="observed minus predicted loss (%)")
    subtitle = f"points: runs; lines: means of each size; dashed: the fitted law; {misfit_text(record)}"
    color = size_color(sizes, alt.Legend())
    return lines(tables, x, y, "Misfit of the law vs training compute", color=color, reference=0.0, subtitle=subtitle)


def misfit_text(record: Row) -> str:
    """Returns how the residuals of trunks change over tokens if a law misfits beyond noise, or ""."""
    misfit = record.get("lack_of_fit")
    if not misfit or not misfit["found"] or not misfit["slopes"]:
        return ""
    sizes = [misfit["slopes"][at] for at in (0, -1)]
    ends = [f"{row['slope']:+.2%} ({format_count(row['N'])})".replace("-", "\N{MINUS SIGN}") for row in sizes]
    p_value = np.format_float_positional(
        min(stratum["p_value"] for stratum in misfit["strata"]), precision=1, fractional=False, trim="-"
    )
    slopes = f"with every doubling of tokens it changes by {ends[0]} and {ends[1]}"
    return f"the misfit is larger than the noise of seeds explains, p = {p_value}; {slopes}"


def exponents(record: Row) -> Chart:
    """The allocation exponent a of N_opt ~ C^a, by approach and counting convention."""
    kinds = list(dict.fromkeys(approach_label(exponent["approach"]) for exponent in record["approaches"]))
    rows = [
        {"name": "", **exponent, "series": approach_label(exponent["approach"]), "value": exponent["a"]}
        for exponent in record["accounting"] or record["approaches"]
        if approach_label(exponent["approach"]) in kinds
    ]
    rows = [{**row, "name": row.get("convention", "")} for row in rows]
    counting = ", by how parameters N and compute C are counted" if record["accounting"] else ""
    color, shape = approach_marks(kinds, "series")
    return estimates(
        rows, kinds, "exponent a: the best size grows as C to the power a", "How fast the best size grows with compute",
        subtitle=f"{percent(record['level'])} intervals{counting}", dodge=True, color=color, shape=shape, format=".3f",
        step=max(26 * len(kinds), 80 // len({row["name"] for row in rows})),
    )  # fmt: skip


def allocation(record: Row) -> Chart:
    """Compute-optimal parameters vs compute: the law with its interval, and the points of the other approaches."""
    columns = ["approach", "C", "N", "lo", "hi"]
    rows = pd.DataFrame(record["allocation"], columns=None if record["allocation"] else ["C", "N", "N_lo", "N_hi"])
    rows = rows.assign(beyond=rows["C"] > 1.001 * record["domain"]["C"][1])
    marks = pd.DataFrame(
        [
            {**point, "approach": approach_label(entry["approach"])}
            for entry in record["approaches"]
            for point in entry["points"]
        ],
        columns=pd.Index(columns),
    )
    sizes = [
        frame[name].dropna() for frame in (rows, marks) for name in ("N", "N_lo", "N_hi", "lo", "hi") if name in frame
    ]
    x = log_axis("C", "training compute C (FLOPs)", [*rows["C"], *marks["C"]])
    y = log_axis("N", "compute-optimal parameters N", pd.concat(sizes).to_numpy(dtype=float), kind=alt.Y)
    color, shape = approach_marks(sorted(marks["approach"].unique()))
    tips = ["approach:N", count_tip("C"), count_tip("N")]
    tables = [
        Marks(rows=rows, value="N", ends=("N_lo", "N_hi"), dashed="beyond", **LAW),
        Marks(rows=marks, value="N", bars=0.35, points=60, color=color, shape=shape, tips=tips),
    ]
    subtitle = f"line and band: the fitted law (C = 6 N D), {percent(record['level'])} interval"
    drawn = [table for table in tables if len(table.rows)]
    return lines(drawn, x, y, "Compute-optimal model size vs training compute", subtitle=subtitle)


def approach_label(name: str) -> str:
    """Returns what figures call an approach to the allocation, by the number that its name begins with."""
    return APPROACHES[name[0]]


def approach_marks(names: list[str], column: str = "approach") -> tuple[alt.Color, alt.Shape]:
    """Returns the colors and shapes of approaches to the allocation.

    The parametric approach is black as the fitted law is.
    """
    order = [APPROACHES[number] for number in "312"]
    shapes = [("circle", "square", "triangle-up")[order.index(name)] for name in names]
    scale = alt.Scale(domain=list(names), range=shapes)
    shape = alt.Shape(f"{column}:N", title=None, sort=list(names), scale=scale)
    return kind_color(names, column, alt.Legend(), order), shape


def backtests(record: Row) -> Chart:
    """Error of the law and the naive predictors above each cut in compute, or in size."""
    axis = {"C": "training compute at the cut (FLOPs)", "N": "parameters N at the cut"}[record["backtests"][0]["along"]]
    rows = pd.DataFrame([
        {"cut": tick_text(float(f"{test['cut']:.2g}")), "who": NAIVE_LABELS.get(who, who), "error": 100 * error}
        for test in sorted(record["backtests"], key=lambda test: test["cut"])
        for who, error in {"law": test["mare"], **test["naive"]}.items()
    ])  # fmt: skip
    who = list(dict.fromkeys(rows["who"]))  # the law first, in black
    if len(set(rows["cut"])) == 1:
        dots = [{"series": row["who"], "value": row["error"], "better": "lower"} for row in rows.to_dict("records")]
        title = f"Errors on the runs above {axis.partition(' at')[0]} {rows['cut'].iloc[0]}, fitted to those below"
        no_ends = [{**dot, "lo": None, "hi": None} for dot in dots]
        return estimates(no_ends, who, "mean absolute error (%)", title, zero=True, step=34, format=".2f")
    shape, tips = (
        alt.Shape("who:N", title=None, scale=alt.Scale(domain=who)),
        ["who:N", "cut:N", alt.Tooltip("error:Q", format=".2f")],
    )
    table = Marks(rows=rows, value="error", line=1.6, style={"opacity": 0.4}, points=80, shape=shape, tips=tips)
    x = alt.X("cut:N", title=axis, sort=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("error:Q", title=pointed("mean absolute error (%)", "lower"), scale=alt.Scale(zero=True))
    subtitle, color = "fitted to the runs below each cut, tested on those above", kind_color(who, "who", alt.Legend())
    return lines([table], x, y, "Errors of predictions for larger runs", color=color, height=220, subtitle=subtitle)


def profile(record: Row, name: str = "E") -> Chart:
    """Profile likelihood of a parameter: how much worse the fit is with the parameter fixed at other values.

    If the curve stays below the threshold, the parameter is not identified.
    """
    profiled, level = record["profiles"][name], percent(record["level"])
    pairs = zip(profiled["values"], profiled["statistic"], strict=True)
    limit = 4 * profiled["threshold"]
    shown = [(value, statistic) for value, statistic in pairs if statistic is not None and statistic <= limit]
    top = 1.1 * max(profiled["threshold"], *(statistic for _, statistic in shown))
    rows = pd.DataFrame(shown, columns=pd.Index(["value", "statistic"]))
    scale = alt.Scale(zero=False, nice=False, padding=14)
    x = alt.X("value:Q", title=f"irreducible loss {name} (nats per token)", scale=scale, axis=alt.Axis(tickCount=7))
    y = alt.Y("statistic:Q", title="misfit if fixed (F statistic)", scale=alt.Scale(domain=[0, top], clamp=True))
    reason = f"below the dashed line: values that fit the runs about as well as the best ({level})"
    table = Marks(rows=rows, value="statistic", line=2, points=30, color="black")
    heading = f"Which values of {name} the runs allow"
    return lines([table], x, y, heading, reference=profiled["threshold"], height=220, subtitle=reason)


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


def fitted(rows: pd.DataFrame, form: Law) -> Chart:
    """Observed vs predicted target of each row; exact predictions lie on the diagonal."""
    values = rows[["observed", "predicted"]].to_numpy(dtype=float)
    if values.min() > 0 and values.max() / values.min() > WIDE:
        x = log_axis("predicted", "predicted by the law", values)
        y = log_axis("observed", "observed", values, kind=alt.Y)
    else:
        style = {"scale": alt.Scale(zero=False, padding=12), "axis": alt.Axis(tickCount=6)}
        x = alt.X("predicted:Q", title="predicted by the law", **style)
        y = alt.Y("observed:Q", title="observed", **style)
    return scatter([row_points(rows, form, "observed")], x, y, "Observed vs predicted", equality=True)


def percent_residuals(rows: pd.DataFrame, form: Law) -> Chart:
    """Residuals in percent of the prediction vs compute, or vs the first input of the law if compute is unknown."""
    shown = rows.assign(percent=100 * (rows["observed"] / rows["predicted"] - 1))
    along = "C" if "C" in rows else form.inputs[0]
    title = "training compute C (FLOPs)" if along == "C" else along
    at = np.array(rows[along], dtype=float)
    x = log_axis(along, title, at) if at.min() > 0 else alt.X(f"{along}:Q", title=title)
    y = alt.Y("percent:Q", title="observed minus predicted (%)")
    return scatter([row_points(shown, form, "percent")], x, y, "Residuals", references=(None, 0.0))


def row_points(rows: pd.DataFrame, form: Law, value: str) -> Marks:
    """Returns a point for each row, colored by the first input of the law if it varies; the tooltip shows the row."""
    first = form.inputs[0]
    tips = ["row:N", *(alt.Tooltip(f"{n}:Q", format=".4~s") for n in form.inputs), "observed:Q", "predicted:Q"]
    span, color = np.array(rows[first], dtype=float), None
    if span.min() > 0 and span.max() / span.min() >= 1.01:
        scale, legend = alt.Scale(type="log", scheme="viridis"), alt.Legend(title=first, format=".2~s")
        color = alt.Color(f"{first}:Q", scale=scale, legend=legend)
    return Marks(rows=rows, value=value, points=46, opacity=0.85, color=color, tips=tips)
