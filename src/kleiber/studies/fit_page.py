"""The HTML page that `kleiber fit --report` writes: a law fitted to a table, in one file that needs no network.

It shows one fit, or one for each value of a column, with the figures that exist for every law: observed vs predicted,
residuals, backtests, exponents by approach, and profile likelihoods. The study `scaling` adds figures by model size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from kleiber.charts.theme import Chart
from kleiber.studies.laws import figures as law_figures
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.laws_json import band_rate, intervals_by, lines, percent, rows_fitted
from kleiber.studies.laws.prediction import fitted_values
from kleiber.studies.laws.problem import pool
from kleiber.studies.laws.table import Table, label
from kleiber.studies.report import page
from kleiber.studies.scaling import record_figures, suspects_table
from kleiber.studies.study import Findings, headline
from kleiber.types import Json, Row

MOST_ROWS = 500  # at most this many rows are listed on the page


def write(
    out: Path, source: Path, form: Law, records: Mapping[str, Row], tables: Mapping[str, Table], by: str | None
) -> None:
    """Writes the page of the fits `records` (entries of laws.json by group, "" without --by) to `tables`."""
    charts, verdicts, titled, text, kept = {}, [], {}, [], []
    for number, (group, entry) in enumerate(records.items()):
        name = f"{by} = {group}" if by else ""
        rows = fitted_rows(tables[group], form, entry)
        charts |= {f"g{number}-{kind}": make() for kind, make in figures(rows, form, entry, name).items()}
        verdicts += [
            {**verdict, "text": f"{name}: {verdict['text']}" if by else verdict["text"]}
            for verdict in entry["verdicts"]
        ]
        tail = f", {name}" if by else ""
        titled[f"Parameters{tail}"] = parameters(entry)
        titled[f"Sensitivity to suspects{tail}"] = suspects_table(entry)
        text += [*([name] if by else []), *lines(entry), ""]
        kept += rows.to_dict("records")
    headlines = [f"{by} = {group}: {headline(entry)}" if by else headline(entry) for group, entry in records.items()]
    summary = {
        "study": f"{form.name} on {source.name}",
        "headline": "; ".join(headlines),
        "runs": f"{_rows_fitted(records)}, {sum(len(entry['excluded']) for entry in records.values())} excluded",
        "verdicts": verdicts, "tables": titled, "missing": [],
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    findings = Findings("", text=text, methods=methods(records))
    out.write_text(page(summary, findings, charts, kept[:MOST_ROWS]), encoding="utf-8")


def fitted_rows(rows: Table, form: Law, entry: Row) -> pd.DataFrame:
    """Returns the fitted rows: label, compute if known, inputs of the law, observed and predicted target.

    Pooled rows have the label of the first of them.
    """
    gone = {exclusion["row"] for exclusion in entry["excluded"]}
    rows = rows.drop(np.array([label(i) in gone for i in rows.frame.index]), "not fitted")
    pooled = pool(rows, form, entry["objective"]["space"])
    rows = rows if pooled is None else pooled.table
    inputs = rows.inputs(form)
    predicted = form.predict(inputs, fitted_values(entry))[0]
    names = [str(label(i)) for i in rows.frame.index]
    compute = {"C": rows.columns["C"]} if "C" in rows.columns else {}
    return pd.DataFrame({"row": names, **compute, **inputs, "observed": rows.target, "predicted": predicted})


def _rows_fitted(records: Mapping[str, Row]) -> str:
    """Returns how many rows were fitted in all groups, and how many were pooled."""
    if any(entry.get("pooled") for entry in records.values()):
        return "; ".join(rows_fitted(entry) for entry in records.values())
    return f"{sum(entry['n'] for entry in records.values()):,} rows fitted"


def figures(rows: pd.DataFrame, form: Law, entry: Row, name: str) -> dict[str, Callable[[], Chart]]:
    """Returns functions that draw the figures of a fit, by name of the figure."""
    return {
        "fit": lambda: law_figures.fitted(rows, form, name),
        "residuals": lambda: law_figures.percent_residuals(rows, form, name),
        **record_figures(entry),
    }


def parameters(entry: Row) -> list[Json]:
    """Returns a table row for each parameter and derived quantity: name, value and interval."""
    rows = []
    for name, estimate in {**entry["params"], **entry["derived"]}.items():
        interval = "fixed" if estimate.get("fixed") else "not identified"
        if estimate["lo"] is not None and estimate["identified"]:
            interval = f"[{estimate['lo']:.5g}, {estimate['hi']:.5g}]"
        rows.append({"parameter": name, "value": estimate["value"], f"{percent(entry['level'])} interval": interval})
    return rows


def methods(records: Mapping[str, Row]) -> str:
    """Returns the paragraph on methods, which describes the first fit."""
    entry = next(iter(records.values()))
    goal = entry["objective"]
    return (
        f"{entry['formula']} ({entry['source']}) was fitted by variable projection with a {goal['kind']} loss in "
        f"{goal['space']} space. Intervals have a confidence level of {percent(entry['level'])} "
        f"({intervals_by(entry)}). Backtests fit the rows at small compute, predict those at the largest, and compare "
        "the error with that of two naive predictors. The prediction interval of a new run includes "
        f"{band_rate(entry)}."
    )
