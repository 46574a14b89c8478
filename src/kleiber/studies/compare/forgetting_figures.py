"""The figures of studies that fine-tune common bases: forgetting against the loss on the new text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import altair as alt
import pandas as pd

from kleiber.charts.intervals import estimates
from kleiber.charts.matrix import change_matrix
from kleiber.charts.series import MOST, Marks, arm_color, draw, seed_lines, small_multiples
from kleiber.charts.theme import (
    Chart,
    Rows,
    colors_of,
    log_axis,
    pointed,
    reference_line,
    sequential_colors,
    span,
)
from kleiber.config.labels import data_label
from kleiber.studies.compare.chart_forms import FORGETTING, TARGET, apart, interval_note
from kleiber.studies.compare.contrast import BASES
from kleiber.studies.compare.frontier import best_settings
from kleiber.studies.compare.noise import on_line
from kleiber.studies.compare.rows import CELL, label
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Json, Row

SYMBOLS = (  # of Vega, in its order
    "circle", "square", "triangle-up", "cross", "diamond", "triangle-right", "triangle-down", "triangle-left"
)  # fmt: skip
AXES = {
    "F": "forgetting F on a subset (nats per token)",
    "target": TARGET,
    "step": "optimizer step",
    "lr": "learning rate",
}
TITLES = {"F": "Forgetting during fine-tuning", "target": "Loss on the new text"}
RISE = "F: rise of the loss on the old text"
RANK = "rank "
PALE = 0.35  # opacity of settings that others of their method surpass


def figures(record: Json, gaps: Sequence[Row]) -> dict[str, Chart]:
    """Returns the figures that the runs allow, by name.

    record  of `Forgetting.compare`
    gaps    differences between arms: arm, against, difference in, value, lo, hi, n, bound
    """
    study, rows, order, at = (record[name] for name in ("study", "rows", "order", "at"))
    colors, keys = arm_colors(order), record["chosen"][CELL]
    absent = [arm_label(row["method"]) for row in record["matched"] if not row["reached"]]
    charts: dict[str, Chart] = {"pareto": lambda: frontier(record["points"], order, at)}
    reached = [row for row in record["matched"] if row["reached"]]
    if reached and at is not None:
        charts["matched"] = lambda: matched(reached, order, at, study.level, absent)
    if gaps:
        charts["differences"] = lambda: differences(gaps, colors, study.level, absent)
    note = chosen_note(label(order[0]), at, study.tolerance, absent)
    paths = rows.merge(keys, on=CELL)[["method", "seed", "path"]].explode("path").dropna()
    if len(paths):
        steps = paths.assign(step=paths["path"].str[0].astype(float), F=paths["path"].str[1].astype(float))
        lacking = [arm_label(arm) for arm in order if arm not in set(paths["method"])]
        during = f"{note}; points: seeds" + f"; not shown: {' and '.join(lacking)}, after training" * bool(lacking)
        charts["trajectory"] = lambda: over(steps[steps["step"] > 0], "step", "F", order, during)
    if rows["lr"].nunique() > 1:
        trained = rows[~on_line(rows["method"])]
        best = best_settings(trained, ["method", "lr"], ["setting", "tokens"], "target")
        charts["tuning"] = lambda: over(
            trained.merge(best, on=CELL), "lr", "target", order, "points: seeds; lines: means over seeds", at
        )
    charts["matrix"] = lambda: task_losses(rows, keys, order, record["texts"], record["new"], note)
    if record["loads"]:
        charts["loads"] = lambda: loads(record["loads"], [label(arm) for arm in order])
    return charts


def chosen_note(reference: str, at: float | None, tolerance: float, absent: Sequence[str]) -> str:
    """Returns at which setting figures show each method.

    at      the target loss of all; None: each method has one of its own
    absent  methods that never reach it
    """
    loss = "its target loss" if at is None else f"the target loss {at:.3g}"
    never = f"; {' and '.join(absent)} never {'do' if absent[1:] else 'does'}: at the lowest loss" if absent else ""
    pairs = f"; target loss: the best of the weaker of it and {reference}, plus {tolerance:.1%}" if at is None else ""
    return f"each at the setting of lowest forgetting that reaches {loss}{never}{pairs}"


def named(text: str) -> str:
    """Returns what figures without the name of their study call an arm: `LoRA, rank 4` for rank 4."""
    return f"LoRA, {text}" if text.startswith(RANK) else text


def arm_label(arm: str) -> str:
    """Returns the name of an arm in figures; see `named`."""
    return named(label(arm))


def arm_colors(order: Sequence[str]) -> dict[str, str]:
    """Returns the color of each arm by its name in figures: that of its method; ranks go from dark to light."""
    ranks = [arm_label(arm) for arm in order if arm.startswith(RANK)]
    colors = colors_of([arm_label(arm) for arm in order])
    return colors | dict(zip(ranks, sequential_colors(len(ranks)), strict=True))


def frontier(points: Rows, order: Sequence[str], at: float | None = None) -> alt.TopLevelMixin:
    """F vs target loss: a point for each setting with the sd of its seeds, a line for the frontier of each arm.

    Settings far from all frontiers are left out, and the subtitle says how many of which arm.

    at  the target loss at which arms are compared, drawn as a dashed line
    """
    best = points[points["best"]]
    near = pd.Series(True, index=points.index)
    for name in ("target", "F"):
        near &= points[name] <= best[name].max() + (best[name].max() - best[name].min())
    near |= points["best"]
    if at is not None:
        least = float(best["target"].min())
        near &= points["target"] <= at + 6 * max(at - least, 0.01 * at)
    names, lines_at, colors = [arm_label(arm) for arm in order], [] if at is None else [at], arm_colors(order)
    sd, labels = points["F_sd"].fillna(0), points["method"].map(arm_label)
    every = points.assign(series=labels, low=points["F"] - sd, high=points["F"] + sd)
    scales = {
        "target": span([*every["target"][near], *lines_at]),
        "F": span(every[["low", "high"]][near].to_numpy().ravel()),
    }
    near |= every["target"].between(*scales["target"]["domain"]) & every["F"].between(*scales["F"]["domain"])
    shown = every[near]
    shown = shown.sort_values("series", key=lambda series: -series.map(names.index))  # the reference is in front
    notes = ["points: settings of each method; bars: standard deviation over seeds"]
    notes += ["lines: best trade-offs of a method; pale: its other settings"]
    notes += [
        *(f"dashed: target loss {loss:.3g}, at which methods are compared" for loss in lines_at),
        *outside(labels, near),
    ]
    x, y = (
        kind(f"{name}:Q", title=pointed(title, "lower"), axis=alt.Axis(tickCount=6), scale=scales[name])
        for kind, name, title in ((alt.X, "target", TARGET), (alt.Y, "F", FORGETTING))
    )
    exact = [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("F", "target")]
    tips = ["series:N", "setting:N", alt.Tooltip("lr:Q", format=".2g"), "n:Q", *exact]
    drawn = [name for name in names if name in set(shown["series"])]
    symbols = alt.Scale(domain=drawn, range=[SYMBOLS[names.index(name) % len(SYMBOLS)] for name in drawn])
    shape = alt.Shape("series:N", title=None, sort=drawn, scale=symbols)
    dots = Marks(
        rows=shown[shown["best"]], value="F", ends=("low", "high"), bars=0.5, points=60, shape=shape, tips=tips
    )
    pale = replace(dots, rows=shown[~shown["best"]], bars=PALE, points=30, opacity=PALE)
    path = Marks(rows=shown[shown["best"]], value="F", line=1.6, order="target")

    def panel(arms: Sequence[str]) -> alt.LayerChart:
        """The panel of some of the arms."""
        tables = [replace(table, rows=table.rows[table.rows["series"].isin(arms)]) for table in (pale, path, dots)]
        dashed = [reference_line(x, loss) for loss in lines_at]
        return draw(tables, x, y, arm_color(colors, arms, len(drawn) <= MOST), dashed)

    return small_multiples(panel, drawn, "Forgetting vs loss on the new text", "; ".join(notes))


def outside(labels: Rows, near: Rows) -> list[str]:
    """Returns how many settings of which arms a figure leaves out; empty where it has all."""
    counts, all_of = labels[~near].value_counts(sort=False), labels.value_counts()
    parts = [f"{'all ' * bool(count == all_of[name])}{count} of {name}" for name, count in counts.items()]
    return [f"not shown, outside the axes: {', '.join(parts)}"] if parts else []


def matched(rows: Sequence[Row], order: Sequence[str], at: float, level: float, absent: Sequence[str]) -> Chart:
    """F of each arm at the target loss, with a dashed line at that of the first.

    absent  arms that never reach the loss
    """
    shown = [{**row, "series": arm_label(row["method"]), "value": row["F"], "better": "lower"} for row in rows]
    bases = max(row["reached"] for row in rows)
    notes = [f"points: means over {bases} bases; bars: {percent(level)} intervals; dashed: {label(order[0])}"]
    title = f"Forgetting at the target loss {at:.3g}"
    x_title = "forgetting: rise of the loss on the old text (nats per token)"
    note = "; ".join([*notes, *never(absent)])
    return estimates(shown, arm_colors(order), x_title, title, subtitle=note, by_effect=True)


def never(absent: Sequence[str]) -> list[str]:
    """Returns which arms a figure at the target loss lacks, and why."""
    return [f"not shown: {' and '.join(absent)}, never at the target loss"] * bool(absent)


def differences(rows: Sequence[Row], colors: Mapping[str, str], level: float, absent: Sequence[str]) -> Chart:
    """Differences of arms from another with the intervals that decide the claims, a panel for each quantity."""
    shown = [
        {
            **row, "series": named(row["arm"]), "panel": row["difference in"], "better": "lower",
            "below": f"difference in {row['difference in'].partition(',')[0]} (nats per token)",
        }
        for row in rows
    ]  # fmt: skip
    plain = " or ".join(dict.fromkeys(row["against"] for row in rows))
    bars = interval_note(level, [{name: row[name] for name in ("lo", "n")} for row in rows], "mean differences",
                         joint=len(rows) > 1, samples=BASES)  # fmt: skip
    notes = [RISE, bars, "dashed: no difference", *never(absent)]
    return estimates(
        shown, colors, "difference (nats per token)", f"Differences from {plain}", zero=True, by_effect=True,
        subtitle="; ".join(notes),
    )  # fmt: skip


def over(rows: Rows, x: str, y: str, order: Sequence[str], subtitle: str = "", at: float | None = None) -> Chart:
    """A measure of every arm vs the optimizer step or the learning rate; x and y are keys of AXES.

    at  the target loss, drawn as a dashed line
    """
    shown = rows[["method", "seed", x]].assign(value=rows[y].astype(float), series=rows["method"].map(arm_label))
    values = rows[x].unique().tolist()
    across = log_axis(x, AXES[x], values if x == "step" else apart(values))
    title, dashed = f"{TITLES[y]} vs {AXES[x]}", f"; dashed: target loss {at:.3g}" if at is not None else ""
    return seed_lines(
        shown, across, pointed(AXES[y], "lower"), arm_colors(order), title, subtitle=subtitle + dashed, reference=at
    )


def task_losses(
    rows: Rows, chosen: Rows, order: Sequence[str], texts: Mapping[str, str], new: Sequence[str], note: str = ""
) -> Chart:
    """Loss of each task before fine-tuning and after each arm at its chosen setting, means over seeds.

    Arms are sorted by the losses of the old tasks.

    texts  of `text_labels`
    new    the tasks that fine-tuning trains
    """
    tasks = [name.removeprefix("loss/") for name in rows.columns if name.startswith("loss/")]
    tasks.sort(key=lambda task: task not in new)
    first = rows.drop_duplicates("run")[[f"start/{task}" for task in tasks]].mean().rename(lambda name: name[6:])
    kept = rows.merge(chosen, on=list(chosen.columns)).groupby("method")
    after = {arm: kept.get_group(arm)[[f"loss/{task}" for task in tasks]].mean() for arm in order}
    after = {arm_label(arm): losses.rename(lambda name: name[5:]) for arm, losses in after.items()}
    old = [task for task in tasks if task not in new]
    sides = {"before": first, **dict(sorted(after.items(), key=lambda side: float(side[1][old].mean())))}
    named_tasks = {
        task: f"{'new' if task in new else 'old'} text: {texts.get(task) or data_label(task)}" for task in tasks
    }
    cells = [
        {"arm": arm, "task": named_tasks[task], "value": losses[task], "change": losses[task] - first[task]}
        for arm, losses in sides.items()
        for task in tasks
    ]
    x, y = alt.X("task:N", title=None, sort=None, axis=alt.Axis(labelAngle=0)), alt.Y("arm:N", title=None, sort=None)
    note = "; ".join(filter(None, ["numbers: loss (nats per token), means over seeds", note]))
    title = "Loss before and after fine-tuning"
    return change_matrix(pd.DataFrame(cells), x, y, "change (nats per token)", title, worse=True, subtitle=note)


def loads(rows: Sequence[Row], order: Sequence[str]) -> Chart:
    """Change of expert loads: a panel for each text and distance, a line for each layer and arm."""
    distances = list(dict.fromkeys(row["distance"] for row in rows))
    shown = [
        {
            "panel": f"{row['text'].rpartition('/')[2]} {row['distance']}", "series": row["arm"],
            "name": f"layer {row['layer']}, {row['arm']}", **{key: row[key] for key in ("value", "lo", "hi")},
        }
        for row in sorted(rows, key=lambda row: (distances.index(row["distance"]), row["text"], row["layer"]))
    ]  # fmt: skip
    return estimates(shown, order, "total variation", "Change of expert loads by layer", zero=True)
