"""The page of `kleiber fit --report`: what a law makes of anybody's table, in one HTML file that needs no network.

One fit, or one for each value of a column. It draws what any law has: found against predicted, residuals, and what the
record holds of backtests, approaches and profiles. Frontiers by size are for ladders (`scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.studies.laws import figures as fit_plots
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.laws_json import band_rate, intervals_by, lines, percent
from kleiber.studies.laws.prediction import fitted_values
from kleiber.studies.laws.table import Table, label
from kleiber.studies.report import page
from kleiber.studies.scaling import beside, headline, of_record
from kleiber.studies.study import Findings

MOST_ROWS = 500  # that are listed below the figures


def write(
    out: Path, source: Path, form: Law, records: Mapping[str, Any], tables: Mapping[str, Table], by: str | None
) -> None:
    """Writes the page of the records `found` (laws.json's content by group, "" where there is one) of `tables`."""
    charts, verdicts, told, text, kept = {}, [], {}, [], []
    for number, (group, entry) in enumerate(records.items()):
        name = f"{by} = {group}" if by else ""
        rows = used(tables[group], form, entry)
        charts |= {f"g{number}-{kind}": make() for kind, make in figures(rows, form, entry, name).items()}
        verdicts += [{**one, "text": f"{name}: {one['text']}" if by else one["text"]} for one in entry["verdicts"]]
        tail = f", {name}" if by else ""
        told[f"Parameters{tail}"] = parameters(entry)
        told[f"With and without the suspects{tail}"] = beside(entry)
        text += [*([name] if by else []), *lines(entry), ""]
        kept += rows.to_dict("records")
    items = records.items()
    summary = {
        "study": f"{form.name} on {source.name}",
        "headline": "; ".join(f"{by} = {group}: {headline(one)}" if by else headline(one) for group, one in items),
        "runs": f"{sum(one['n'] for one in records.values()):,} rows fitted, "
        f"{sum(len(one['excluded']) for one in records.values())} excluded",
        "verdicts": verdicts, "tables": told, "missing": [],
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(summary, Findings("", text=text, methods=methods(records)), charts, kept[:MOST_ROWS]))


def used(rows: Table, form: Law, entry: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of the fit: their number in the table, compute where known, inputs, what was found and is predicted."""
    gone = {exclusion["row"] for exclusion in entry["excluded"]}
    keep = np.array([label(i) not in gone for i in rows.frame.index])
    inputs = {name: column[keep] for name, column in rows.inputs(form).items()}
    predicted = form.predict(inputs, fitted_values(entry))[0]
    names = [str(label(i)) for i, kept in zip(rows.frame.index, keep, strict=True) if kept]
    compute = {"C": rows.columns["C"][keep]} if "C" in rows.columns else {}
    return pd.DataFrame({"row": names, **compute, **inputs, "found": rows.target[keep], "predicted": predicted})


def figures(rows: pd.DataFrame, form: Law, entry: Mapping[str, Any], name: str) -> dict[str, Callable[[], Any]]:
    """What the record of one fit allows to be drawn."""
    return {
        "fit": lambda: fit_plots.fitted(rows, form, name),
        "residuals": lambda: fit_plots.percent_residuals(rows, form, name),
        **of_record(entry),
    }


def parameters(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each parameter and what is derived from them; an interval, or why there is none."""
    rows = []
    for name, estimate in {**entry["params"], **entry["derived"]}.items():
        interval = "fixed" if estimate.get("fixed") else "not identified"
        if estimate["lo"] is not None and estimate["identified"]:
            interval = f"[{estimate['lo']:.5g}, {estimate['hi']:.5g}]"
        rows.append({"parameter": name, "value": estimate["value"], f"{percent(entry['level'])} interval": interval})
    return rows


def methods(records: Mapping[str, Any]) -> str:
    entry = next(iter(records.values()))
    goal = entry["objective"]
    return (
        f"{entry['formula']} ({entry['source']}) was fitted by variable projection and a {goal['kind']} loss in "
        f"{goal['space']} space. Intervals are at {percent(entry['level'])}, {intervals_by(entry)}. Extrapolation was "
        "tested by leaving out the largest compute, beside two predictors that know no law; bands of new runs hold "
        f"{band_rate(entry)}."
    )
