"""A law of optimal hyperparameters for people: printed lines, table of optima, headline, methods and figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.studies.laws.hyperparameters import HyperparameterLaw
from kleiber.studies.laws.optima import WINDOW
from kleiber.studies.laws.optimum_prediction import outside_text, prediction_line, summary_line
from kleiber.studies.laws.table import Table, label
from kleiber.studies.laws.uncertainty import percent
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

NAMES = {"lr": "learning rate", "batch": "batch", "decay": "weight decay"}


def lines(entry: Row) -> list[str]:
    """Returns the printed lines of the joint fit, the backtests and the predictions."""
    level, out = percent(entry["level"]), []
    for name, value in entry.get("joint", {}).items():
        out.append(
            f"  joint fit: {name} = {value['value']:.4f}, {level} {format_interval(value['lo'], value['hi'], '.4f')}"
        )
    for test in entry["backtests"]:
        naive = ""
        if test["n_paired"]:
            naive = f"; the unchanged optimum of the largest group below: {test['naive']['unchanged']:.2%}"
        if 0 < test["n_paired"] < test["n_scored"]:
            groups = f"{test['n_paired']} group{'s' * (test['n_paired'] > 1)}"
            naive += f" in {groups}, where the law's choice costs {test['mare_paired']:.2%}"
        out.append(
            f"  backtest at {test['along']} = {test['cut']:.3g}: {test['n_train']} groups below; above, "
            f"{summary_line(test, test['n_test'])}{naive}"
        )
    return out + [f"  {prediction_line(prediction, entry['level'])}" for prediction in entry["predictions"]]


def headline(entry: Row) -> str:
    """Returns the exponents with their intervals and the cost of the choices in a backtest, or why there is no law."""
    for verdict in entry["verdicts"]:
        if verdict["level"] == "refuse":
            return f"No law was fitted: {verdict['text']}."
    unknown = [exponent(name) for name, value in entry["derived"].items() if not value["identified"]]
    exponents = {
        f"{exponent(name)}^{value['value']:.3f} {format_interval(value['lo'], value['hi'], '.3f')}": value
        for name, value in entry["derived"].items()
        if value["identified"] and value["lo"] is not None
    }
    clear = [text for text, value in exponents.items() if value["lo"] > 0 or value["hi"] < 0]
    unclear = [text for text in exponents if text not in clear]
    parts = [f"the best values vary as {', '.join(clear)}"] if clear else []
    parts += [f"undecided: {', '.join(unclear)}"] if unclear else []
    parts += [f"not identified: {', '.join(unknown)}"] if unknown else []
    tested = [test for test in entry["backtests"] if test["mare"] is not None]
    if tested:
        test = tested[0]
        parts.append(
            f"fitted below {test['along']} = {test['cut']:.2g}, the law chooses hyperparameters for {test['n_scored']} "
            f"larger groups that cost {test['mare']:.2%} of the loss on average, {test['worst']:.2%} at most"
            f"{outside_text(test['n_test'], test['n_scored'])}"
        )
    text = "; ".join(parts) or "the exponents have no intervals, since no refits were made"
    return f"{text[0].upper()}{text[1:]}."


def exponent(name: str) -> str:
    """Returns what people call an exponent, such as `learning rate ~ N` for `lr_N`."""
    quantity, _, grows_with = name.partition("_")
    return f"{NAMES.get(quantity, quantity)} ~ {grows_with}"


def methods(entry: Row) -> str:
    """Returns the paragraph on methods."""
    used = entry["bootstrap"]
    how = {
        "cluster t": "simulated optima, with their covariance, the scatter around the law and the width of Student's t",
        "cluster bootstrap": "resampled groups",
    }
    intervals = f"percentiles of {used['draws']} refits to {how[used['method']]}" if used else "not computed"
    return (
        "A quadratic surface in the logarithms of the hyperparameters was fitted to the log losses of each group of "
        f"equal N and D, over the runs within {WINDOW:.0%} of the least loss (more where those are few, or as noisy). "
        "Groups whose least loss is at the edge of their grid were left out. The law of each hyperparameter "
        f"({entry['formula']}; {entry['source']}) was fitted to the optima, weighted by their delta-method variances "
        "plus a scatter around the law estimated by restricted maximum likelihood; intervals at "
        f"{percent(entry['level'])} are {intervals}. The joint fit has the power laws inside one least-squares fit of "
        "all losses, with intervals by the jackknife over groups. Backtests interpolate the loss of the chosen "
        "hyperparameters in the sweeps of larger groups."
    )


def table(entry: Row, form: object) -> list[Json]:
    """Returns a table row for each group: size, tokens, runs, and the optimum with its interval or why it has none."""
    if not isinstance(form, HyperparameterLaw):
        return []
    rows = []
    for row in entry["optima"]:
        shown: Json = {"N": row["N"], "D": row["D"], "runs": row["runs"], "runs in the surface": row["used"]}
        for axis in form.axes:
            text = f"none ({row['place']})"
            if row[axis] is not None:
                text = f"{row[axis]:.3g} {format_interval(row[f'{axis}_lo'], row[f'{axis}_hi'], '.3g')}"
            shown[f"optimal {NAMES[axis]}"] = text
        rows.append(shown)
    return rows


def swept_rows(rows: Table, form: HyperparameterLaw) -> pd.DataFrame:
    """Returns the rows of a sweep: label, N, D, the hyperparameters and the observed loss."""
    names = [str(label(i)) for i in rows.frame.index]
    columns = {name: np.asarray(rows.columns[name]) for name in ("N", "D", *form.axes)}
    return pd.DataFrame({"row": names, **columns, "observed": rows.target})


def figures(entry: Row, form: HyperparameterLaw, rows: Table | None) -> dict[str, Callable[[], Chart]]:
    """Returns functions that draw the figures, by name."""
    from kleiber.studies.laws import optimum_figures

    return optimum_figures.figures(entry, form, rows)
