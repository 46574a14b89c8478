"""Student's intervals of means over seeds, with the noise pooled over all settings.

Two or three seeds determine the noise of all settings together well enough, but not that of each. Without replicates
the half-width is nan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit


def reach(df: int, level: float) -> float:
    """The quantile t with P(|T| <= t) = level for `df` degrees of freedom of Student's t; nan for df = 0."""
    return float(stdtrit(df, 0.5 + level / 2))


Rows = Any  # a DataFrame, or a row or column of one; the stubs of pandas do not type what indexing returns


def seed_means(rows: Rows, by: Sequence[str], value: str, level: float = 0.9) -> Rows:
    """A row for each setting: the columns `by`, mean, seeds, half (half-width of the interval of the mean), lo, hi.

    Branches of a trunk share the noise of their run: with a column `run` the degrees of freedom count runs, not rows.
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
    """The number of runs that repeat the settings of another, at least 1; the number of rows without a column `run`."""
    if "run" not in rows:
        return len(rows)
    settings = rows.assign(setting=rows.groupby(list(by)).ngroup()).groupby("run")["setting"]
    kinds = settings.agg(lambda places: tuple(sorted(places)))
    return max(1, len(kinds) - kinds.nunique())


def format_mean(value: float, half: float, digits: int = 4) -> str:
    """A mean as text, `1.234 +- 0.005`, or why it has no interval."""
    if not np.isfinite(half):
        return f"{value:.{digits}f} (one seed, no interval)"
    return f"{value:.{digits}f} +- {half:.{digits}f}"


def difference(first: Rows, second: Rows) -> tuple[float, float]:
    """The difference first - second of two rows of `seed_means`, and its half-width."""
    return float(first["mean"] - second["mean"]), float(np.hypot(first["half"], second["half"]))
