"""The noise over seeds of runs that fine-tune.

It is pooled over all settings. Points on the line between two models (WiSE) do not count as replicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def on_line(methods: Iterable[object]) -> NDArray[np.bool_]:
    """Which of these methods are points on the line between two models, alone or with another method."""
    return np.array([str(method).split("+")[-1] == "wise" for method in methods], dtype=bool)


def seed_noise(rows: pd.DataFrame, column: str) -> Noise:
    """The noise of one run over seeds, including that of its base run."""
    return pooled([part[column].to_numpy() for _, part in trained(rows).groupby(CELL, dropna=False)])
