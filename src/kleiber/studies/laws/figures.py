"""Figures of a law: each function makes an altair chart from rows and the record of the law.

Model sizes have a sequential palette that stays readable in gray, and are labeled at the end of their line, or in a
legend where lines cross. Every interval is drawn; lines are dashed outside the range of the rows.
"""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.intervals import estimates
from kleiber.charts.scatter import scatter
from kleiber.charts.series import Marks, end_names, lines, set_apart
from kleiber.charts.theme import (
    Chart,
    Rows,
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
ROOM = 1.4  # the curve of a size goes on by this factor on both sides of its runs
NEAR = 1.1  # the same factor where curves over tokens stay close to the runs, and are seen at sizes of one run
WIDE = 20.0  # an axis is logarithmic if its largest value exceeds its smallest by more than this factor
SHOWN = 2.0  # a profile is drawn up to this multiple of its threshold
TIP = ["run:N", "stage:N", "seed:O", "size:N", alt.Tooltip("loss:Q", format=".4f")]
COMPUTE = "training compute: 6 \N{MULTIPLICATION SIGN} parameters \N{MULTIPLICATION SIGN} tokens (FLOPs)"
CONVENTIONS = {  # what figures call the conventions of `allocation_table`
    "6ND": "C = 6 N D",
    "6ND without embeddings": "C = 6 N D, N without embeddings",
    "exact FLOPs": "C = exact FLOPs",
    "N = exact FLOPs / 6D": "N = C / (6 D), C = exact FLOPs",
    "exact FLOPs, N without embeddings": "C = exact FLOPs, N without embeddings",
}
EQUAL = "dashed: measured = predicted"
LAW = {"color": "black", "line": 2.0, "band": 0.15}  # how the law itself is drawn


def with_sizes(rows: pd.DataFrame, record: Row) -> pd.DataFrame:
    """Returns the rows with the label of their size, and whether they lie below the fitted range of tokens."""
    early = rows["D"] < 0.999 * record["domain"]["D"][0]
    return rows.assign(size=[format_count(n) for n in rows["N"]], early=early).sort_values("N", kind="stable")


def ladder(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Validation loss vs training tokens, with the law's curve for each model size over its runs.

    Hollow points were not fitted.
    """
    shown = with_sizes(rows, record)
    curves = with_sizes(size_curves(rows, law, record, NEAR), record)
    curves = curves.assign(early=NEAR * curves["D"] < 0.999 * record["domain"]["D"][0])
    ends: Rows = rows.groupby("N")["D"].max()
    together = ends.nunique() == 1  # other names would lie across lines
    names = [end_names(curves, "size", "D", "loss")] if together else []
    points = Marks(rows=shown, value="loss", points=42, hollow="early", tips=[*TIP, count_tip("D")])
    points = points if together else replace(points, shape=size_shape(shown))
    tables = [Marks(rows=curves, value="loss", line=1.7, dashed="early"), points, *names]
    x = log_axis("D", "training tokens", np.array(rows["D"]), room=1.8 if together else 1.15)
    note = "points: runs; lines: the law fitted to them" + "; number at each line: parameters" * together
    note += "; hollow points and dashed lines: too few tokens, not fitted" * bool(shown["early"].to_numpy().any())
    legend, heading = None if together else alt.Legend(), "Validation loss vs training tokens"
    color = size_color(list(dict.fromkeys(curves["size"])), legend)
    return lines(tables, x, loss_axis(losses=[*shown["loss"], *curves["loss"]]), heading, color=color, subtitle=note)


def frontier(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Returns a chart of validation loss vs compute 6 N D.

    It shows the runs, the law's curve for each size, and the minimum of the law over sizes with its interval.
    """
    shown = with_sizes(rows.assign(C=6 * rows["N"] * rows["D"]), record)  # the convention of the allocation
    shown = pd.DataFrame(shown[~shown["early"]])
    compute: Rows = shown["C"]
    least, most = float(compute.min()), float(compute.max())
    budgets = np.unique([*np.geomspace(least, most, 40), *np.geomspace(most, BEYOND * most, 20)])
    best = optimum(law, record, budgets).assign(beyond=budgets > 1.001 * most)
    tips, curves = [*TIP, count_tip("C", "6 N D")], size_curves(shown, law, record)
    tables = [
        Marks(rows=best, value="loss", dashed="beyond", **{**LAW, "line": 3.5}),
        Marks(rows=curves, value="loss", line=1.3),
        Marks(rows=shown, value="loss", points=36, shape=size_shape(shown), tips=tips),
    ]
    x = log_axis("C", COMPUTE, [*budgets, *curves["C"]])
    color = size_color(list(dict.fromkeys(shown["size"])), alt.Legend())
    band = f"band: {percent(record['level'])} interval; " * ("lo" in best)
    subtitle = (
        "points: runs; thin lines: the law fitted to them, at each size; black: its lowest loss over sizes; "
        f"{band}dashed: beyond the largest run"
    )
    losses = [*shown["loss"], *curves["loss"], *(best["lo"] if "lo" in best else best["loss"])]
    axis = loss_axis(losses=losses)
    return lines(tables, x, axis, "Validation loss vs training compute", color=color, subtitle=subtitle)


def size_shape(rows: pd.DataFrame) -> alt.Shape:
    """Returns shapes of model sizes, in the legend of their colors."""
    sizes = list(dict.fromkeys(rows["size"]))
    return alt.Shape("size:N", title="parameters", sort=sizes, scale=alt.Scale(domain=sizes))


def size_curves(rows: pd.DataFrame, law: Law, record: Row, room: float = ROOM) -> pd.DataFrame:
    """Returns the law's curve for each size a little beyond the range of its tokens: columns N, D, C, loss, size."""
    parts = []
    for n in sorted(rows["N"].unique().tolist()):
        of_size = rows[rows["N"] == n]
        tokens = np.geomspace(of_size["D"].min() / room, of_size["D"].max() * room, 30)
        loss = curve(law, record, N=np.full(30, n), D=tokens)
        parts.append(pd.DataFrame({"N": n, "D": tokens, "C": 6 * n * tokens, "loss": loss, "size": format_count(n)}))
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
    means = pd.DataFrame(shown.groupby(["size", "C"], as_index=False, sort=False)["percent"].mean())
    tables = [
        Marks(rows=means, value="percent", line=2.2),
        Marks(rows=shown, value="percent", points=30, opacity=0.4, shape=size_shape(shown), tips=tips),
        end_names(means, "size", "C", "percent"),
    ]
    x, y = log_axis("C", COMPUTE, shown["C"], room=1.8), alt.Y("percent:Q", title="observed minus predicted loss (%)")
    several = len(shown) > len(means)
    runs = "points: runs; lines: means of each size" if several else "points: one run each; lines join those of a size"
    notes = ["predicted: by the law fitted to these runs", f"{runs}, named at their ends", misfit_text(record)]
    subtitle, color = "; ".join(filter(None, notes)), size_color(sizes, alt.Legend())
    return lines(
        tables, x, y, "Observed minus predicted loss vs training compute", color=color, reference=0.0, subtitle=subtitle
    )


def misfit_text(record: Row) -> str:
    """Returns how the residuals of trunks change over tokens if a law misfits beyond noise, or ""."""
    misfit = record.get("lack_of_fit")
    if not misfit or not misfit["found"] or not misfit["slopes"]:
        return ""
    sizes = [misfit["slopes"][at] for at in (0, -1)]
    ends = [f"{row['slope']:+.2%} at {format_count(row['N'])}".replace("-", "\N{MINUS SIGN}") for row in sizes]
    p_value = min(stratum["p_value"] for stratum in misfit["strata"])
    p_text = f"{p_value:.2g}" if p_value >= 1e-3 else f"{p_value:.0e}".replace("e-0", "e-")
    return f"with twice the tokens: {ends[0]} and {ends[1]} parameters (p = {p_text})"


def exponents(record: Row) -> Chart:
    """The allocation exponent a of N_opt ~ C^a, by approach and counting convention."""
    kinds = list(dict.fromkeys(approach_label(exponent["approach"]) for exponent in record["approaches"]))
    rows = [
        {"name": "", **exponent, "series": approach_label(exponent["approach"]), "value": exponent["a"]}
        for exponent in record["accounting"] or record["approaches"]
        if approach_label(exponent["approach"]) in kinds
    ]
    rows = [{**row, "name": CONVENTIONS.get(row.get("convention", ""), "")} for row in rows]
    notes = ["" if kinds[1:] else kinds[0], f"{percent(record['level'])} intervals"]
    if record["accounting"]:
        notes += ["rows count N and C in different ways"]
        notes += ["no marker: too few points"] * (len(rows) < len(kinds) * len({row["name"] for row in rows}))
        notes += ["the exponent of the law changes with N, not with C"]
    color, shape = approach_marks(kinds, "series", legend=bool(kinds[1:]))
    return estimates(
        rows, kinds, "exponent a: the best size grows as C to the power a", "How fast the best size grows with compute",
        subtitle="; ".join(filter(None, notes)), dodge=True, color=color, shape=shape, format=".3f",
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
    y = log_axis("N", "compute-optimal parameters", pd.concat(sizes).to_numpy(dtype=float), kind=alt.Y)
    color, shape = approach_marks(sorted(marks["approach"].unique()))
    tips = ["approach:N", count_tip("C"), count_tip("N")]
    tables = [
        Marks(rows=rows, value="N", ends=("N_lo", "N_hi"), dashed="beyond", **LAW),
        Marks(rows=marks, value="N", bars=0.35, points=60, color=color, shape=shape, tips=tips),
    ]
    subtitle = f"line and band: the fitted law (C = 6 N D) with its {percent(record['level'])} interval"
    subtitle += "; dashed: beyond the largest run" * bool(rows["beyond"].any())
    subtitle += f"; bars: {percent(record['level'])} intervals" * bool(marks["lo"].notna().any())
    on_envelope = marks.loc[marks["approach"] == APPROACHES["1"], "N"]
    subtitle += "; the envelope has trained sizes only" * bool(on_envelope.duplicated().any())
    drawn = [table for table in tables if len(table.rows)]
    return lines(drawn, x, y, "Compute-optimal model size vs training compute", subtitle=subtitle)


def approach_label(name: str) -> str:
    """Returns what figures call an approach to the allocation, by the number that its name begins with."""
    return APPROACHES[name[0]]


def approach_marks(names: list[str], column: str = "approach", legend: bool = True) -> tuple[alt.Color, alt.Shape]:
    """Returns the colors and shapes of approaches to the allocation.

    The parametric approach is black as the fitted law is.
    """
    order = [APPROACHES[number] for number in "312"]
    shapes = [("circle", "square", "triangle-up")[order.index(name)] for name in names]
    scale = alt.Scale(domain=list(names), range=shapes)
    key = alt.Undefined if legend else None
    shape = alt.Shape(f"{column}:N", title=None, sort=list(names), scale=scale, legend=key)
    return kind_color(names, column, alt.Legend() if legend else None, order), shape


def backtests(record: Row) -> Chart:
    """Error of the law and the naive predictors above each cut in compute, or in size."""
    tests = sorted(record["backtests"], key=lambda test: test["cut"])
    cut, unit = {"C": ("training compute", " FLOPs"), "N": ("parameters N", "")}[tests[0]["along"]]
    rows: Rows = pd.DataFrame([
        {"cut": test["cut"], "who": NAIVE_LABELS.get(who, who), "error": 100 * error}
        for test in tests
        for who, error in {"fitted law": test["mare"], **test["naive"]}.items()
    ])  # fmt: skip
    who, better = list(dict.fromkeys(rows["who"])), "lower"  # the law first, in black
    if len(tests) == 1:
        least = tick_text(float(f"{tests[0]['cut']:.2g}"))
        dots = [
            {"series": row["who"], "value": row["error"], "lo": None, "hi": None, "better": better}
            for row in rows.to_dict("records")
        ]
        return estimates(
            dots, who, "mean absolute error (%)", f"Errors of predictions for runs above {least}{unit}", step=34,
            format=".2f", by_effect=True, subtitle=f"each fitted to the runs of less {cut}",
            domain=[0, 1.1 * rows["error"].max()],
        )  # fmt: skip
    shape = alt.Shape("who:N", title=None, scale=alt.Scale(domain=who))
    tips = ["who:N", count_tip("cut"), alt.Tooltip("error:Q", format=".2f")]
    apart = (tests[-1]["cut"] / tests[0]["cut"]) ** 0.02
    rows = set_apart(rows.assign(at=rows["cut"]), "at", "who", who, apart)
    table = Marks(rows=rows, value="error", line=1.6, style={"opacity": 0.4}, points=70, shape=shape, tips=tips)
    x = log_axis("at", f"{cut} at the cut{unit and f' ({unit.strip()})'}", rows["cut"])
    scale = alt.Scale(domain=[0, 1.1 * rows["error"].max()], nice=False)
    y = alt.Y("error:Q", title=pointed("mean absolute error (%)", better), scale=scale, axis=alt.Axis(tickCount=6))
    subtitle, color = "fitted to the runs below each cut, tested on those above", kind_color(who, "who", alt.Legend())
    return lines([table], x, y, "Errors of predictions for larger runs", color=color, height=220, subtitle=subtitle)


def profile(record: Row, name: str = "E") -> Chart:
    """Profile likelihood of a parameter: how much worse the fit is with the parameter fixed at other values.

    The vertical axis shows square roots, between which `uncertainty` interpolates. If the curve stays below the
    threshold, the parameter is not identified.
    """
    profiled = record["profiles"][name]
    values, roots = (
        np.array([pair[at] for pair in zip(profiled["values"], profiled["statistic"], strict=True) if None not in pair])
        for at in (0, 1)
    )
    roots, threshold = np.sqrt(roots), float(np.sqrt(profiled["threshold"]))
    grid = np.unique(np.concatenate([values, np.geomspace(values[0], values[-1], 4000)]))
    along = np.interp(np.log(grid), np.log(values), roots)
    allowed, top = grid[along <= threshold], SHOWN * threshold
    inside = slice(max(0, np.argmax(along <= top) - 1), len(along) - np.argmax(along[::-1] <= top) + 1)
    curves = pd.DataFrame({"value": grid, "statistic": along})[inside]
    points = pd.DataFrame({"value": values, "statistic": roots})
    shown, height = points[points["statistic"] <= top], alt.Scale(domain=[0, top], nice=False)
    ends = [f"{allowed[0]:.3g}" if along[0] > threshold else "0", f"{allowed[-1]:.3g}"]
    span = f"from {ends[0]} to {ends[1]}" if along[-1] > threshold else f"above {ends[0]}"
    span = f"up to {ends[1]}, without a lower bound" if along[0] <= threshold < along[-1] else span
    scale = alt.Scale(zero=False, nice=False, padding=14)
    x = alt.X("value:Q", title=f"irreducible loss {name} (nats per token)", scale=scale, axis=alt.Axis(tickCount=7))
    rise = f"rise of the misfit with {name} fixed (√F)"
    y = alt.Y("statistic:Q", title=rise, scale=height, axis=alt.Axis(tickCount=6))
    reason = f"below the dashed line: about as good a fit as the best ({percent(record['level'])}), at {name} {span}"
    tables = [
        Marks(rows=curves, value="statistic", line=2, color="black"),
        Marks(rows=shown, value="statistic", points=30, color="black"),
    ]
    title = f"Which values of the irreducible loss {name} the runs allow"
    subtitle = f"{reason}; points: refits; F: rise of the squared residuals, relative to their variance"
    return lines(tables, x, y, title, reference=threshold, height=220, subtitle=subtitle)


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
    return scatter([row_points(rows, form, "observed")], x, y, "Observed vs predicted", equality=True, subtitle=EQUAL)


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
