"""Figures of a law of optimal hyperparameters: the loss around each optimum, and the optima with the law's band."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.theme import Chart, count_tip, format_count, log_axis, size_color, with_title
from kleiber.studies.laws.hyperparameters import POWERS, HyperparameterLaw
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.optima import INSIDE
from kleiber.studies.laws.prediction import fitted_values
from kleiber.studies.laws.table import Table
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.types import Row

LABELS = {"lr": "learning rate", "batch": "batch (tokens)", "decay": "weight decay"}
INPUTS = {"N": "parameters N", "D": "training tokens D", "M": "tokens per parameter D/N"}
BEYOND = 4.0  # the law is drawn up to this factor outside the fitted groups
SHOWN = 0.05  # relative excess loss up to which runs are drawn


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
    """Excess loss vs one hyperparameter, a line for each group, with the other hyperparameters as in its best run."""
    parts, best, left_out = [], [], 0
    groups = record["optima"]
    N, D = rows.columns["N"], rows.columns["D"]
    others = [other for other in form.axes if other != axis]
    for row in groups:
        near = (np.abs(N / row["N"] - 1) < 0.05) & (np.abs(D / row["D"] - 1) < 0.05)
        for other in others:
            near &= np.isclose(rows.columns[other], row[f"{other}_best_run"], rtol=1e-6)
        name = {"size": format_count(row["N"]), "tokens": format_count(row["D"]), "group": f"{row['N']:g} {row['D']:g}"}
        swept, member = np.unique(rows.columns[axis][near], return_inverse=True)
        excess = 100 * (np.bincount(member, rows.target[near]) / np.bincount(member) / row["loss"] - 1)
        close = excess <= 100 * SHOWN
        left_out += int(np.isin(member, np.flatnonzero(~close)).sum())
        parts.append(pd.DataFrame({"value": swept[close], "excess": excess[close]}).assign(**name))
        if row[axis] is not None:
            best.append({"value": row[axis], "excess": 0.0, **name})
    shown = pd.concat(parts, ignore_index=True)
    sizes = [format_count(size) for size in sorted({row["N"] for row in groups})]
    color = size_color(sizes, alt.Legend())
    x = log_axis("value", LABELS[axis], [*shown["value"], *(row["value"] for row in best)])
    y = alt.Y("excess:Q", title="loss above the group's best run (%)", scale=alt.Scale(domain=[0, 100 * SHOWN]))
    base = alt.Chart(shown).encode(x=x, y=y, color=color)
    tip = ["size:N", "tokens:N", alt.Tooltip("value:Q", format=".3g"), alt.Tooltip("excess:Q", format=".2f")]
    lines = base.mark_line(strokeWidth=1.2, opacity=0.8).encode(detail="group:N")
    layers = [lines, base.mark_point(filled=True, size=22, opacity=0.9).encode(tooltip=tip)]
    if best:
        marks = alt.Chart(pd.DataFrame(best)).mark_point(shape="triangle-up", size=80, filled=True, yOffset=-4)
        layers.append(marks.encode(x=x, y=y, color=color, tooltip=tip[:3]))
    held = f"; {' and '.join(LABELS[other].partition(' (')[0] for other in others)} of the best run" if others else ""
    subtitle = f"a line for each size and number of tokens{held}" + "; triangles: fitted optima" * bool(best)
    subtitle += f"; {left_out} runs above {100 * SHOWN:g} % not shown" * bool(left_out)
    return with_title(alt.layer(*layers), f"Excess loss vs {LABELS[axis]}", subtitle=subtitle)


def optima(record: Row, form: HyperparameterLaw, axis: str, along: str) -> Chart:
    """The optimal value of a hyperparameter vs one input of its law, with the law's band.

    The optima are moved along the law to the mean of its other input, so that they lie on one curve if it holds.
    """
    kept = pd.DataFrame([row for row in record["optima"] if row["place"] == INSIDE])
    inputs = {"N": kept["N"].to_numpy(), "D": kept["D"].to_numpy(), "M": (kept["D"] / kept["N"]).to_numpy()}
    held = {name: float(np.exp(np.log(inputs[name]).mean())) for name in POWERS[axis][1] if name != along}
    values, draws = fitted_values(record), np.array(record["draws"]).reshape(-1, len(form.params))
    moved = form.optimum(axis, {**inputs, **_constant(held, len(kept))}, values)[0]
    moved /= form.optimum(axis, inputs, values)[0]
    marks = pd.DataFrame({"at": inputs[along], "N": kept["N"], "D": kept["D"], "value": kept[axis] * moved})
    marks = marks.assign(lo=kept[f"{axis}_lo"] * moved, hi=kept[f"{axis}_hi"] * moved)
    marks = marks.assign(size=[format_count(size) for size in kept["N"]])
    at = np.geomspace(inputs[along].min() / BEYOND, inputs[along].max() * BEYOND, 60)
    line = _curve(form, axis, {along: at, **_constant(held, 60)}, values, draws, record["level"])
    line = line.assign(at=at, beyond=(at < inputs[along].min()) | (at > inputs[along].max()))
    x = log_axis("at", INPUTS[along], at)
    ends = [*marks["lo"], *marks["hi"], *line["value"]]
    y, low = (log_axis(name, f"optimal {LABELS[axis]}", ends, kind=alt.Y) for name in ("value", "lo"))
    layers = []
    if "lo" in line:
        layers.append(alt.Chart(line).mark_area(opacity=0.2, color="#444", clip=True).encode(x=x, y=low, y2="hi:Q"))
    base = alt.Chart(line).encode(x=x, y=y)
    layers.append(base.mark_line(color="black", strokeWidth=1.4, strokeDash=[5, 4]))
    layers.append(base.transform_filter("!datum.beyond").mark_line(color="black", strokeWidth=2))
    color = size_color([format_count(size) for size in sorted(kept["N"].unique())], alt.Legend())
    points = alt.Chart(marks).encode(x=x, color=color)
    layers.append(points.mark_rule(strokeWidth=1.4).encode(y=low, y2="hi:Q"))
    tip = [count_tip("N"), count_tip("D"), alt.Tooltip("value:Q", format=".3g")]
    layers.append(points.mark_point(filled=True, size=56, opacity=1).encode(y=y, tooltip=tip))
    where = "".join(f", at {name} = {format_count(value)}" for name, value in held.items())
    subtitle = f"line and band: the law with its {percent(record['level'])} interval; dashed: extrapolated"
    return with_title(
        alt.layer(*layers), f"Optimal {LABELS[axis].partition(' (')[0]} vs {INPUTS[along]}{where}", subtitle=subtitle
    )


def _constant(values: dict[str, float], count: int) -> dict[str, Array]:
    return {name: np.full(count, value) for name, value in values.items()}


def _curve(
    form: HyperparameterLaw, axis: str, inputs: dict[str, Array], values: Array, draws: Array, level: float
) -> pd.DataFrame:
    """Returns the law's curve with its interval: columns value and, if there are refits, lo and hi."""
    curve = pd.DataFrame({"value": form.optimum(axis, inputs, values)[0]})
    if len(draws):
        lo, hi = interval(form.optimum(axis, inputs, draws), level)
        curve = curve.assign(lo=lo, hi=hi)
    return curve
