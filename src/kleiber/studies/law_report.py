"""A fitted law for people: the lines that `kleiber fit` prints, table rows, and the HTML page of --report.

The page needs no network. It shows one fit, or one for each value of a column, with the figures that exist for every
law: observed vs predicted, residuals, backtests, exponents by approach, and profile likelihoods. The study `scaling`
adds figures by model size. Altair is imported when a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.records.files import write_text
from kleiber.records.regular_files import make_folder
from kleiber.studies import optimum_report
from kleiber.studies.laws.backtest import NAIVE_LABELS
from kleiber.studies.laws.headline import headline
from kleiber.studies.laws.hyperparameters import HyperparameterLaw
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.prediction import fitted_values, prediction_line
from kleiber.studies.laws.problem import pool
from kleiber.studies.laws.table import NOT_FINITE, Table, label
from kleiber.studies.laws.uncertainty import percent
from kleiber.studies.laws.verdicts import list_rows, verdict_lines
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

MOST_ROWS = 500  # at most this many rows are listed on the page


def lines(entry: Row) -> list[str]:
    """Returns the printed lines of a record: estimates, approaches, backtests, predictions and verdicts."""
    level, goal = percent(entry["level"]), entry["objective"]
    delta = f", delta {goal['delta']:g}" if goal["delta"] else ""
    errors = f", residuals in units of the standard errors {goal['sigma']}" if goal["sigma"] else ""
    out = [
        f"{entry['law']}: {entry['formula']}   ({entry['source']})",
        f"{rows_fitted(entry)}, {len(entry['excluded'])} excluded; {goal['kind']} loss{delta} on the "
        f"{goal['space']} scale: {goal['value']:.6g}{errors}",
    ]
    out += _not_finite_lines(entry["excluded"])
    estimates = {**entry["params"], **entry["derived"]}
    out += [f"  {name:<10} {_estimate_line(value, level)}" for name, value in estimates.items()]
    out.append(f"residual rms {entry['residual_rms']:.3g} in {goal['space']} space; {_interval_method(entry)}")
    if "at" in entry:
        out.append(_objective_at(entry))
    for exponent in [*entry["approaches"], *entry["accounting"]]:
        counting = f"{exponent['convention']}, " if "convention" in exponent else ""
        shift = f", shift {exponent['shift']:+.4f}" if exponent.get("shift") is not None else ""
        ends = f"{level} {format_interval(exponent['lo'], exponent['hi'], '.4f')}"
        out.append(f"  {counting}approach {exponent['approach']}: a = {exponent['a']:.4f}, {ends}{shift}")
    if "optima" in entry:
        return [*out, *optimum_report.lines(entry), *verdict_lines(entry)]
    out += [_backtest_line(test, level) for test in entry["backtests"]]
    for rank in entry.get("ranking", ()):
        error = f"error {rank['mare']:.2%} on the {rank['n_test']} held-out rows of largest compute"
        out.append(f"  ranking {rank['law']}: {error}, AIC {rank['aic']:.1f}")
    for other in entry.get("with_without", ()):
        numbers = ", ".join(
            f"{name} {format_estimate(value)}" for name, value in other.items() if isinstance(value, Mapping)
        )
        out.append(f"  {other['suspects']} the suspects (n = {other['n']}), {level}: {numbers}")
    out += [f"  {prediction_line(prediction, entry['level'])}" for prediction in entry["predictions"]]
    return out + verdict_lines(entry)


def rows_fitted(entry: Row) -> str:
    """Returns how many rows were fitted, and how many were pooled into them if the table is large."""
    pooled = entry.get("pooled")
    return f"{pooled:,} rows pooled into {entry['n']:,} cells" if pooled else f"{entry['n']} rows fitted"


def _not_finite_lines(excluded: Sequence[Row]) -> list[str]:
    """Returns the printed lines of the rows that were excluded since a number is missing, by role (up to ten rows)."""
    rules = dict.fromkeys(row["rule"] for row in excluded if row["rule"].startswith(NOT_FINITE))
    rows = {rule: [str(row["row"]) for row in excluded if row["rule"] == rule] for rule in rules}
    return [f"  excluded, {rule}: {list_rows(rows[rule])}" for rule in rules]


def _backtest_line(test: Row, level: str) -> str:
    """Returns the printed line of one backtest: errors, coverage and the errors of the naive predictors."""
    runs, covers = f"{test['n_runs']} independent run{'s' * (test['n_runs'] > 1)}", "no intervals"
    if test["coverage"] is not None:
        covers = f"{level} prediction interval (+-{test['half_width']:.1%}) contains {test['coverage']:.0%} of {runs}"
    naive = ", ".join(f"{NAIVE_LABELS[name]} {value:.2%}" for name, value in test["naive"].items())
    return (
        f"  backtest at {test['along']} = {test['cut']:.3g}: {test['n_train']} rows below, {test['n_test']} above, "
        f"error {test['mare']:.2%}, bias {test['bias']:+.2%}, {covers}; naive predictors: {naive}"
    )


def intervals_by(entry: Row) -> str:
    """Returns how the intervals of a record were computed, for the paragraph on methods."""
    used = entry["bootstrap"]
    if not used:
        return "by profile likelihood"
    how = {
        "cluster t": "to tables simulated with noise between and within trunks (with variances drawn anew)",
        "cluster bootstrap": "to resampled trunks",
        "bootstrap": "to resampled rows, or to rows with simulated noise if there are few rows",
    }[used["method"]]
    return f"percentiles of {used['draws']} refits {how}"


def band_rate(entry: Row) -> str:
    """Returns what prediction intervals of new runs include, for the paragraph on methods."""
    misfit = entry["misfit"]
    return (
        "the uncertainty of the parameters, the noise of a run, and a misfit of the law, "
        f"{misfit['at_one_decade']:.1%} of the loss one decade outside the rows ({misfit['expected']:.1%} before it is "
        "updated by the backtests)"
    )


def _objective_at(entry: Row) -> str:
    """Returns the printed line of the objective at the parameters of --at, compared with the fit."""
    at_values, goal = entry["at"], entry["objective"]
    point = ", ".join(f"{name}={value:g}" for name, value in at_values["params"].items())
    rms = f"residual rms {at_values['residual_rms']:.3g} (fit {entry['residual_rms']:.3g})"
    return f"at {point}: {goal['kind']} loss {at_values['value']:.6g} (fit {goal['value']:.6g}), {rms}"


def _estimate_line(estimate: Row, level: str) -> str:
    point = "-" if estimate["value"] is None else f"{estimate['value']:.6g}"
    if estimate.get("fixed"):
        return f"{point}   fixed"
    if not estimate["identified"]:
        return f"not identified ({estimate.get('reason') or 'no interval'}; best fit at {point})"
    ends = (
        "no interval" if estimate["lo"] is None else f"{level} {format_interval(estimate['lo'], estimate['hi'], '.5g')}"
    )
    return f"{point}   {ends}"


def format_estimate(estimate: Row) -> str:
    """Formats an estimate with its interval, or "not identified"."""
    if estimate.get("fixed"):
        return f"{estimate['value']:.4g} (fixed)"
    if not estimate["identified"] or estimate["value"] is None:
        point = "" if estimate["value"] is None else f" (best fit at {estimate['value']:.4g})"
        return f"not identified{point}"
    ends = "(no interval)" if estimate["lo"] is None else f"{format_interval(estimate['lo'], estimate['hi'], '.4g')}"
    return f"{estimate['value']:.4g} {ends}"


def _interval_method(entry: Row) -> str:
    if used := entry["bootstrap"]:
        return f"intervals by {used['method']} ({used['draws']} refits)"
    methods = {estimate.get("method") for estimate in [*entry["params"].values(), *entry["derived"].values()]}
    widened = ", widened for the noise that trunks share" if "cluster t" in methods else ""
    return "no intervals" if methods == {None} else f"intervals by profile likelihood{widened}"


def suspects_table(law: Row) -> list[Json]:
    """Returns a table of the fits with and without suspects; empty if there are none."""
    rows = []
    for fit in law.get("with_without", ()):
        estimates = {name: format_estimate(value) for name, value in fit.items() if isinstance(value, Mapping)}
        rows.append({"suspects": fit["suspects"], "points": fit["n"], **estimates})
    return rows


def misfit_tables(law: Row) -> dict[str, list[Json]]:
    """Returns a table of the mean residuals by size and tokens if the law misfits beyond noise, otherwise none."""
    from kleiber.charts.theme import format_count

    misfit = law.get("lack_of_fit")
    if not misfit or not misfit["found"]:
        return {}
    slopes = {row["N"]: f"{row['slope']:+.2%}" for row in misfit["slopes"]}
    rows: dict[float, Json] = {}
    for cell in misfit["cells"]:
        row = rows.setdefault(cell["N"], {"parameters": cell["N"]})
        row[f"at {format_count(cell['D'])} tokens"] = f"{cell['residual']:+.2%}"
    by_size = [row | ({"per doubling of tokens": slopes[size]} if slopes else {}) for size, row in sorted(rows.items())]
    return {"Observed minus predicted loss by size and tokens": by_size}


def record_figures(law: Row) -> dict[str, Callable[[], Chart]]:
    """Returns functions that draw the figures for which the record suffices, by name."""
    from kleiber.studies.laws import figures as plots

    charts: dict[str, Callable[[], Chart]] = {}
    if law["approaches"]:
        charts["exponents"] = lambda: plots.exponents(law)
    if law["allocation"] or any(exponent["points"] for exponent in law["approaches"]):
        charts["allocation"] = lambda: plots.allocation(law)
    if law["backtests"]:
        charts["backtests"] = lambda: plots.backtests(law)
    if "E" in (law.get("profiles") or {}):
        charts["profile"] = lambda: plots.profile(law)
    return charts


def write(
    out: Path, source: Path, form: Law, records: Mapping[str, Row], tables: Mapping[str, Table], by: str | None
) -> None:
    """Writes the page of the fits `records` (entries of laws.json by group, "" without --by) to `tables`."""
    from kleiber.charts.page import render_page
    from kleiber.charts.theme import with_group

    charts, verdicts, tables_by_title, text, kept = {}, [], {}, [], []
    for number, (group, entry) in enumerate(records.items()):
        name = f"{by} = {group}" if by else ""
        form = form.for_params(entry["params"])
        rows = fitted_rows(tables[group], form, entry)
        drawn = {f"g{number}-{kind}": make() for kind, make in charts_of(tables[group], form, entry).items()}
        charts |= {kind: with_group(chart, name) if by else chart for kind, chart in drawn.items()}
        before = f"{name}: " if by else ""
        verdicts += [{**verdict, "text": f"{before}{verdict['text']}"} for verdict in entry["verdicts"]]
        tail = f", {name}" if by else ""
        tables_by_title[f"Parameters{tail}"] = parameters(entry)
        tables_by_title[f"Sensitivity to suspects{tail}"] = suspects_table(entry)
        tables_by_title[f"Optima{tail}"] = optimum_report.table(entry, form)
        text += [*([name] if by else []), *lines(entry), ""]
        kept += rows.to_dict("records")
    headlines = [f"{by} = {group}: " * bool(by) + headline_of(entry) for group, entry in records.items()]
    excluded = sum(len(entry["excluded"]) for entry in records.values())
    content = render_page(
        f"{form.name} on {source.name}", charts, answer="; ".join(headlines),
        notes=[f"{_rows_fitted(records)}, {excluded} excluded."], verdicts=verdicts, tables=tables_by_title,
        text="\n".join(text), methods=methods(records), details={"Runs": kept[:MOST_ROWS]},
    )  # fmt: skip
    make_folder(out.parent)
    write_text(out, content)


def fitted_rows(rows: Table, form: Law, entry: Row) -> pd.DataFrame:
    """Returns the fitted rows: label, compute if known, inputs of the law, observed and predicted target.

    Pooled rows have the label of the first of them.
    """
    gone = {exclusion["row"] for exclusion in entry["excluded"]}
    rows = rows.drop(np.array([label(i) in gone for i in rows.frame.index]), "not fitted")
    if isinstance(form, HyperparameterLaw):
        return optimum_report.swept_rows(rows, form)
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


def headline_of(entry: Row) -> str:
    """Returns the result of a fit in a sentence or two."""
    return optimum_report.headline(entry) if "optima" in entry else headline(entry)


def charts_of(rows: Table | None, form: Law, entry: Row) -> dict[str, Callable[[], Chart]]:
    """Returns functions that draw the figures of a fit, by name; without its table, those of the record alone."""
    if isinstance(form, HyperparameterLaw):
        return optimum_report.figures(entry, form, rows)
    if rows is None:
        return record_figures(entry)
    return figures(fitted_rows(rows, form, entry), form, entry)


def figures(rows: pd.DataFrame, form: Law, entry: Row) -> dict[str, Callable[[], Chart]]:
    """Returns functions that draw the figures of a fit, by name of the figure."""
    from kleiber.studies.laws import figures as plots

    return {
        "fit": lambda: plots.fitted(rows, form),
        "residuals": lambda: plots.percent_residuals(rows, form),
        **record_figures(entry),
    }


def parameters(entry: Row) -> list[Json]:
    """Returns a table row for each parameter and derived quantity: name, value and interval."""
    rows = []
    for name, estimate in {**entry["params"], **entry["derived"]}.items():
        interval = "fixed" if estimate.get("fixed") else "none" if estimate["identified"] else "not identified"
        if estimate["lo"] is not None and estimate["identified"]:
            interval = f"{format_interval(estimate['lo'], estimate['hi'], '.5g')}"
        rows.append({"parameter": name, "value": estimate["value"], f"{percent(entry['level'])} interval": interval})
    return rows


def methods(records: Mapping[str, Row]) -> str:
    """Returns the paragraph on methods, which describes the first fit."""
    entry = next(iter(records.values()))
    if "optima" in entry:
        return optimum_report.methods(entry)
    goal = entry["objective"]
    return (
        f"{entry['formula']} ({entry['source']}) was fitted by variable projection with a {goal['kind']} loss in "
        f"{goal['space']} space. Intervals have a confidence level of {percent(entry['level'])} "
        f"({intervals_by(entry)}). Backtests fit the rows at small compute, predict those at the largest, and compare "
        "the error with that of two naive predictors. The prediction interval of a new run includes "
        f"{band_rate(entry)}."
    )
