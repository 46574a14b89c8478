"""The noise over seeds of arms that fine-tune: of one run, and of a difference within seeds, which share a base run.

It is pooled over all settings. Points on the line between two models (WiSE) do not count as replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.compare.rows import CELL, Rows
from kleiber.studies.laws.uncertainty import student_quantile


@dataclass(frozen=True)
class Noise:
    """Standard deviation over seeds, pooled over settings with replicates, and its degrees of freedom."""

    sd: float
    df: int

    def half_width(self, level: float, terms: float) -> float:
        """Half-width of the interval of a sum with `terms` times the variance of one run; inf without replicates."""
        return float(student_quantile(self.df, level) * self.sd * np.sqrt(terms)) if self.df else float("inf")


def pooled(groups: Sequence[NDArray]) -> Noise:
    """The pooled noise within groups: sqrt(sum of squares within groups / (rows - groups))."""
    kept = [group for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in kept)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in kept)
    return Noise(float(np.sqrt(squares / df)) if df else float("nan"), df)


def trained(rows: Rows) -> Rows:
    """The rows of trained models, without the points on the line between two models (WiSE)."""
    return rows[~on_line(rows["method"])]


def on_line(methods: Rows) -> NDArray[np.bool_]:
    return np.array(methods.astype(str).str.contains(r"(?:^|\+)wise$"), dtype=bool)


def seed_noise(rows: pd.DataFrame, column: str) -> Noise:
    """The noise of one run over seeds, including that of its base run."""
    return pooled([part[column].to_numpy() for _, part in trained(rows).groupby(CELL, dropna=False)])


def blocked(table: Rows) -> Noise:
    """The noise of a difference within seeds (randomized blocks): residuals of seeds x settings, main effects removed.

    Missing entries are left out; df = entries - seeds - settings + 1 for a connected table.
    """
    entries = table.stack().dropna()
    if not len(entries):
        return Noise(float("nan"), 0)
    seeds = np.asarray(entries.index.get_level_values(0))[:, None] == table.index.to_numpy()
    codes = pd.MultiIndex.from_tuples([key[1:] for key in entries.index]).factorize()[0]
    design = np.column_stack([seeds, codes[:, None] == np.arange(codes.max() + 1)]).astype(float)
    values = entries.to_numpy(dtype=float)
    solved, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    df = len(values) - int(rank)
    left = float(((values - design @ solved) ** 2).sum())
    return Noise(float(np.sqrt(left / df)) if df else float("nan"), df)


def within_seeds(rows: Rows, column: str) -> Noise:
    """The noise of one run without what all runs of its seed have in common."""
    settings = trained(rows).groupby(CELL, dropna=False).ngroup()
    return blocked(trained(rows).assign(cell=settings).pivot_table(index="seed", columns="cell", values=column))
