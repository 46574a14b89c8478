"""Student's t for intervals: by how many standard errors an interval reaches to each side.

It refuses nothing: with 0 degrees of freedom the answer is nan, and who asks has to say why there is no interval.

Means over seeds with intervals, for comparisons that fit no law: the noise is pooled over all settings.

Two or three seeds say little of one setting's noise and enough of that of all settings together. It refuses an interval
where nothing was trained twice: then the half-width is nan, and `told` says "one seed".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit


def reach(df: int, level: float) -> float:
    """t with P(|T| <= t) = level for `df` degrees of freedom."""
    return float(stdtrit(df, 0.5 + level / 2))


Rows = Any  # a DataFrame or a column, whose stubs know little of what indexing gives


def seed_means(rows: Rows, by: Sequence[str], value: str, level: float = 0.9) -> Rows:
    """One row a setting: the columns `by`, mean, seeds, half (half-width of the mean), lo, hi.

    Branches of a trunk, or positions of a row, are rows of one run and share its noise: with a column `run` the degrees
    of freedom are of runs that were in the same settings, not of rows.
    """
    grouped = rows.groupby(list(by), sort=True)[value]
    table = grouped.agg(["mean", "size"]).rename(columns={"size": "seeds"}).reset_index()
    spare = int((table["seeds"] - 1).sum())
    if spare:
        within = float(((rows[value] - grouped.transform("mean")) ** 2).sum())
        sd, factor = np.sqrt(within / spare), reach(min(spare, repeated(rows, by)), level)
        table["half"] = factor * sd / np.sqrt(table["seeds"])
    else:
        table["half"] = np.nan
    return table.assign(lo=table["mean"] - table["half"], hi=table["mean"] + table["half"])


def repeated(rows: Rows, by: Sequence[str]) -> int:
    """Runs beyond the first in the same settings, at least 1; rows are counted where no run is named."""
    if "run" not in rows:
        return len(rows)
    settings = rows.assign(setting=rows.groupby(list(by)).ngroup()).groupby("run")["setting"]
    kinds = settings.agg(lambda own: tuple(sorted(own)))
    return max(1, len(kinds) - kinds.nunique())


def told(value: float, half: float, digits: int = 4) -> str:
    """`1.234 +- 0.005`, or the value with why it has no interval."""
    if not np.isfinite(half):
        return f"{value:.{digits}f} (one seed, no interval)"
    return f"{value:.{digits}f} +- {half:.{digits}f}"


def difference(one: Any, other: Any) -> tuple[float, float]:
    """one - other of two rows of `seed_means`, and its half-width."""
    return float(one["mean"] - other["mean"]), float(np.hypot(one["half"], other["half"]))
