"""Figures of the study `search`: the tuning curve, loss vs each key, and the finalists on held-out seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.intervals import estimates
from kleiber.charts.series import Marks, draw, lines
from kleiber.charts.theme import Chart, in_rows, kind_color, log_axis, pointed, span
from kleiber.studies.compare.labels import VALIDATION_LOSS
from kleiber.studies.decision import Estimate
from kleiber.studies.laws.uncertainty import percent
from kleiber.studies.search_trials import Trials, as_numbers, last_loss
from kleiber.studies.study import Figures
from kleiber.types import Row

KINDS = ["trial", "finalist", "above the axis"]
SHAPES = ["circle", "diamond", "triangle-up"]
KEYS = {  # what figures call keys that are often searched
    "optimizer.lr": "learning rate",
    "optimizer.weight_decay": "weight decay",
    "batch.tokens": "batch (tokens)",
    "schedule.decay": "share of the steps that decay",
    "schedule.warmup_steps": "warm-up (steps)",
}
COLORS = ["trial", "", "finalist", *[""] * 5, "above the axis"]  # black, orange, gray


def figures(trials: Trials, tuning: Sequence[Row], means: Mapping[str, Estimate], level: float) -> Figures:
    """Returns functions that draw the figures, by name; none where every trial diverged."""
    if not any(map(math.isfinite, trials.first.values())):
        return {}
    charts: Figures = {
        "tuning_curve": lambda: tuning_curve(tuning, next(iter(trials.searched))),
        "keys": lambda: loss_by_key(trials),
    }
    if means:
        charts["finalists"] = lambda: finalists(trials, means, level)
    return charts


def tuning_curve(tuning: Sequence[Row], tokens: float) -> Chart:
    """Expected lowest loss vs number of trials, or the lowest so far of trials that depend on each other.

    tokens  after which the losses were measured
    """
    rows = pd.DataFrame(tuning).astype({"mean": float, "hi": float}).dropna(subset=["mean"])
    count, length, is_sequence = len(tuning), f"{tokens:,.0f} tokens", bool(rows["hi"].isna().all())
    note = f"expected lowest loss of n trials drawn at random from the {count}, each after {length}"
    expected = dict(zip(rows["trials"], rows["mean"], strict=True))
    if not is_sequence and count // 2 in expected:
        fall = expected[count // 2] - expected[count]
        note += f"; from {count // 2} to {count} trials it falls by {fall:.3g}, so more trials may still gain"
    x = log_axis("trials", "trials n" if not is_sequence else "trials of the search", rows["trials"], every=2)
    scale, axis = span(rows["mean"].to_numpy()), alt.Axis(tickCount=6)
    y = alt.Y("mean:Q", title=pointed(f"lowest {VALIDATION_LOSS}", "lower"), scale=scale, axis=axis)
    table = Marks(rows=rows, value="mean", line=2.0, points=18, color="black")
    title = "Lowest validation loss vs number of trials"
    return lines([table], x, y, title, subtitle=f"the lowest loss so far after {length}" if is_sequence else note)


def loss_by_key(trials: Trials) -> Chart:
    """Loss of every trial vs the value of each searched key, a panel for each; triangles: losses above it."""
    length, losses = next(iter(trials.searched.items()))
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    least, limit = min(finite.values()), float(np.quantile(list(finite.values()), 0.9))
    edge = limit + 0.08 * (limit - least)  # where the losses above the panels are drawn
    scale = alt.Scale(domain=[least - (edge - limit), edge], nice=False, zero=False)
    color, panels = kind_color(KINDS, legend=alt.Legend(title=None), order=COLORS), []
    shape = alt.Shape("kind:N", title=None, sort=KINDS, scale=alt.Scale(domain=KINDS, range=SHAPES))
    for key in next(iter(trials.values.values())):
        rows = pd.DataFrame([
            {"at": trials.values[name][key], "value": edge if loss > limit else loss, "trial": name,
             "kind": "finalist" if name in trials.finalists else "above the axis" if loss > limit else "trial"}
            for name, loss in finite.items()
        ])  # fmt: skip
        title = KEYS.get(key, key)
        x = alt.X("at:N", title=title, sort=list(dict.fromkeys(rows["at"])))
        numbers = as_numbers(list(rows["at"]))
        if numbers is not None:
            rows = rows.assign(at=numbers)
            is_log = min(numbers) > 0 and max(numbers) > 4 * min(numbers)
            linear = alt.X("at:Q", title=title, scale=alt.Scale(zero=False, padding=12))
            x = log_axis("at", title, numbers) if is_log else linear
        y = alt.Y("value:Q", title=VALIDATION_LOSS, scale=scale, axis=alt.Axis(tickCount=5))
        tips = ["trial:N", alt.Tooltip("value:Q", format=".4f"), "at"]
        table = Marks(rows=rows, points=60, opacity=0.8, shape=shape, tips=tips)
        panels.append(draw([table], x, y, color).properties(width=240, height=180))
    longest = max(trials.searched)
    note = f"finalists: the best trials after {longest:,.0f} tokens" * bool(trials.finalists and longest > length)
    notes = "; ".join(filter(None, ["a point for each trial", note]))
    return in_rows(panels, f"Validation loss vs each hyperparameter, after {length:,.0f} tokens", notes)


def finalists(trials: Trials, means: Mapping[str, Estimate], level: float) -> Chart:
    """The mean loss of each finalist over held-out seeds with its interval, and its loss with the search's seed."""
    rows = [
        {
            "series": "mean",
            "name": name,
            "value": mean.value,
            "lo": mean.lo,
            "hi": mean.hi,
            "other": last_loss(trials, name),
        }
        for name, mean in sorted(means.items(), key=lambda pair: pair[1].value)
    ]
    seeds = next(iter(means.values())).n
    note = f"points: means over {seeds} held-out seeds; diamonds: the seed of the search; "
    note += f"bars: {percent(level)} intervals, the noise of all finalists pooled"
    title = pointed(VALIDATION_LOSS, "lower")
    return estimates(rows, ["mean"], title, "Validation loss of the finalists", subtitle=note, step=34)
