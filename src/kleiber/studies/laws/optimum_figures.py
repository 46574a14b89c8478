"""Figures of a law of optimal hyperparameters: the loss around each optimum, and the optima with the law's band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, lines, set_apart
from kleiber.charts.theme import (
    Chart,
    Rows,
    count_tip,
    format_count,
    log_axis,
    pointed,
    round_count,
    size_color,
    span_ticks,
)
from kleiber.studies.laws.hyperparameters import POWERS, HyperparameterLaw
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.optima import INSIDE
from kleiber.studies.laws.prediction import fitted_values
from kleiber.studies.laws.table import Table
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.types import Row

LABELS = {"lr": "learning rate", "batch": "batch size (tokens)", "decay": "weight decay"}
TOKENS = "training tokens"
INPUTS = {"N": "parameters", "D": TOKENS, "M": "training tokens per parameter"}
BEYOND = 2.0  # the law is drawn up to this factor outside the fitted groups
WIDEST = 10.0  # a band is drawn up to this factor outside the optima and the law
SHOWN = {"lr": 5, "batch": 5, "decay": 8}  # percent of excess loss up to which runs are drawn
APART = {"losses": 1.03, "optima": 1.05}  # factor between the places of series at one value


def figures(record: Row, form: HyperparameterLaw, rows: Table | None) -> dict[str, Callable[[], Chart]]:
    """Returns functions that draw the figures, by name; that of the losses needs the fitted `rows`."""
    charts: dict[str, Callable[[], Chart]] = {}
    if rows is not None:
        charts |= {f"loss-{axis}": partial(losses, record, form, rows, axis) for axis in form.axes}
    if any(row["place"] == INSIDE for row in record["optima"]):
        for axis in form.axes:
            for name in POWERS[axis][1]:
                charts[f"{axis}-{name}"] = partial(optima, record, form, axis, name)
    return charts


def losses(record: Row, form: HyperparameterLaw, rows: Table, axis: str) -> Chart:
    """Excess loss vs one hyperparameter, each of its values with the best values of the others: a panel for each size,
    a line for each number of tokens."""
    groups, others = sorted(record["optima"], key=lambda row: row["N"]), [other for other in form.axes if other != axis]
    swept: Rows = pd.concat([_sweep(row, rows, axis, others) for row in groups], ignore_index=True)
    tokens = list(dict.fromkeys(round_count(number) for number in sorted({row["D"] for row in groups})))
    top = min(float(SHOWN[axis]), 1.1 * float(swept["excess"].max()))
    optimal = [row for row in groups if row[axis] is not None]
    best = pd.DataFrame([{**_names(row), "value": row[axis], "excess": -0.04 * top} for row in optimal])
    shape = alt.Shape("tokens:N", title=TOKENS, sort=tokens, scale=alt.Scale(domain=tokens))
    tips = ["size:N", "tokens:N", alt.Tooltip("value:Q", format=".3g"), alt.Tooltip("excess:Q", format=".2f")]
    clip, placed = {"clip": True}, set_apart(swept, "value", "tokens", tokens, APART["losses"])
    tables = [
        Marks(
            rows=placed, value="excess", line=1.8, detail="group", points=40, shape=shape, point_style=clip, tips=tips
        )
    ]
    if len(best):
        vertex = {"shape": "stroke", "angle": 90, "strokeWidth": 2.5, "filled": False}
        tables.append(Marks(rows=best, value="excess", points=70, point_style=vertex, tips=tips[:3]))
    name, held = _bare(axis), " and ".join(map(_bare, others))
    notes = [f"each {name} at its best {held}" if others else "", "points at one value are set slightly apart"]
    notes += ["short lines below 0: fitted optima" * bool(len(best)), *_edge_notes(swept, name)]
    notes += [f"lines that leave the panel go on above {top:g}%"] * _leaves(swept, top)
    x = log_axis("value", LABELS[axis], swept.loc[swept["excess"] <= top, "value"])
    scale, ticks = (
        alt.Scale(domain=[-0.08 * top, top], nice=False),
        [tick for tick in span_ticks([0, top]) if tick <= top],
    )
    y = alt.Y(
        "excess:Q", title=pointed("loss above the best run (%)", "lower"), scale=scale, axis=alt.Axis(values=ticks)
    )
    return lines(
        tables, x, y, f"Loss above the best run vs {name}", color=size_color(tokens, alt.Legend(), TOKENS, "tokens"),
        panel="size", subtitle="; ".join(filter(None, notes)),
    )  # fmt: skip


def _sweep(row: Row, rows: Table, axis: str, others: Sequence[str]) -> pd.DataFrame:
    """The excess loss in percent at each value of a hyperparameter in a group, at the best values of the others."""
    N, D = rows.columns["N"], rows.columns["D"]
    near = (np.abs(N / row["N"] - 1) < 0.05) & (np.abs(D / row["D"] - 1) < 0.05)
    runs = pd.DataFrame({name: rows.columns[name][near] for name in (axis, *others)}).assign(loss=rows.target[near])
    means = runs.groupby([axis, *others], as_index=False).agg(loss=("loss", "mean"))
    least = means.groupby(axis, as_index=False).agg(loss=("loss", "min"))
    excess = 100 * (least["loss"].to_numpy() / row["loss"] - 1)
    return pd.DataFrame({"value": least[axis].to_numpy(), "excess": excess}).assign(**_names(row))


def _edge_notes(swept: pd.DataFrame, name: str) -> list[str]:
    """Says that the best value of every group is the smallest or the largest that was tried, where that is so."""
    best = swept.loc[swept.groupby("group")["excess"].idxmin(), "value"]
    ends = {"smallest": swept["value"].min(), "largest": swept["value"].max()}
    return [f"the {side} {name} tried is the best, so the optimum may lie beyond" for side, end in ends.items()
            if (best == end).all()]  # fmt: skip


def _leaves(swept: pd.DataFrame, top: float) -> bool:
    """Whether a line goes above the panel."""
    return bool((swept["excess"] > top).any())


def _bare(axis: str) -> str:
    """The label of a hyperparameter without its unit."""
    return LABELS[axis].partition(" (")[0]


def _names(row: Row) -> dict[str, str]:
    """What a figure calls the size and the number of tokens of a group, and a name of both."""
    return {"size": _size(row["N"]), "tokens": round_count(row["D"]), "group": f"{row['N']:g} {row['D']:g}"}


def _size(number: float) -> str:
    return f"{format_count(number)} parameters"


def optima(record: Row, form: HyperparameterLaw, axis: str, along: str) -> Chart:
    """The optimal value of a hyperparameter vs one input of its law, with the law and its band.

    A law of another input too has a line for each of its values that the groups have.
    """
    kept = pd.DataFrame([row for row in record["optima"] if row["place"] == INSIDE])
    inputs = kept.assign(M=kept["D"] / kept["N"])
    others = [name for name in POWERS[axis][1] if name != along]
    by = others[0] if others else next(name for name in "ND" if name != along)
    series = [format_count(number) if by == "N" else round_count(number) for number in inputs[by]]
    marks: Rows = pd.DataFrame(
        {"at": inputs[along], "N": kept["N"], "D": kept["D"], "value": kept[axis], "series": series}
    )
    marks = marks.assign(lo=kept[f"{axis}_lo"], hi=kept[f"{axis}_hi"], by=inputs[by]).sort_values("by", kind="stable")
    order = list(dict.fromkeys(marks["series"]))
    values, draws = fitted_values(record), np.array(record["draws"]).reshape(-1, len(form.params))
    ends = float(marks["at"].min()), float(marks["at"].max())
    at = np.unique([*np.geomspace(ends[0] / BEYOND, ends[1] * BEYOND, 60), *ends])
    curves = pd.concat([
        _curve(form, axis, {along: at, **dict.fromkeys(others, np.full(len(at), held))}, values, draws, record["level"])
        .assign(at=at, series=name, beyond=(at < ends[0]) | (at > ends[1]))
        for name, held in (marks.groupby("series", sort=False)["by"].mean().items() if others else [("", 1.0)])
    ], ignore_index=True)  # fmt: skip
    color = size_color(order, alt.Legend(), INPUTS[by], "series")
    tips = [count_tip("N"), count_tip("D"), alt.Tooltip("value:Q", format=".3g")]
    placed = set_apart(marks, "at", "series", order, APART["optima"])
    tables = [
        Marks(rows=curves, line=2.0, dashed="beyond", band=0.12, color=None if others else "black"),
        Marks(rows=placed, bars=1.0, points=56, tips=tips),
    ]
    x, name = log_axis("at", INPUTS[along], at), LABELS[axis]
    near = [*marks["value"], *curves["value"]]
    heights = np.concatenate([frame[end] for frame in (marks, curves) for end in ("lo", "hi") if end in frame] + [near])
    heights = np.clip(heights, min(near) / WIDEST, max(near) * WIDEST)
    y, percents = log_axis("value", f"optimal {name}", heights, kind=alt.Y), percent(record["level"])
    drawn = f"line{'s' * bool(others)} and band{'s' * bool(others)}: the law with its {percents} interval"
    subtitle = f"{drawn}; dashed: extrapolated; bars: {percents} intervals"
    return lines(tables, x, y, f"Optimal {_bare(axis)} vs {INPUTS[along]}", color=color, subtitle=subtitle)


def _curve(
    form: HyperparameterLaw, axis: str, inputs: dict[str, Array], values: Array, draws: Array, level: float
) -> pd.DataFrame:
    """Returns the law's curve with its interval: columns value and, if there are refits, lo and hi."""
    curve = pd.DataFrame({"value": form.optimum(axis, inputs, values)[0]})
    if len(draws):
        lo, hi = interval(form.optimum(axis, inputs, draws), level)
        curve = curve.assign(lo=lo, hi=hi)
    return curve
