"""Measures of `study=ood`: lines of the loss on other text against the loss in domain, and distances from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import Rows

INSIDE, OUTSIDE, SLOPE, DISTANCE = "inside", "outside", "slope", "distance"
DENSE = "dense"  # in place of the number of experts


def loss_lines(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table with slopes and distances, without other text that has no loss in domain beside it.

    It reads the measures `inside` and `outside` by `data`, `experts` and `size`. A line is fitted to the dense models
    of one seed and data set.

    slope     of a seed: the change of the loss on other text for each bit of the loss in domain
    distance  of a mixture: its loss on other text minus that of the line at its own loss in domain

    Raises ValueError where no seed has dense models of two losses in domain.
    """
    places = pd.MultiIndex.from_frame(table[["run", "data"]])
    table = table[places.isin(places[table["measure"] == INSIDE])]
    rows = []
    for _, part in table.groupby(["data", "seed"], sort=False):
        points = part.pivot_table(index=["run", "experts"], columns="measure", values="value").reset_index()
        dense = points[points["experts"] == DENSE]
        if {INSIDE, OUTSIDE} <= {*points.columns} and dense[INSIDE].nunique() > 1:
            slope, intercept = (float(value) for value in np.polyfit(dense[INSIDE], dense[OUTSIDE], 1))
            beyond = points[points["experts"] != DENSE]
            distances = beyond[OUTSIDE] - intercept - slope * beyond[INSIDE]
            rows.append(derived(part[part["run"] == dense["run"].iloc[0]], SLOPE, slope))
            rows += [
                derived(part[part["run"] == run], DISTANCE, distance)
                for run, distance in zip(beyond["run"], distances, strict=True)
            ]
    if not rows:
        raise ValueError(
            "study=ood fits lines to dense models, and needs at least two sizes of each seed: add sizes to design.cases"
        )
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def derived(rows: Rows, measure: str, value: float) -> Rows:
    """Returns a row of a derived measure of the run of these rows; a slope is of no size."""
    place = {"size": None} if measure == SLOPE else {}
    return {**rows.iloc[0], **place, "measure": measure, "metric": measure, "value": value}
