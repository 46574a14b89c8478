"""Columns of a table by role, for laws that take their table as it is: checks name the row and the column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies.laws.filters import column_of, number
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import label, numbers_of


@dataclass(frozen=True)
class Settings:
    """How a law is fitted: its form or route (None: chosen by held-out errors), refits, their seed and the level."""

    form: str | None = None
    route: str | None = None
    bootstrap: int = 1000
    seed: int = 0
    level: float = 0.9


def required(frame: pd.DataFrame, roles: Mapping[str, str], role: str) -> str:
    """Returns the column of a role, by default that of the same name. Raises ValueError for a missing column."""
    column = roles.get(role, role)
    return column_of(frame, column, f"--map {role}={column}" if role in roles else f"add --map {role}=COL")


def numbers(frame: pd.DataFrame, column: str) -> Array:
    """Returns a column as finite numbers. Raises ValueError, with row and column, for any other value."""
    values = numbers_of(frame, column)
    check_range(frame, column, values, "a value must be a finite number", np.isfinite(values))
    return values


def constant_or_column(frame: pd.DataFrame, roles: Mapping[str, str], role: str) -> Array | None:
    """Returns the values of an optional role, whose mapping is a column or a number; None if it is not mapped."""
    if role not in roles:
        return None
    constant = number(roles[role]) if roles[role] not in frame.columns else None
    if constant is not None:
        return np.full(len(frame), constant)
    return numbers(frame, required(frame, roles, role))


def check_range(frame: pd.DataFrame, column: str, values: Array, rule: str, good: NDArray[np.bool_]) -> None:
    """Raises ValueError for the first value that breaks a rule, with its row and column."""
    if not good.all():
        position = int(np.argmin(good))
        raise ValueError(
            f"{rule}, but it is {values[position]:g} in {row_of(frame, position)}, column {column!r}: correct the row, "
            "or leave it out with --where"
        )


def row_of(frame: pd.DataFrame, position: int) -> str:
    """Returns how errors name the row at a position, by its number in the file from 0."""
    return f"row {label(frame.index[position])}"
