"""Figures of memorization: exposure of canaries by their repetitions, and losses of training and held-out samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import KINDS, kind_color, with_title
from kleiber.types import Json

Rows = Any  # a DataFrame; the stubs of pandas do not type what indexing returns
CHANCE = math.log2(math.e)  # mean exposure of a secret whose rank is uniform, in bits
BINS = 30
LABELS = {"train": "training samples", "held_out": "held-out samples"}


def memorization_charts(results: Json) -> dict[str, alt.TopLevelMixin]:
    """Charts by name, from the scores and details of the evaluation."""
    charts: dict[str, alt.TopLevelMixin] = {}
    if "canaries" in results["details"]:
        charts["exposure"] = exposure_chart(results["details"]["canaries"], results["scores"]["canaries"])
    for number, (name, losses) in enumerate(results["details"]["samples"].items()):
        charts["losses" if number == 0 else f"losses_{number}"] = loss_chart(name, losses)
    return charts


def exposure_chart(canaries: list[Json], scores: Mapping[str, Json]) -> alt.TopLevelMixin:
    """Exposure against repetitions: a point for each canary, and the mean with its interval; gray: chance."""
    points: Rows = pd.DataFrame(canaries)
    points["state"] = np.where(points["extracted"], "extracted", "not extracted")
    means: Rows = pd.DataFrame(
        [
            {"repetitions": int(name.partition("/")[2]), **{key: score[key] for key in ("value", "lo", "hi")}}
            for name, score in scores.items()
            if name.startswith("exposure/")
        ]
    )
    order = sorted(set(points["repetitions"]))
    x = alt.X(
        "repetitions:O",
        sort=order,
        title="repetitions in the training text",
        axis=alt.Axis(labelAngle=0),
    )
    title = "exposure (bits)"
    chance = alt.Chart(pd.DataFrame({"y": [CHANCE]})).mark_rule(color="#888").encode(y="y:Q")
    dots = alt.Chart(points).mark_point(filled=True, size=30, opacity=0.45)
    dots = dots.encode(
        x=x,
        y=alt.Y("exposure:Q", title=title),
        color=kind_color(["not extracted", "extracted"], "state", alt.Legend(orient="top", title=None)),
        tooltip=["repetitions:O", alt.Tooltip("exposure:Q", format=".2f"), "state:N"],
    )
    base = alt.Chart(means).encode(x=x, color=alt.value(KINDS[2]))
    layers = [
        chance,
        dots,
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("lo:Q", title=title), y2="hi:Q"),
        base.mark_tick(thickness=3, size=26).encode(y=alt.Y("value:Q", title=title)),
    ]
    subtitle = "a point a canary; orange: mean with its 90 % interval; gray line: chance"
    return with_title(alt.layer(*layers), "Exposure of canaries vs repetitions", 280, subtitle)


def loss_chart(name: str, losses: Mapping[str, list[float]]) -> alt.TopLevelMixin:
    """Histograms of the loss of training and held-out samples, as shares of each."""
    values = np.concatenate([losses[key] for key in LABELS])
    edges = np.histogram_bin_edges(values, BINS)
    rows = [
        {"kind": label, "lo": float(lo), "hi": float(hi), "share": float(share)}
        for key, label in LABELS.items()
        for lo, hi, share in zip(edges, edges[1:], np.histogram(losses[key], edges)[0] / len(losses[key]), strict=False)
    ]
    chart = alt.Chart(pd.DataFrame(rows)).mark_line(interpolate="step-after", strokeWidth=1.8)
    chart = chart.encode(
        x=alt.X("lo:Q", title="loss of a sample (nats per token)", scale=alt.Scale(zero=False, nice=False)),
        y=alt.Y("share:Q", title="share of the samples"),
        color=kind_color([*LABELS.values()], "kind", alt.Legend(orient="top", title=None)),
        tooltip=["kind:N", "lo:Q", "hi:Q", "share:Q"],
    )
    return with_title(chart, f"Losses of training and held-out samples of {name}", 240)
