"""The chart forms of the studies that fine-tune: frontiers, lines over seeds, estimates with intervals, and matrices.

Every form takes `order`, the arms of the study: the first is the reference and black, and an arm has the same color in
every figure of a page. More than six arms are drawn as small multiples, each beside the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts import HEIGHT, PALETTE, WIDTH, Chart, apply_theme, format_count, log_axis, with_title
from kleiber.studies.compare.rows import Rows, label
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.figures import curve
from kleiber.types import Json, Row

COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#7b4173",
          "#31a354", "#b2182b")  # fmt: skip
MOST = 6  # arms in one panel
GRAY = "#888"
FORGETTING, TARGET = "forgetting F (nats per token)", "target loss (nats per token)"


def arm_color(order: Sequence[str], shown: Sequence[str], legend: bool = True) -> alt.Color:
    """Returns the colors of the arms `shown`, each as it is among all; of all without a legend, which panels share."""
    shown = shown if legend else order
    colors = [COLORS[list(order).index(name) % len(COLORS)] for name in shown]
    scale = alt.Scale(domain=list(shown), range=colors)
    return alt.Color("series:N", title=None, scale=scale, sort=list(shown), legend=alt.Legend() if legend else None)


def small_multiples(draw: Callable[[Sequence[str]], Chart], order: Sequence[str], title: str, subtitle: str) -> Chart:
    """Returns one chart of all arms, or a panel for each arm with the reference beside it."""
    if len(order) <= MOST:
        return with_title(draw(order), title, subtitle=subtitle)
    panels = [draw([order[0], name]).properties(title=name, width=210, height=150) for name in order[1:]]
    return in_rows(panels, title, f"{order[0]} in black; {subtitle}" if subtitle else f"{order[0]} in black", 3)


def in_rows(panels: Sequence[Chart], title: str, subtitle: str = "", columns: int = 2) -> Chart:
    """Returns panels in rows under one title."""
    heading = alt.TitleParams(title, subtitle=subtitle) if subtitle else title
    return apply_theme(alt.concat(*panels, columns=columns).properties(title=heading))


def span(values: Sequence[float] | np.ndarray) -> alt.Scale:
    """Returns a scale over the values, with a little room on both sides."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.05 * max(high - low, 0.01 * abs(high), 1e-3)
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False)


def frontier(points: Rows, order: Sequence[str], at: float | None = None) -> Chart:
    """F vs target loss: a point for each setting with the sd of its seeds, a line for the frontier of each arm.

    Settings far from all frontiers are left out, and the subtitle says how many.

    at  the target loss at which arms are compared, drawn as a dashed line
    """
    best = points[points["best"]]
    near = pd.Series(True, index=points.index)
    for name in ("target", "F"):
        near &= points[name] <= best[name].max() + (best[name].max() - best[name].min())
    near |= points["best"]
    shown = points[near].assign(series=points["method"].map(label), sd=points["F_sd"].fillna(0))
    shown = shown.assign(low=shown["F"] - shown["sd"], high=shown["F"] + shown["sd"])
    names = [label(arm) for arm in order]
    beyond = "" if near.all() else f"{int((~near).sum())} more settings lie beyond the axes"
    lines_at = [] if at is None else [at]
    where = [f"dashed: the loss where F is compared, {loss:.4f}" for loss in lines_at]
    x = alt.X("target:Q", title=TARGET, axis=alt.Axis(tickCount=6), scale=span([*shown["target"], *lines_at]))
    y, low = (
        alt.Y(f"{name}:Q", title=FORGETTING, scale=span(shown[["low", "high"]].to_numpy())) for name in ("F", "low")
    )
    exact = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tips = ["series:N", "setting:N", alt.Tooltip("lr:Q", format=".2g"), "n:Q", *exact]

    def draw(arms: Sequence[str]) -> Chart:
        color = arm_color(names, arms, len(names) <= MOST)
        base = alt.Chart(shown[shown["series"].isin(arms)])
        bars = base.mark_rule(opacity=0.5).encode(x=x, y=low, y2="high:Q", color=color)
        marks = base.mark_point(size=40, filled=True, opacity=0.9).encode(x=x, y=y, color=color, tooltip=tips)
        lines = base.transform_filter("datum.best").mark_line(strokeWidth=1.3)
        rule = alt.Chart(pd.DataFrame({"target": lines_at}))
        rule = rule.mark_rule(strokeDash=[5, 4], color=GRAY).encode(x=x)
        return alt.layer(rule, bars, lines.encode(x=x, y=y, color=color, order="target:Q"), marks)

    return small_multiples(draw, names, "Forgetting vs target loss", "; ".join([*where, *([beyond] if beyond else [])]))


def lines(rows: Rows, x: alt.X, y_title: str, order: Sequence[str], title: str, log: bool = False) -> Chart:
    """A line over the means of seeds for each arm, with a small point for each seed.

    rows  columns series, value, that of `x`; lo and hi, ends of bars; panel, a panel for each value
    log   whether the vertical axis is logarithmic
    """
    drawn = [name for name in order if name in set(rows["series"])]

    def draw(part: Rows, arms: Sequence[str], legend: bool = True) -> Chart:
        ends = [name for name in ("value", "lo", "hi") if name in part]
        scale = alt.Scale(type="log", padding=10) if log else span(part[ends].to_numpy())
        axis = alt.Axis(tickCount=6)
        shown = part[part["series"].isin(arms)]
        base = alt.Chart(shown).encode(x=x, color=arm_color(order, arms, legend))
        y, mean, low = (
            alt.Y(f"{name}:Q", title=y_title, scale=scale, axis=axis) for name in ("value", "mean(value)", "lo")
        )
        layers = [base.mark_line(strokeWidth=1.5).encode(y=mean), base.mark_point(size=16, filled=True).encode(y=y)]
        if "lo" in shown and bool(shown["lo"].notna().any()):
            layers.append(base.mark_rule(opacity=0.6).encode(y=low, y2="hi:Q"))
        return alt.layer(*layers)

    if "panel" not in rows:
        return small_multiples(lambda arms: draw(rows, arms, len(drawn) <= MOST), drawn, title, "")
    panels = [
        draw(part, drawn).properties(title=str(name), width=250, height=170)
        for name, part in rows.groupby("panel", sort=False)
    ]
    return in_rows(panels, title)


def estimates(rows: Sequence[Row], order: Sequence[str], x_title: str, title: str, zero: bool = False) -> Chart:
    """Dots with their intervals, where they have any: a panel for each `panel` of the rows.

    rows  series (an arm), value, lo, hi; name, the label of the line if not the arm; panel
    zero  draws a dashed line at 0
    """
    shown = pd.DataFrame([{"panel": "", "name": row["series"], **row} for row in rows])
    shown = shown.replace([np.inf, -np.inf], np.nan).astype({"lo": float, "hi": float})
    panels = []
    for heading, part in shown.groupby("panel", sort=False):
        names = list(dict.fromkeys(part["name"]))
        y = alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=240))
        arms = [arm for arm in order if arm in set(part["series"])]
        base = alt.Chart(part).encode(y=y, color=arm_color(order, arms, legend=False))
        scale = span([*part[["value", "lo", "hi"]].to_numpy().ravel(), *([0.0] if zero else [])])
        axis = alt.Axis(tickCount=4, labelOverlap=True)
        x, low = (alt.X(f"{name}:Q", title=x_title, scale=scale, axis=axis) for name in ("value", "lo"))
        tips = ["series:N", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("value", "lo", "hi"))]
        layers = [base.mark_point(filled=True, size=50, opacity=1).encode(x=x, tooltip=tips)]
        if bool(part["lo"].notna().any()):
            layers.insert(0, base.mark_rule(strokeWidth=1.6).encode(x=low, x2="hi:Q"))
        if zero:
            line = alt.Chart(pd.DataFrame({"value": [0.0]})).mark_rule(strokeDash=[4, 4], color=GRAY)
            layers.insert(0, line.encode(x="value:Q"))
        size = {"width": WIDTH if shown["panel"].nunique() == 1 else 230, "height": 20 * len(names) + 10}
        panels.append(alt.layer(*layers).properties(title=alt.TitleParams(str(heading), fontSize=11), **size))
    return in_rows(panels, title)


def matrix(rows: Rows, x: alt.X, y: alt.Y, legend: str, title: str, worse: bool = False) -> Chart:
    """Values written into cells whose color is the change: a panel for each value of `series`, if there is the column.

    rows   columns value, change (nan leaves the cell white), and those of `x` and `y`
    worse  whether a positive change is for the worse, and so red
    """
    limit = float(rows["change"].abs().max()) or 1.0
    fill = alt.Scale(scheme="redblue", domain=[-limit, limit], reverse=worse)
    color = alt.Color("change:Q", title=legend, scale=fill, legend=alt.Legend(gradientLength=120, titleLimit=200))
    base = alt.Chart(rows).encode(x=x, y=y)
    measured = alt.condition("isValid(datum.change)", color, alt.value("white"))
    cells = base.mark_rect(stroke="white", strokeWidth=2, invalid=None).encode(color=measured)
    strong = alt.condition(f"abs(datum.change) > {0.6 * limit}", alt.value("white"), alt.value("#222"))
    text = base.mark_text(fontSize=10).encode(text=alt.Text("value:Q", format=".3f"), color=strong)
    chart = alt.layer(cells, text)
    if "series" not in rows:
        return with_title(chart, title, height=26 * rows[y.shorthand.partition(":")[0]].nunique())
    across, down = (rows[axis.shorthand.partition(":")[0]].nunique() for axis in (x, y))
    side = max(90, 42 * across)
    facet = alt.Facet("series:N", title=None, sort=list(dict.fromkeys(rows["series"])))
    grid = chart.properties(width=side, height=22 * down).facet(facet=facet, columns=max(1, 640 // side), spacing=16)
    return apply_theme(grid.properties(title=title))


def values_axis(name: str, title: str, values: Rows, style: str = "~s") -> alt.X:
    """Returns a logarithmic axis with a tick at every value that occurs, in the notation of the format `style`."""
    ticks = sorted(set(map(float, values)))
    scale = alt.Scale(type="log", domain=[ticks[0] / 1.2, ticks[-1] * 1.2], nice=False)
    return alt.X(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format=style, grid=False))


def trajectory(paths: Rows, order: Sequence[str]) -> Chart:
    """F vs optimizer step of every arm at its chosen setting, from step 1; rows have method, seed, step and F."""
    rows = paths[paths["step"] > 0].rename(columns={"F": "value"})
    rows = rows.assign(series=rows["method"].map(label))
    x = log_axis("step", "optimizer step", rows["step"].to_numpy())
    return lines(rows, x, FORGETTING, [label(arm) for arm in order], "Forgetting vs optimizer step")


def learning_rates(rows: Rows, order: Sequence[str]) -> Chart:
    """Target loss vs learning rate of every arm, the mean of its settings."""
    rows = rows.rename(columns={"target": "value"})[["method", "lr", "seed", "value"]]
    rows = rows.assign(series=rows["method"].map(label))
    x = log_axis("lr", "learning rate", rows["lr"].to_numpy())
    return lines(rows, x, TARGET, [label(arm) for arm in order], "Target loss vs learning rate")


def task_losses(rows: Rows, chosen: Rows, order: Sequence[str]) -> Chart:
    """Loss of each task before fine-tuning and after each arm at its chosen setting, means over seeds."""
    tasks = [name.removeprefix("loss/") for name in rows.columns if name.startswith("loss/")]
    first = rows.drop_duplicates("run")[[f"start/{task}" for task in tasks]].mean()
    cells = [{"arm": "before", "task": task, "value": first[f"start/{task}"], "change": 0.0} for task in tasks]
    kept = rows.merge(chosen, on=list(chosen.columns)).groupby("method")
    for arm in order:
        for task in tasks:
            loss = float(kept.get_group(arm)[f"loss/{task}"].mean())
            cells.append({"arm": label(arm), "task": task, "value": loss, "change": loss - first[f"start/{task}"]})
    x, y = alt.X("task:N", title=None, axis=alt.Axis(labelAngle=0)), alt.Y("arm:N", title=None, sort=None)
    return matrix(pd.DataFrame(cells), x, y, "change (nats)", "Loss by task before and after fine-tuning", worse=True)


def loads(rows: Sequence[Row], order: Sequence[str]) -> Chart:
    """Change of expert loads: a panel for each text and distance, a line for each layer and arm."""
    distances = list(dict.fromkeys(row["distance"] for row in rows))
    shown = [
        {
            "panel": f"{row['text'].rpartition('/')[2]} {row['distance']}", "series": row["arm"],
            "name": f"layer {row['layer']}, {row['arm']}", "value": row["total variation"],
            "lo": row["lo"], "hi": row["hi"],
        }
        for row in sorted(rows, key=lambda row: (distances.index(row["distance"]), row["text"], row["layer"]))
    ]  # fmt: skip
    return estimates(shown, order, "total variation", "Change of expert loads by layer", zero=True)


def named(record: Json) -> Rows:
    """The cells of the grid of the forgetting law, each with the name of its size and pre-training."""
    rows = pd.DataFrame(record["rows"]).sort_values(["N", "M"])
    return rows.assign(series=[f"N {format_count(n)}, M {m:g}" for n, m in zip(rows["N"], rows["M"], strict=True)])


def series_color(rows: Rows) -> alt.Color:
    """By size, then by pre-training, dark to light."""
    order = list(dict.fromkeys(rows["series"]))
    return alt.Color("series:N", title=None, sort=order, scale=alt.Scale(scheme=PALETTE, domain=order))


def fitted(record: Json, rows: Rows) -> np.ndarray:
    law = find(record["main"]["law"])
    return curve(law, record["main"], **{name: rows[name].to_numpy(dtype=float) for name in law.inputs})


def replay(rows: Rows, record: Json) -> Chart:
    """F vs the replayed share where the new text is longest, the law as lines; the dashed line is what is tolerated."""
    longest = rows[rows["beside"] == rows["beside"].max()]
    shares = np.linspace(0, longest["p"].max(), 60)
    parts = []
    for name, part in longest.groupby("series"):
        part = part.sort_values("p")
        new = np.interp(shares, part["p"], part["D"])  # what is replayed may be part of the budget
        line = pd.DataFrame([part.iloc[0]] * len(shares)).assign(p=shares, D=new, series=name)
        parts.append(line.assign(F=fitted(record, line)))
    x = alt.X("p:Q", title="replayed share of the tokens", axis=alt.Axis(format="%"))
    y, color = alt.Y("F:Q", title=FORGETTING), series_color(rows)
    tips = ["series:N", "p:Q", "n:Q", alt.Tooltip("F:Q", format=".4f")]
    points = alt.Chart(longest).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tips)
    curves = alt.Chart(pd.concat(parts)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    tolerate = record["critical"]["tolerate"]
    rule = alt.Chart(pd.DataFrame({"F": [tolerate]})).mark_rule(strokeDash=[5, 4], color=GRAY).encode(y=y)
    subtitle = f"lines: the fitted law; dashed: {tolerate:g} nats, which are tolerated"
    return with_title(curves + points + rule, "Forgetting vs replayed share, longest fine-tuning", subtitle=subtitle)


def tokens(rows: Rows) -> Chart:
    """F vs the tokens of new text, without replay."""
    plain = rows[rows["p"] == 0]
    x, color = values_axis("D", "tokens of new text", plain["D"].round(-3), ".3~s"), series_color(rows)
    tips = ["series:N", "D:Q", alt.Tooltip("F:Q", format=".4f")]
    base = alt.Chart(plain).encode(x=x, y=alt.Y("F:Q", title=FORGETTING), color=color, tooltip=tips)
    return with_title(base.mark_line(point=True), "Forgetting vs new tokens, no replay", HEIGHT)


def observed(rows: Rows, record: Json) -> Chart:
    """Every cell of the grid vs the law; the dashed line is equality."""
    shown = rows.assign(law=fitted(record, rows))
    ends = [float(shown[["F", "law"]].min().min()), float(shown[["F", "law"]].max().max())]
    color = alt.Color("p:Q", title="replayed", scale=alt.Scale(scheme=PALETTE), legend=alt.Legend(format="%"))
    x, y = alt.X("law:Q", title="F of the law (nats)"), alt.Y("F:Q", title="F observed (nats)")
    tips = ["series:N", "D:Q", "p:Q", alt.Tooltip("F:Q", format=".4f"), alt.Tooltip("law:Q", format=".4f")]
    points = alt.Chart(shown).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tips)
    equal = alt.Chart(pd.DataFrame({"law": ends, "F": ends})).mark_line(color=GRAY, strokeDash=[5, 4])
    return with_title(equal.encode(x=x, y=y) + points, "Observed vs fitted forgetting", subtitle="dashed: equality")
