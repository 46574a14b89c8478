"""Figures of memorization: exposure of canaries by their repetitions, and losses of training and held-out samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts import KINDS, Marks, histogram, kind_color, lines
from kleiber.types import Json

Rows = Any  # a DataFrame; the stubs of pandas do not type what indexing returns
CHANCE = math.log2(math.e)  # mean exposure of a secret whose rank is uniform, in bits
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
    order, color = sorted(set(points["repetitions"])), alt.Legend(orient="top", title=None)
    x = alt.X("repetitions:O", sort=order, title="repetitions in the training text", axis=alt.Axis(labelAngle=0))
    tips = ["repetitions:O", alt.Tooltip("exposure:Q", format=".2f"), "state:N"]
    tick = {"shape": "stroke", "strokeWidth": 3, "filled": False}
    tables = [
        Marks(rows=points, value="exposure", points=30, opacity=0.45, tips=tips),
        Marks(rows=means, bars=1.0, points=680, color=KINDS[2], point_style=tick),
    ]
    return lines(
        tables, x, alt.Y("exposure:Q", title="exposure (bits)"), "Exposure of canaries vs repetitions", height=280,
        color=kind_color(["not extracted", "extracted"], "state", color), reference=CHANCE,
        subtitle="a point a canary; orange: mean with its 90% interval; dashed: chance",
    )  # fmt: skip


def loss_chart(name: str, losses: Mapping[str, list[float]]) -> alt.TopLevelMixin:
    """Histograms of the loss of training and held-out samples, as shares of each."""
    samples, title = {label: losses[key] for key, label in LABELS.items()}, "Losses of training and held-out samples of"
    return histogram(samples, "loss of a sample (nats per token)", "share of the samples", f"{title} {name}")
