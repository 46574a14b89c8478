"""The study `explain`: a panel whose hook measures whether deletion orders attributions as the planted truth does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd

from kleiber.studies.compare.rows import Rows
from kleiber.studies.panel import Panel

TEST, TRUTH, AGREEMENT = "deletion_gain", "planted_first", "agreement"


@dataclass(frozen=True, kw_only=True)
class Explain(Panel):
    """A panel of the measures `deletion_gain` and `planted_first` by method, with the measure `agreement`.

    agreement  of a run: the share of pairs of methods that both measures order in the same way, without ties
    """

    derives: ClassVar[Sequence[str]] = (AGREEMENT,)

    def derive(self, table: Rows) -> Rows:
        """Returns the table with a row for the agreement of each run that has both measures of two methods."""
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
