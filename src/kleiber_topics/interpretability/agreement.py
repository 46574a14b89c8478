"""A measure of `study=explain`: whether deletion orders attribution methods as the planted truth does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from kleiber.records import Run
from kleiber.studies import Rows

TEST, TRUTH, AGREEMENT = "deletion_gain", "planted_first", "agreement"


def method_agreement(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table with the measure `agreement` of each run that has both measures of two methods.

    agreement  the share of pairs of methods that `deletion_gain` and `planted_first` order in the same way, without
               ties
    """
    rows = []
    for _, part in table[table["measure"].isin([TEST, TRUTH])].groupby("run", sort=False):
        shares = agreements(part.pivot_table(index="method", columns="measure", values="value"))
        if shares:
            row = {"method": None, "measure": AGREEMENT, "metric": AGREEMENT, "value": float(np.mean(shares))}
            rows.append({**part.iloc[0], **row})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table


def agreements(by_method: Rows) -> list[bool]:
    """Returns for each pair of methods whether both columns order it in the same way; ties are left out.

    by_method  a row for each method, and the columns TEST and TRUTH
    """
    if not {TEST, TRUTH} <= {*by_method.columns}:
        return []
    values = by_method[[TEST, TRUTH]].dropna().to_numpy()
    products = [float(np.prod(first - second)) for first, second in combinations(values, 2)]
    return [product > 0 for product in products if product]
