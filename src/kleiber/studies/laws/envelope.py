"""Training curves over compute, and their envelope: the lowest loss that any size reaches at a budget.

The envelope is the lowest loss that any curve has reached with no more compute, as approach 1 of Hoffmann et al. 2022,
arXiv:2203.15556, takes it. It shows which sizes are worth their compute before any law is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, lines
from kleiber.charts.theme import Chart, format_count, log_axis, loss_axis, size_color
from kleiber.records.catalog import Run
from kleiber.types import Json

SMOOTH = 5  # fewest logged steps, each of one batch, over which the loss of a curve is a mean
SHARE = 8  # of a longer curve, an eighth of its steps


def training_curves(runs: Sequence[Run], size: str) -> pd.DataFrame:
    """Returns the training losses that the finished runs have logged: columns run, N, C = 6 N D, loss.

    size  column of the table of runs that is N

    The curve of a stage is smoothed, and begins where the tokens of its path begin. Empty where nothing was logged.
    """
    parts = [curve for run in runs if run.finished for stage in run.stages for curve in stage_curve(run, stage, size)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=pd.Index(["run", "N", "C", "loss"]))


def stage_curve(run: Run, stage: Json, size: str) -> list[pd.DataFrame]:
    """Returns the curve of a stage, if it has enough rows."""
    several = len(run.stages) > 1
    rows = [row for row in run.rows if "train/loss" in row and (not several or row.get("stage") == stage["name"])]
    N = run.stage_row(stage)[size]
    if len(rows) < 2 * SMOOTH or not N:
        return []
    tokens = np.array([row["train/tokens"] for row in rows], dtype=float)
    tokens += stage["tokens"] - tokens.max()
    frame = pd.DataFrame({"C": 6.0 * N * tokens, "loss": [row["train/loss"] for row in rows]})
    means = pd.DataFrame(frame.rolling(max(SMOOTH, len(frame) // SHARE), center=True).mean()).dropna()
    return [means.assign(N=N, run=f"{run.name} {stage['name']}")]


def new_lows(compute: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Returns the places of the points whose loss is below that of all points of no more compute, by compute."""
    order = np.lexsort((loss, compute))
    before = np.minimum.accumulate(np.append(np.inf, loss[order]))[:-1]
    return order[loss[order] < before]


def envelope(curves: pd.DataFrame) -> Chart:
    """Training loss vs compute: a line for each stage of a run, colored by size, and their envelope in black."""
    shown = curves.assign(size=[format_count(n) for n in curves["N"]]).sort_values("N", kind="stable")
    lows = shown.iloc[new_lows(np.array(shown["C"]), np.array(shown["loss"]))]
    steps = {"interpolate": "step-after"}
    tables = [
        Marks(rows=shown, value="loss", line=1.0, style={"opacity": 0.6}, detail="run", tips=["size:N", "run:N"]),
        Marks(rows=lows, value="loss", line=2.0, style=steps, color="black"),
    ]
    color = size_color(list(dict.fromkeys(shown["size"])), alt.Legend())
    x, y = (
        log_axis("C", "training compute 6 N D (FLOPs)", shown["C"]),
        loss_axis(title="training loss (nats per token)"),
    )
    note = "each line is smoothed over steps; black: the lowest loss that any run reached with this compute"
    return lines(tables, x, y, "Training curves and their envelope", color=color, subtitle=note)
