"""Training curves over compute, and their envelope: the lowest loss that any size reaches at a budget.

The envelope is the lowest loss that the curve of any size has reached with no more compute, as approach 1 of Hoffmann
et al. 2022, arXiv:2203.15556, takes it. It shows which sizes are worth their compute before any law is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, lines
from kleiber.charts.theme import Chart, Rows, format_count, log_axis, loss_axis, pointed, size_color
from kleiber.records.catalog import Run
from kleiber.studies.laws.figures import COMPUTE
from kleiber.studies.laws.law import Array
from kleiber.types import Json

FEWEST = 10  # logged steps of a curve
GRID = 200  # places over compute of smoothed curves
KERNEL = 0.4  # standard deviation of the kernel that smooths a curve, in natural logarithms of compute
FIRST = 6  # logged step at which a smoothed curve begins: from there on, the kernel has several steps


def training_curves(runs: Sequence[Run], size: str) -> pd.DataFrame:
    """Returns the training losses that the finished runs have logged: columns run, N, C = 6 N D, loss.

    size  column of the table of runs that is N

    Cooldowns, which start from a step of another stage, are left out: their losses fall with the learning rate, not
    with compute. Empty where nothing was logged.
    """
    stages = [(run, stage) for run in runs if run.finished for stage in run.stages if not stage.get("parent")]
    parts = [curve for run, stage in stages for curve in stage_curve(run, stage, size)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=pd.Index(["run", "N", "C", "loss"]))


def stage_curve(run: Run, stage: Json, size: str) -> list[pd.DataFrame]:
    """Returns the logged losses of a stage, if there are enough."""
    several = len(run.stages) > 1
    rows = [row for row in run.rows if "train/loss" in row and (not several or row.get("stage") == stage["name"])]
    N = run.stage_row(stage)[size]
    if len(rows) < FEWEST or not N:
        return []
    tokens = np.array([row["train/tokens"] for row in rows], dtype=float)
    tokens += stage["tokens"] - tokens.max()
    frame = pd.DataFrame({"C": 6.0 * N * tokens, "loss": [row["train/loss"] for row in rows]})
    return [frame.assign(N=N, run=f"{run.name} {stage['name']}")]


def smooth(curves: pd.DataFrame) -> pd.DataFrame:
    """Returns a curve for each size through the losses of all its runs: columns N, C, loss, at common values of C."""
    grid = np.geomspace(curves["C"].min(), curves["C"].max(), GRID)
    parts = []
    for N, of_size in curves.groupby("N", sort=True):
        within = grid[(grid >= np.unique(of_size["C"])[FIRST - 1]) & (grid <= 1.001 * of_size["C"].max())]
        x, y = np.log(of_size["C"].to_numpy()), np.log(of_size["loss"].to_numpy())
        parts.append(pd.DataFrame({"N": N, "C": within, "loss": np.exp(local_lines(x, y, np.log(within)))}))
    return pd.concat(parts, ignore_index=True)


def local_lines(x: Array, y: Array, at: Array) -> Array:
    """Returns, at each place, the value of the line through the points that are weighted by their distance to it."""
    distance = x[None] - at[:, None]
    weights = np.exp(-0.5 * (distance / KERNEL) ** 2)
    weights /= weights.sum(1, keepdims=True)
    center, level = (weights * distance).sum(1), weights @ y
    spread = np.maximum((weights * distance**2).sum(1) - center**2, 1e-12)
    slope = ((weights * distance) @ y - center * level) / spread
    return level - slope * center


def lowest(curves: pd.DataFrame) -> pd.DataFrame:
    """Returns the lowest loss of all smoothed curves up to each compute: columns C, loss."""
    low: Rows = curves.groupby("C", as_index=False)["loss"].min()
    return low.assign(loss=low["loss"].cummin())


def envelope(curves: pd.DataFrame) -> Chart:
    """Training loss vs compute: a smoothed line for each size, in front of their envelope."""
    shown = smooth(curves)
    low, shown = lowest(shown), shown.assign(size=[format_count(n) for n in shown["N"]])
    tables = [
        Marks(rows=low, value="loss", line=7.0, style={"opacity": 0.2, "strokeCap": "round"}, color="black"),
        Marks(rows=shown, value="loss", line=1.7, tips=["size:N"]),
    ]
    color = size_color(list(dict.fromkeys(shown["size"])), alt.Legend())
    x, y = (
        log_axis("C", COMPUTE, shown["C"]),
        loss_axis(title=pointed("training loss (nats per token)", "lower"), losses=shown["loss"]),
    )
    note = "lines: all runs of a size, smoothed, without first steps and cooldowns; "
    note += "wide gray line: the lowest loss of any size with at most this compute"
    return lines(tables, x, y, "Training curves and their envelope", color=color, subtitle=note)
