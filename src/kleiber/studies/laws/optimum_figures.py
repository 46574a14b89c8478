"""Figures of a law of optimal hyperparameters: the loss around each optimum, and the optima with the law's band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts.series import Marks, lines
from kleiber.charts.theme import Chart, count_tip, format_count, log_axis, size_color
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
    """Excess loss vs one hyperparameter, with the others as in the best run: a panel for each size, a line for each
    number of tokens."""
    groups, others = sorted(record["optima"], key=lambda row: row["N"]), [other for other in form.axes if other != axis]
    swept = pd.concat([_sweep(row, rows, axis, others) for row in groups], ignore_index=True)
    close = swept["excess"].to_numpy() <= 100 * SHOWN
    left_out = int(swept["runs"].to_numpy()[~close].sum())
    best = pd.DataFrame([{**_names(row), "value": row[axis], "excess": 0.0} for row in groups if row[axis] is not None])
    tokens = list(dict.fromkeys(format_count(number) for number in sorted({row["D"] for row in groups})))
    widths = alt.Scale(domain=tokens, range=np.linspace(2.4, 1.2, len(tokens)).tolist())  # lines may coincide
    tips = ["size:N", "tokens:N", alt.Tooltip("value:Q", format=".3g"), alt.Tooltip("excess:Q", format=".2f")]
    width = alt.StrokeWidth("tokens:N", scale=widths, legend=None)
    tables = [Marks(rows=swept[close], value="excess", line=1.8, width=width, detail="group", points=32, tips=tips)]
    if len(best):
        vertex = {"shape": "triangle-up", "yOffset": -4}
        tables.append(Marks(rows=best, value="excess", points=80, point_style=vertex, tips=tips[:3]))
    held = f"; {' and '.join(LABELS[other].partition(' (')[0] for other in others)} of the best run" if others else ""
    subtitle = f"a line for each number of tokens{held}" + "; triangles: fitted optima" * bool(len(best))
    subtitle += f"; {left_out} runs above {100 * SHOWN:g}% not shown" * bool(left_out)
    x, scale = log_axis("value", LABELS[axis], swept["value"][close]), alt.Scale(domain=[0, 100 * SHOWN])
    y, heading = alt.Y("excess:Q", title="loss above the best run (%)", scale=scale), LABELS[axis].partition(" (")[0]
    color = size_color(tokens, alt.Legend(), "training tokens D", "tokens")
    return lines(tables, x, y, f"Excess loss vs {heading}", color=color, panel="size", subtitle=subtitle)


def _sweep(row: Row, rows: Table, axis: str, others: Sequence[str]) -> pd.DataFrame:
    """The excess loss in percent at each value of a hyperparameter in a group, and the number of its runs."""
    N, D = rows.columns["N"], rows.columns["D"]
    near = (np.abs(N / row["N"] - 1) < 0.05) & (np.abs(D / row["D"] - 1) < 0.05)
    for other in others:
        near &= np.isclose(rows.columns[other], row[f"{other}_best_run"], rtol=1e-6)
    values, member = np.unique(rows.columns[axis][near], return_inverse=True)
    runs = np.bincount(member)
    excess = 100 * (np.bincount(member, rows.target[near]) / runs / row["loss"] - 1)
    return pd.DataFrame({"value": values, "excess": excess, "runs": runs}).assign(**_names(row))


def _names(row: Row) -> dict[str, str]:
    """What a figure calls the size and the number of tokens of a group, and a name of both."""
    return {"size": _size(row["N"]), "tokens": format_count(row["D"]), "group": f"{row['N']:g} {row['D']:g}"}


def _size(number: float) -> str:
    return f"N = {format_count(number)}"


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
    at = np.geomspace(inputs[along].min() / BEYOND, inputs[along].max() * BEYOND, 60)
    line = _curve(form, axis, {along: at, **_constant(held, 60)}, values, draws, record["level"])
    line = line.assign(at=at, beyond=(at < inputs[along].min()) | (at > inputs[along].max()))
    marks = marks.assign(size=[format_count(size) for size in kept["N"]])
    color = size_color([format_count(size) for size in sorted(kept["N"].unique())], alt.Legend())
    tips = [count_tip("N"), count_tip("D"), alt.Tooltip("value:Q", format=".3g")]
    tables = [
        Marks(rows=line, line=2.0, dashed="beyond", band=0.15, color="black"),
        Marks(rows=marks, bars=1.0, points=56, tips=tips),
    ]
    x, name = log_axis("at", INPUTS[along], at), LABELS[axis]
    y = log_axis("value", f"optimal {name}", [*marks["lo"], *marks["hi"], *line["value"]], kind=alt.Y)
    where = "".join(f", at {name} = {format_count(value)}" for name, value in held.items())
    subtitle = f"line and band: the law with its {percent(record['level'])} interval; dashed: extrapolated"
    heading = f"Optimal {name.partition(' (')[0]} vs {INPUTS[along]}{where}"
    return lines(tables, x, y, heading, color=color, subtitle=subtitle)


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
