"""A fitted law against rows that it has not seen: yesterday's law and today's runs, or two designs and one ladder.

Seeds of one cell are averaged, and the law is read at the cell's inputs. It refuses to fit anything.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kleiber.studies import prediction
from kleiber.studies.law import Law
from kleiber.studies.replicates import cells
from kleiber.studies.table import Table


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
        said = prediction.predict(record, law, at, max_decades)
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
