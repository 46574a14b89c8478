"""Figures of the study `search`: the tuning curve, loss vs each key, and the finalists on held-out seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.studies.compare.decision import Estimate
from kleiber.studies.compare.labels import VALIDATION_LOSS
from kleiber.studies.laws.uncertainty import percent
from kleiber.studies.study import Figures
from kleiber.types import Row

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart
    from kleiber.studies.search_trials import Trials


def figures(trials: Trials, tuning: Sequence[Row], means: Mapping[str, Estimate], level: float) -> Figures:
    """Returns functions that draw the figures, by name; none where every trial diverged."""
    if not any(map(math.isfinite, next(iter(trials.searched.values())).values())):
        return {}
    charts: Figures = {
        "tuning_curve": lambda: tuning_curve(tuning, level, next(iter(trials.searched))),
        "keys": lambda: loss_by_key(trials),
    }
    if means:
        charts["finalists"] = lambda: finalists(trials, means, level)
    return charts


def tuning_curve(tuning: Sequence[Row], level: float, tokens: float) -> Chart:
    """Best loss vs number of trials: the expectation, and the band of the median where there is one.

    tokens  after which the losses were measured
    """
    import altair as alt

    from kleiber.charts.theme import log_axis, with_title

    rows = pd.DataFrame(tuning)
    drawn = rows.dropna(subset=["mean"])
    least = float(np.nanmin(drawn["mean"]))
    top = float(np.nanmax(drawn["mean"]))
    top += 0.15 * (top - least)
    band = rows.assign(hi=[top if value is None or math.isnan(value) else min(value, top) for value in rows["hi"]])
    x = log_axis("trials", "trials of the search", rows["trials"], every=2)
    scale = alt.Scale(domain=[least - 0.1 * (top - least), top], nice=False)
    y, high = (alt.Y(f"{name}:Q", title=VALIDATION_LOSS, scale=scale) for name in ("mean", "hi"))
    line = alt.Chart(drawn).mark_line(color="black", strokeWidth=2, point={"color": "black", "size": 18})
    closed = band.dropna(subset=["lo"]).astype({"lo": float})
    layers = [
        alt.Chart(closed).mark_area(opacity=0.2, color="#444", clip=True).encode(x=x, y=high, y2="lo:Q"),
        alt.Chart(band).mark_line(color="#444", strokeDash=[4, 3], strokeWidth=1.2, clip=True).encode(x=x, y=high),
        line.encode(x=x, y=y),
    ]
    subtitle = f"line: expected best loss; dashed and gray: {percent(level)} band of its median"
    if 0 < len(closed) < len(rows):
        subtitle += f"; beyond {closed['trials'].max()} trials the band has no lower end"
    if bool(rows["hi"].isna().all()):
        layers, subtitle = layers[-1:], "the least loss so far"
    title = f"Best validation loss after {tokens:,.0f} tokens vs number of trials"
    return with_title(alt.layer(*layers), title, subtitle=subtitle)


def loss_by_key(trials: Trials) -> Chart:
    """Loss of every trial vs the value of each searched key, a panel for each; finalists are filled."""
    import altair as alt

    from kleiber.charts.theme import log_axis
    from kleiber.studies.compare.chart_forms import in_rows

    losses = next(iter(trials.searched.values()))
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    limit = float(np.quantile(list(finite.values()), 0.9))
    panels = []
    for key in next(iter(trials.values.values())):
        rows = pd.DataFrame([
            {"value": trials.values[name][key], "loss": min(loss, limit), "trial": name,
             "kind": "finalist" if name in trials.finalists else "above the axis" if loss > limit else "trial"}
            for name, loss in finite.items()
        ])  # fmt: skip
        x = alt.X("value:N", title=key, sort=list(dict.fromkeys(rows["value"])))
        numbers = as_numbers(list(rows["value"]))
        if numbers is not None:
            rows = rows.assign(value=numbers)
            x = alt.X("value:Q", title=key, scale=alt.Scale(zero=False, padding=12))
            if min(numbers) > 0 and max(numbers) > 4 * min(numbers):
                x = log_axis("value", key, numbers)
        y = alt.Y("loss:Q", title=VALIDATION_LOSS, scale=alt.Scale(zero=False, padding=10))
        kinds = ["trial", "finalist", "above the axis"]
        color = alt.Color(
            "kind:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds, range=["#888", "#0072B2", "#ddd"])
        )
        tip = ["trial:N", alt.Tooltip("loss:Q", format=".4f"), "value"]
        points = (
            alt.Chart(rows).mark_point(filled=True, size=46, opacity=0.9).encode(x=x, y=y, color=color, tooltip=tip)
        )
        panels.append(points.properties(width=240, height=180))
    length = next(iter(trials.searched))
    return in_rows(panels, f"Validation loss vs each key, after {length:,.0f} tokens", "a point for each trial")


def as_numbers(values: Sequence[str]) -> list[float] | None:
    """Returns the values of a key as numbers; None if one is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def finalists(trials: Trials, means: Mapping[str, Estimate], level: float) -> Chart:
    """The mean loss of each finalist over held-out seeds with its interval, and its loss with the search's seed."""
    import altair as alt

    from kleiber.charts.theme import with_title
    from kleiber.studies.search_trials import last_loss

    order = sorted(means, key=lambda name: means[name].value)
    rows = pd.DataFrame([
        {"trial": name, "value": mean.value, "lo": mean.lo, "hi": mean.hi, "search": last_loss(trials, name)}
        for name, mean in means.items()
    ])  # fmt: skip
    y = alt.Y("trial:N", title=None, sort=order)
    scale = alt.Scale(zero=False, padding=12)
    x, low, search = (alt.X(f"{name}:Q", title=VALIDATION_LOSS, scale=scale) for name in ("value", "lo", "search"))
    base = alt.Chart(rows).encode(y=y)
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=low, x2="hi:Q"),
        base.mark_point(filled=True, size=70, opacity=1, color="black").encode(x=x),
        base.mark_point(filled=False, size=60, shape="diamond", color="#0072B2").encode(x=search),
    ]
    subtitle = f"points: mean over held-out seeds, {percent(level)} interval; diamonds: the seed of the search"
    return with_title(alt.layer(*layers), "Validation loss of the finalists", max(80, 34 * len(rows)), subtitle)
