"""Figures of a law of N and D: IsoFLOP parabolas, lines of equal loss, and measured against predicted loss."""

from __future__ import annotations

import re

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, lines
from kleiber.charts.theme import (
    SUPERSCRIPT,
    Chart,
    count_tip,
    decimals_of,
    format_count,
    log_axis,
    loss_axis,
    size_color,
    span,
    span_ticks,
)
from kleiber.inference.parabola import fit_parabola
from kleiber.studies.laws.allocation import budget_groups
from kleiber.studies.laws.figures import EQUAL, TIP, curve, with_sizes
from kleiber.studies.laws.law import Array, Law
from kleiber.types import Row

NEAR = 8.0  # sizes that differ from the best by more than this factor are not fitted, see `allocation.vertices`
MOST_LOSSES = [0.04, 0.9]  # quantiles of the losses between which there are lines of equal loss
GRID = 160  # points of a line


def equation(record: Row) -> str:
    """Returns the formula of a law with its fitted values, such as `L = 0.967 + 66.7/N^0.477 + 1,010/D^0.463`."""
    text = str(record["formula"])
    for name, entry in record["params"].items():
        value = "?" if entry["value"] is None else f"{float(format(entry['value'], '.3g')):,g}"
        text = re.sub(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", value, text)
    return re.sub(r" ([A-Z])\^-(?=[\d.])", r"/\1^", text)


def power_text(budget: float) -> str:
    """Returns a budget with two digits, such as 2.0·10¹²."""
    lead, _, power = f"{budget:.1e}".partition("e")
    return f"{lead}·10{str(int(power)).translate(SUPERSCRIPT)}"


def has_budgets(rows: pd.DataFrame) -> bool:
    """Whether rows are groups of equal compute with at least four sizes each, as a design of IsoFLOP profiles has."""
    return bool(groups_of(rows))


def groups_of(rows: pd.DataFrame) -> list[tuple[float, Array, Array]]:
    """Returns the compute, sizes and losses of each budget; empty where rows are no groups of equal compute."""
    N, C, loss = (rows[name].to_numpy(dtype=float) for name in ("N", "C", "loss"))
    return budget_groups(N, C, loss)


def isoflop(rows: pd.DataFrame) -> Chart:
    """Returns IsoFLOP profiles: loss vs parameters at each compute budget, with the parabola and its minimum."""
    points, curves, minima = [], [], []
    for budget, sizes, losses in groups_of(rows):
        label, x = power_text(budget), np.log(sizes)
        points += [{"budget": label, "N": size, "loss": loss} for size, loss in zip(sizes, losses, strict=True)]
        near = np.abs(x - x[np.argmin(losses)]) <= np.log(NEAR)
        if (fit := fit_parabola(x[near], losses[near])) is None:
            continue
        along = np.linspace(x[near].min(), x[near].max(), GRID)
        pairs = zip(np.exp(along), fit.at(along), strict=True)
        curves += [{"budget": label, "N": size, "loss": loss} for size, loss in pairs]
        if x[near].min() < fit.vertex < x[near].max():
            minima.append({"budget": label, "N": np.exp(fit.vertex), "loss": float(fit.at(fit.vertex))})
    shown = pd.DataFrame(points)
    budgets = list(dict.fromkeys(shown["budget"]))
    tips = ["budget:N", count_tip("N"), alt.Tooltip("loss:Q", format=".4f")]
    tables = [
        Marks(rows=pd.DataFrame(curves), value="loss", line=1.8),
        Marks(rows=shown, value="loss", points=46, tips=tips),
    ]
    if minima:
        tables.append(Marks(rows=pd.DataFrame(minima), value="loss", points=150, shape=alt.value("diamond"), tips=tips))
    x_axis = log_axis("N", "parameters", shown["N"])
    color = size_color(budgets, alt.Legend(), "training compute (FLOPs)", "budget")
    subtitle = (
        "points: runs of about equal training compute; lines: a parabola for each compute; diamonds: its minimum, the "
        "compute-optimal size"
    )
    axis, title = loss_axis(losses=shown["loss"]), "Validation loss vs model size at equal compute (IsoFLOP profiles)"
    return lines(tables, x_axis, axis, title, color=color, height=360, subtitle=subtitle)


def contours(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Returns lines of equal loss of the law over N and D, with the runs."""
    N, D = (rows[name].to_numpy(dtype=float) for name in ("N", "D"))
    sizes, tokens = (np.geomspace(values.min() / 1.3, values.max() * 1.3, GRID) for values in (N, D))
    losses = [curve(law, record, N=np.full(GRID, size), D=tokens) for size in sizes]
    levels = span_ticks(np.quantile(np.concatenate(losses), MOST_LOSSES))
    texts = [f"{level:.{decimals_of(levels)}f}" for level in levels]
    lines_of_equal_loss = []
    for level, text in zip(levels, texts, strict=True):
        for size, column in zip(sizes, losses, strict=True):
            if column.min() <= level <= column.max():  # the loss falls with D
                at = float(np.exp(np.interp(-level, -column, np.log(tokens))))
                lines_of_equal_loss.append({"level": text, "N": size, "D": at})
    drawn = pd.DataFrame(lines_of_equal_loss)
    shown = with_sizes(rows, record)
    ends = drawn.loc[drawn.groupby("level", sort=False)["N"].idxmax()]
    color = size_color(texts, None, "loss", "level")
    y = log_axis("D", "training tokens", tokens, kind=alt.Y)
    tables = [
        Marks(rows=drawn, value="D", line=1.6, order="N", tips=["level:N"]),
        Marks(rows=ends, value="D", name="level"),
        Marks(rows=shown, value="D", points=34, hollow="early", color="black", tips=[*TIP, count_tip("D")]),
    ]
    x = log_axis("N", "parameters", sizes, room=1.6)
    subtitle = f"{equation(record)}; numbers at the lines: loss in nats per token; points: runs{not_fitted(shown)}"
    return lines(tables, x, y, "Lines of equal loss of the fitted law", color=color, height=360, subtitle=subtitle)


def not_fitted(shown: pd.DataFrame) -> str:
    """Returns what a subtitle says of hollow points, if there are any."""
    return "; hollow: too few tokens, not fitted" if shown["early"].to_numpy().any() else ""


def predicted(rows: pd.DataFrame, law: Law, record: Row) -> Chart:
    """Returns the measured loss of every run against that of the law; on the dashed line they are equal."""
    shown = with_sizes(rows, record)
    fitted = curve(law, record, N=shown["N"].to_numpy(dtype=float), D=shown["D"].to_numpy(dtype=float))
    shown = shown.assign(predicted=fitted)
    values = np.concatenate([fitted, shown["loss"].to_numpy(dtype=float)])
    ends = [float(values.min()), float(values.max())]
    diagonal = pd.DataFrame({"predicted": ends, "loss": ends})
    scale = span(ends)
    ticks = alt.Axis(tickCount=6)
    x = alt.X("predicted:Q", title="loss predicted by the law (nats per token)", scale=scale, axis=ticks)
    y = alt.Y("loss:Q", title="measured loss (nats per token)", scale=scale)
    tips = [*TIP, alt.Tooltip("predicted:Q", format=".4f")]
    tables = [
        Marks(rows=diagonal, value="loss", line=1.2, dash=[5, 4], color="#888"),
        Marks(rows=shown, value="loss", points=46, hollow="early", tips=tips),
    ]
    sizes = [format_count(size) for size in sorted(shown["N"].unique())]
    subtitle = f"{equation(record)}; {EQUAL}{not_fitted(shown)}"
    color = size_color(sizes, alt.Legend())
    return lines(tables, x, y, "Measured vs predicted loss", color=color, height=360, subtitle=subtitle)
