"""Altair figures of the studies of forgetting: retention methods, expert loads, task sequences and the law.

A method has the same color and shape in every figure. Intervals are drawn where they exist.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import PALETTE, apply_theme, format_count, with_title
from kleiber.studies.compare.decision import interval
from kleiber.studies.compare.rows import PLAIN, Rows
from kleiber.studies.compare.task_rows import LABELS, LOWER, tasks_in_order
from kleiber.studies.forgetting_metrics import KINDS
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.figures import curve
from kleiber.types import Json, Row

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#7b4173", "#31a354")


def methods_of(points: pd.DataFrame) -> list[str]:
    """Plain fine-tuning first, where it is among them, the others by name: the order of colors."""
    names = set(points["method"])
    return [*({PLAIN} & names), *sorted(names - {PLAIN})]


def colors(names: list[str], shown: list[str]) -> list[str]:
    """The colors of some methods, as they are among all."""
    return [("#000000", *COLORS)[names.index(name) % (1 + len(COLORS))] for name in shown]


def palette(names: list[str]) -> Json:
    """The colors and shapes of the methods, the same in every figure."""
    scale = alt.Scale(domain=names, range=colors(names, names))
    return {
        "color": alt.Color("method:N", title=None, scale=scale),
        "shape": alt.Shape("method:N", title=None, scale=alt.Scale(domain=names)),
    }


def pareto(points: pd.DataFrame, at: float) -> alt.TopLevelMixin:
    """F against target loss, a point a setting with its seeds' sd, a line through each method's best; the rule is where
    methods are compared. The axis ends where settings learn far too little."""
    least, most = float(pd.Series(points["target"]).min()), float(pd.Series(points["target"]).max())
    reach = min(at + 6 * max(at - least, 0.01 * at), max(at, most) + 0.03 * (max(at, most) - least))
    shown = points.assign(low=points["F"] - points["F_sd"].fillna(0), high=points["F"] + points["F_sd"].fillna(0))
    inside = pd.DataFrame(shown[shown["target"] <= reach])
    lowest, highest = float(pd.Series(inside["low"]).min()), float(pd.Series(inside["high"]).max())
    dress, title = palette(methods_of(points)), "forgetting F (nats per token)"
    edge, rim = 0.03 * (reach - least), 0.05 * (highest - lowest or 1.0)
    across = alt.Scale(domain=[least - edge, reach], nice=False)
    up = alt.Scale(domain=[lowest - rim, highest + rim], nice=False)
    x = alt.X("target:Q", title="target loss (nats per token)", scale=across, axis=alt.Axis(tickCount=6))
    y, low = (alt.Y(f"{name}:Q", title=title, scale=up) for name in ("F", "low"))
    numbers = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tip = ["method:N", "setting:N", "lr:Q", "n:Q", *numbers]
    base, best = alt.Chart(shown), alt.Chart(shown[shown["best"]])
    marks = base.mark_point(size=46, filled=True, opacity=0.85, clip=True).encode(x=x, y=y, tooltip=tip, **dress)
    bars = base.mark_rule(opacity=0.5, clip=True).encode(x=x, y=low, y2="high:Q", color=dress["color"])
    line = best.mark_line(strokeWidth=1.2, opacity=0.7, clip=True)
    lines = line.encode(x=x, y=y, color=dress["color"], order="target:Q")
    rule = alt.Chart(pd.DataFrame({"target": [at]})).mark_rule(strokeDash=[5, 4], color="#888").encode(x=x)
    return with_title(rule + bars + lines + marks, "Forgetting vs target loss")


def matched(record: Json) -> alt.TopLevelMixin:
    """F of every method that reaches the common target loss, with intervals."""
    shown = pd.DataFrame([row for row in record["matched"] if row["reached"]]).replace([np.inf, -np.inf], np.nan)
    y = alt.Y("method:N", title=None, sort=list(shown["method"]))
    scale = alt.Scale(zero=False, padding=12)
    title = f"forgetting F at target loss {record['matched_target']:.4f} (nats per token)"
    layers = []
    if bool(shown["lo"].notna().all()):
        bars = alt.Chart(shown).mark_rule(strokeWidth=2)
        layers.append(bars.encode(y=y, x=alt.X("lo:Q", title=title, scale=scale), x2="hi:Q"))
    dots = alt.Chart(shown).mark_point(filled=True, size=60, color="black")
    tip = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "lo", "hi")]
    layers.append(dots.encode(y=y, x=alt.X("F:Q", title=title, scale=scale), tooltip=tip))
    chart = alt.layer(*layers)
    return with_title(chart, f"At equal target loss, {record['level']:.0%} intervals", height=24 * len(shown) + 30)


def trajectory(paths: pd.DataFrame, names: list[str]) -> alt.TopLevelMixin:
    """F by optimizer step, the mean of seeds, each method at its chosen setting; the axis starts at step 1."""
    shown = [name for name in names if name in set(paths["method"])]
    means = paths[paths["step"] > 0].groupby(["method", "step"], as_index=False)["F"].mean()
    axis = alt.Axis(tickCount=6, format="~s")
    x = alt.X("step:Q", title="optimizer step", scale=alt.Scale(type="log", nice=False), axis=axis)
    y = alt.Y("F:Q", title="forgetting F (nats per token)")
    tip = ["method:N", "step:Q", alt.Tooltip("F:Q", format=".4f")]
    chart = alt.Chart(means).mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.5)
    color = alt.Color("method:N", title=None, scale=alt.Scale(domain=shown, range=colors(names, shown)))
    return with_title(chart.encode(x=x, y=y, color=color, tooltip=tip), "Forgetting vs optimizer step")


def heat(scores: pd.DataFrame) -> alt.TopLevelMixin:
    """Every task's loss before (the base) and after each method, as its change in nats, the value written in."""
    x = alt.X("task:N", title=None, axis=alt.Axis(labelAngle=0))
    y = alt.Y("method:N", title=None, sort=list(dict.fromkeys(scores["method"])))
    limit = float(pd.Series(scores["change"]).abs().max()) or 1.0
    scale = alt.Scale(scheme="blueorange", domain=[-limit, limit])
    base = alt.Chart(scores)
    cells = base.mark_rect(stroke="white", strokeWidth=2).encode(
        x=x, y=y, color=alt.Color("change:Q", title="change (nats)", scale=scale)
    )
    dark = alt.condition(f"abs(datum.change) > {0.6 * limit}", alt.value("white"), alt.value("black"))
    text = base.mark_text(fontSize=11).encode(x=x, y=y, text=alt.Text("loss:Q", format=".3f"), color=dark)
    return with_title(cells + text, "Loss by task before and after (R)", height=26 * len(set(scores["method"])))


def loads(rows: Sequence[Row], names: list[str], level: float) -> alt.TopLevelMixin:
    """Total variation by layer, a panel for each text and distance, a color an arm; `names` are all arms in order."""
    shown = pd.DataFrame(rows)
    shown["panel"] = shown["text"].str.rpartition("/")[2] + " " + shown["distance"]
    shown["order"] = [list(KINDS.values()).index(distance) for distance in shown["distance"]]
    shown["row"] = [f"layer {layer}" for layer in shown["layer"]]
    arms = [name for name in names if name in set(shown["arm"])]
    y = alt.Y("arm:N", title=None, axis=None, sort=arms)
    most = float(shown[["total variation", "hi"]].max().max())
    scale = alt.Scale(domain=[0, min(1.0, 1.05 * most)], nice=False)
    fill = alt.Scale(domain=arms, range=colors(names, arms))
    color = alt.Color("arm:N", title=None, scale=fill, legend=alt.Legend(orient="bottom"))
    base = alt.Chart(shown).encode(y=y, color=color)
    axis = alt.Axis(tickCount=4)
    x = alt.X("total variation:Q", title="total variation", scale=scale, axis=axis)
    tip = ["arm:N", "text:N", "layer:O", alt.Tooltip("total variation:Q", format=".3f")]
    layers = [base.mark_point(filled=True, size=50, opacity=1).encode(x=x, tooltip=tip)]
    if bool(shown["lo"].notna().any()):
        ends = base.transform_calculate(low="max(0, datum.lo)", high="min(1, datum.hi)")
        low = alt.X("low:Q", title="total variation", scale=scale, axis=axis)
        layers.insert(0, ends.mark_rule(strokeWidth=1.6, clip=True).encode(x=low, x2="high:Q"))
    chart = alt.layer(*layers).properties(width=150, height=16 * len(arms) + 8)
    panels = list(dict.fromkeys(shown.sort_values(["order", "text"])["panel"]))
    grid = chart.facet(
        spacing={"column": 14, "row": 6},
        column=alt.Column("panel:N", header=alt.Header(title=None), sort=panels),
        row=alt.Row("row:N", header=alt.Header(title=None, labelAngle=0, labelAlign="left")),
    )
    return apply_theme(grid.properties(title=f"Change of expert loads by layer, {level:.0%} intervals"))


def bars(rows: Rows, metrics: Sequence[str], level: float, of: str) -> alt.TopLevelMixin:
    """A panel a metric: the mean of each method and its interval over orders and seeds."""
    names, entries = methods_of(rows), []
    for metric in metrics:
        for name in names:
            values = rows[rows["method"] == name][metric].dropna().tolist()
            if values:
                lo, hi = interval(values, level)
                arrow = "lower" if metric in LOWER else "higher"
                entry = {"panel": f"{LABELS[metric]} ({arrow} is better)", "method": name}
                entries.append({**entry, "mean": float(np.mean(values)), "lo": lo, "hi": hi})
    shown = pd.DataFrame(entries)
    panels = [panel(part, str(name), names) for name, part in shown.groupby("panel", sort=False)]
    lines = [alt.hconcat(*panels[i : i + 3], spacing=24) for i in range(0, len(panels), 3)]
    title = f"Metrics by method, {level:.0%} intervals{of}"
    return apply_theme(alt.vconcat(*lines, spacing=18).properties(title=title))


def panel(rows: Rows, title: str, names: list[str]) -> alt.LayerChart | alt.FacetChart:
    """One metric: the mean of each method with its interval."""
    y = alt.Y("method:N", title=None, sort=names, axis=alt.Axis(ticks=False))
    scale, axis = alt.Scale(zero=False, padding=8), alt.Axis(tickCount=3, labelOverlap=True)
    color = alt.Color("method:N", legend=None, scale=alt.Scale(domain=names, range=colors(names, names)))
    base = alt.Chart(rows).encode(y=y, color=color)
    tip = ["method:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("mean", "lo", "hi"))]
    x = alt.X("mean:Q", title=None, scale=scale, axis=axis)
    layers = [base.mark_point(filled=True, size=50, opacity=1).encode(x=x, tooltip=tip)]
    if bool(rows["lo"].notna().any()):
        layers.insert(0, base.mark_rule(strokeWidth=1.6).encode(x=alt.X("lo:Q", title=None, scale=scale), x2="hi:Q"))
    heading = alt.TitleParams(title, fontSize=11, fontWeight="normal")
    return alt.layer(*layers).properties(width=190, height=18 * len(names), title=heading)


def score_heatmap(rows: Rows, of: str) -> alt.TopLevelMixin:
    """R of each method, tasks by their place in the order, means over orders and seeds; color is the change since the
    task was learned, and none before."""
    limit = float(rows["change"].abs().max()) or 1.0
    x = alt.X("task:O", title="task in order", axis=alt.Axis(labelAngle=0))
    y = alt.Y("stage:O", title="after stage")
    fill = alt.Scale(scheme="redblue", domain=[-limit, limit])
    legend = alt.Legend(orient="right", gradientLength=120, titleLimit=200)
    color = alt.Color("change:Q", title="since learned", scale=fill, legend=legend)
    unknown = alt.condition("isValid(datum.change)", color, alt.value("white"))
    tip = ["method:N", "stage:O", "task:O", alt.Tooltip("score:Q", format=".4f")]
    base = alt.Chart().encode(x=x, y=y)
    cells = base.mark_rect(stroke="white", strokeWidth=2, invalid=None).encode(color=unknown, tooltip=tip)
    strong = alt.when(f"abs(datum.change) > {0.6 * limit}").then(alt.value("white"))
    dark = strong.when("isValid(datum.change)").then(alt.value("#222")).otherwise(alt.value("#999"))
    text = base.mark_text(fontSize=10).encode(text=alt.Text("score:Q", format=".3f"), color=dark)
    side = max(90, 42 * int(rows["task"].max()))
    chart = alt.layer(cells, text, data=rows).properties(width=side, height=22 * int(rows["stage"].max()))
    names = methods_of(rows)
    facet = alt.Facet("method:N", title=None, sort=names, header=alt.Header(labelFontWeight="bold"))
    grid = chart.facet(facet=facet, columns=max(1, min(len(names), 640 // side)), spacing=16)
    kind = rows["kind"].iloc[0]
    unit = "loss in nats" if kind == "loss" else kind
    return apply_theme(grid.properties(title=f"R: {unit} of each task after each stage, mean of orders and seeds{of}"))


def first_task(rows: Rows, of: str) -> alt.TopLevelMixin:
    """The score of the first task of each order from its own stage on, mean of orders and seeds."""
    kind = rows["kind"].iloc[0]
    sign = -1.0 if kind == "loss" else 1.0
    names, entries = methods_of(rows), []
    for name in names:
        paths = [r.gains[:, tasks_in_order(r)[0][1]] for r in rows[rows["method"] == name]["matrix"]]
        mean = sign * np.mean(np.array(paths), axis=0)
        entries += [{"method": name, "stage": stage, "score": value} for stage, value in enumerate(mean, start=1)]
    unit = "held-out loss (nats per token)" if kind == "loss" else f"held-out {kind}"
    x = alt.X("stage:O", title="after stage", axis=alt.Axis(labelAngle=0))
    y = alt.Y("score:Q", title=unit, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
    color = alt.Color("method:N", title=None, scale=alt.Scale(domain=names, range=colors(names, names)))
    tip = ["method:N", "stage:O", alt.Tooltip("score:Q", format=".4f")]
    chart = alt.Chart(pd.DataFrame(entries)).mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=1.6)
    title = f"The first task of each sequence{of}"
    return apply_theme(chart.encode(x=x, y=y, color=color, tooltip=tip).properties(width=440, height=300, title=title))


FORGETTING = "forgetting F (nats per token)"


def named(record: Json) -> pd.DataFrame:
    """The cells of the grid, each with the name of its size and pre-training."""
    rows = pd.DataFrame(record["rows"])
    return rows.assign(series=[f"N {format_count(n)}, M {m:g}" for n, m in zip(rows["N"], rows["M"], strict=True)])


def series_color(rows: pd.DataFrame) -> alt.Color:
    """By size, then by pre-training, dark to light."""
    order = list(dict.fromkeys(rows.sort_values(["N", "M"])["series"]))
    return alt.Color("series:N", title=None, sort=order, scale=alt.Scale(scheme=PALETTE, domain=order))


def fitted(record: Json, rows: pd.DataFrame) -> np.ndarray:
    law = find(record["main"]["law"])
    return curve(law, record["main"], **{name: rows[name].to_numpy(dtype=float) for name in law.inputs})


def replay(rows: pd.DataFrame, record: Json) -> alt.TopLevelMixin:
    """F against the replayed share where the new text is longest, the law as lines; what is tolerated is the rule."""
    longest = pd.DataFrame(rows[rows["beside"] == rows["beside"].max()])
    shares = np.linspace(0, longest["p"].max(), 60)
    parts = []
    for name, part in longest.groupby("series"):
        part = part.sort_values("p")
        new = np.interp(shares, part["p"], part["D"])  # what is replayed may be part of the budget
        line = pd.DataFrame([part.iloc[0]] * len(shares)).assign(p=shares, D=new, series=name)
        parts.append(line.assign(F=fitted(record, line)))
    color = series_color(rows)
    x = alt.X("p:Q", title="replayed share of the tokens", axis=alt.Axis(format="%"))
    y = alt.Y("F:Q", title=FORGETTING)
    tip = ["series:N", "p:Q", "n:Q", alt.Tooltip("F:Q", format=".4f")]
    points = alt.Chart(longest).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tip)
    lines = alt.Chart(pd.concat(parts)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    rule = alt.Chart(pd.DataFrame({"F": [record["critical"]["tolerate"]]})).mark_rule(strokeDash=[5, 4], color="#888")
    return with_title(lines + points + rule.encode(y=y), "Forgetting vs replayed share, longest fine-tuning")


def tokens(rows: pd.DataFrame) -> alt.TopLevelMixin:
    """F against the tokens of new text, without replay."""
    plain = pd.DataFrame(rows[rows["p"] == 0])
    ticks = np.unique(plain["D"].to_numpy()).tolist()
    text = "datum.value >= 1e9 ? format(datum.value, '.0e') : format(datum.value, '.3~s')"
    axis, scale = alt.Axis(values=ticks, labelExpr=text), alt.Scale(type="log", nice=False, padding=14)
    x = alt.X("D:Q", title="tokens of new text", scale=scale, axis=axis)
    color = series_color(rows)
    tip = ["series:N", "D:Q", alt.Tooltip("F:Q", format=".4f")]
    chart = (
        alt.Chart(plain).mark_line(point=True).encode(x=x, y=alt.Y("F:Q", title=FORGETTING), color=color, tooltip=tip)
    )
    return with_title(chart, "Forgetting vs new tokens, no replay")


def observed(rows: pd.DataFrame, record: Json) -> alt.TopLevelMixin:
    """Every cell of the grid against the law; the line is equality."""
    shown = rows.assign(law=fitted(record, rows))
    ends = [float(shown[["F", "law"]].min().min()), float(shown[["F", "law"]].max().max())]
    color = alt.Color("p:Q", title="replayed", scale=alt.Scale(scheme=PALETTE), legend=alt.Legend(format="%"))
    x, y = alt.X("law:Q", title="F of the law (nats)"), alt.Y("F:Q", title="F observed (nats)")
    tip = ["series:N", "D:Q", "p:Q", alt.Tooltip("F:Q", format=".4f"), alt.Tooltip("law:Q", format=".4f")]
    points = alt.Chart(shown).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tip)
    equal = alt.Chart(pd.DataFrame({"law": ends, "F": ends})).mark_line(color="#888", strokeDash=[5, 4])
    return with_title(equal.encode(x=x, y=y) + points, "Observed vs fitted forgetting")
