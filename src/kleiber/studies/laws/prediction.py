"""Predictions of a recorded law: the value at a point, its interval and that of one new run, and how far outside it is.

It reads laws.json's content alone, so a prediction can be made long after the fit.

A fitted law against rows that it has not seen: yesterday's law and today's runs, or two designs and one ladder.

Seeds of one cell are averaged, and the law is read at the cell's inputs. It refuses to fit anything.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kleiber.studies.laws import file as records
from kleiber.studies.laws.bootstrap import Draws, interval
from kleiber.studies.laws.extrapolation import outside, widened
from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.replicates import cells
from kleiber.studies.laws.solve import Problem
from kleiber.studies.laws.table import DERIVED, Table
from kleiber.studies.laws.variance_components import VarianceComponents

# Also the default in `command`, which imports nothing heavy.
MAX_DECADES = 3.0  # the farthest published extrapolation that held (2.6 decades, arXiv:2403.08540)


def predict(record: Mapping, law: Law, at: Mapping[str, float], max_decades: float = MAX_DECADES) -> dict:
    """One prediction: value, the interval of the law's own value (lo, hi), the band of a new run (run_lo, run_hi), and
    decades outside the rows.

    Beyond `max_decades` in any input or in C the value is null and `refused` says so; without intervals where the rows
    leave the answer open, as at another size than the only one. The interval takes the law
    for true; the band holds the misfit that backtests show at that distance and the noise of a run as well.
    """
    unread = [name for name in at if name not in (*law.inputs, "N", "D", "C", "M")]
    if unread:
        raise ValueError(f"predict {unread[0]}={at[unread[0]]:g}: law {law.name!r} reads {', '.join(law.inputs)}")
    wrong = [name for name in at if not (0 < at[name] < np.inf if name in "NDCM" else np.isfinite(at[name]))]
    if wrong:
        raise ValueError(f"predict {wrong[0]}={at[wrong[0]]:g}: write a finite number above 0")
    full = complete(at)
    missing = [name for name in law.inputs if name not in full]
    if missing:
        raise ValueError(
            f"predict {dict(at)}: law {law.name!r} needs {', '.join(law.inputs)}; {', '.join(missing)} missing"
        )
    decades = float(outside(record["domain"], full))
    answer: dict = {"at": dict(at), "value": None, "lo": None, "hi": None, "decades": decades}
    if decades > max_decades:
        return answer | {"refused": f"{decades:.1f} decades beyond the rows, more than {max_decades:g}"}
    inputs = {name: np.array([full[name]]) for name in law.inputs}
    values = records.fitted_values(record)
    answer["value"] = float(law.predict(inputs, values)[0, 0])
    if not np.isfinite(answer["value"]):
        raise ValueError(f"predict {dict(at)}: law {law.name!r} has no value there")
    draws = np.array(record["draws"])
    untold = np.array(record.get("untold", ())).reshape(-1, len(law.params))
    if len(draws) and not depends(law.predict(inputs, untold)[:, 0]):
        found = _empty_fit(law, inputs, record, values)
        refits = Draws(
            found, draws, record["bootstrap"]["method"], VarianceComponents(**record["noise"]), record["residual_sd"]
        )
        flat = np.array(record.get("flat", ())).reshape(-1, len(law.params))
        along = law.predict(inputs, flat)[:, 0]
        answer["method"] = refits.method
        lo, hi = interval(refits.predict(inputs)[:, 0], record["level"])
        answer |= {"lo": float(min([lo, *along])), "hi": float(max([hi, *along]))}
        ends = interval(refits.predict_runs(inputs)[:, 0], record["level"])
        rate = record["misfit"]["at_one_decade"]
        lo, hi = widened(np.array(answer["value"]), *ends, rate, np.array(decades), record["level"])
        answer |= {"run_lo": float(min([lo, *along])), "run_hi": float(max([hi, *along]))}
    return answer


def _empty_fit(law: Law, inputs: Mapping[str, Array], record: Mapping, values: Array) -> Fit:
    """A fit without rows: what a record remembers of one, enough to add noise on the right scale."""
    objective = record["objective"]
    active = np.ones(len(law.params), dtype=bool)
    problem = Problem(
        law, inputs, np.ones(1), objective["kind"], objective["delta"] or 1e-3, objective["space"], active
    )
    return Fit(problem, values[0], objective["value"])


def complete(at: Mapping[str, float]) -> dict[str, float]:
    """A point with the inputs that follow from the others: C = 6 N D, D = C/(6 N), M = D/N."""
    full = {name: float(value) for name, value in at.items()}
    for role, (parts, rule) in DERIVED.items():
        if role not in full and all(part in full for part in parts):
            full[role] = rule(*(full[part] for part in parts))
    return full


def hold(record: Mapping[str, Any], law: Law, table: Table, max_decades: float) -> dict[str, Any]:
    """Cells with what the law says of each, and the errors over them.

    cells   by rising compute, else in the order of the rows: at, target (mean over its runs), runs, and `predict`'s
            value, lo, hi, run_lo, run_hi, decades
    mare    mean |value / target - 1|;  bias the mean of value / target - 1
    coverage, run_coverage   share of cells inside the law's interval and inside one run's; None without intervals
    Raises ValueError for rows farther outside the law's own than `max_decades`.
    """
    inputs, member = table.inputs(law), cells(table.inputs(law))
    found = []
    for cell in np.unique(member):
        mine = member == cell
        at = {name: float(column[mine][0]) for name, column in inputs.items()}
        said = predict(record, law, at, max_decades)
        if "refused" in said:
            point = ", ".join(f"{name}={value:g}" for name, value in at.items())
            raise ValueError(f"{point}: {said['refused']}; --force predicts all the same")
        compute = float(table.columns["C"][mine].mean()) if "C" in table.columns else float(len(found))
        found.append({**said, "target": float(table.target[mine].mean()), "runs": int(mine.sum()), "order": compute})
    found.sort(key=lambda one: one["order"])
    errors = np.array([one["value"] / one["target"] - 1 for one in found])
    return {
        "cells": found, "mare": float(np.abs(errors).mean()), "bias": float(errors.mean()),
        "coverage": covered(found, "lo", "hi"), "run_coverage": covered(found, "run_lo", "run_hi"),
    }  # fmt: skip


def covered(found: list[dict[str, Any]], low: str, high: str) -> float | None:
    if any(one.get(low) is None for one in found):
        return None
    return float(np.mean([one[low] <= one["target"] <= one[high] for one in found]))
