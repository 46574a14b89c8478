"""Runs with a loss and the score of a task: read from a table, averaged over last checkpoints, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.studies import Array, Law, check_range, constant_or_column, numbers, required, row_of

LAST = 5  # checkpoints of a run that are averaged
FEWEST = 6  # runs of a fit


@dataclass(frozen=True)
class Runs:
    """The last values of each run: N, D, loss, score `acc`, and the chance level `floor` or None; (runs,) each.

    noise  standard deviation of the score among the last checkpoints of a run; 0 for a single checkpoint
    """

    N: Array
    D: Array
    loss: Array
    acc: Array
    floor: Array | None
    noise: float = 0.0

    def __len__(self) -> int:
        return len(self.N)

    @property
    def compute(self) -> Array:
        return 6 * self.N * self.D

    def keep(self, mask: NDArray[np.bool_]) -> Runs:
        """Returns the runs in a mask."""
        floor = None if self.floor is None else self.floor[mask]
        return replace(self, N=self.N[mask], D=self.D[mask], loss=self.loss[mask], acc=self.acc[mask], floor=floor)

    def inputs(self, law: Law) -> dict[str, Array]:
        """Returns the columns that a law takes."""
        columns = {"N": self.N, "D": self.D, "loss": self.loss, "floor": self.floor}
        return {name: column for name, column in columns.items() if name in law.inputs and column is not None}


def read_runs(frame: pd.DataFrame, roles: Mapping[str, str], fitted: bool = True) -> Runs:
    """Returns the runs of a table, averaged over their last checkpoints if a column of run names is mapped.

    fitted  whether the law is to be fitted to them; otherwise the score may be missing

    Raises ValueError, with row and column, for values out of range, and for tables that cannot be fitted.
    """
    names = ("N", "D", "loss", "acc") if fitted else ("N", "D")
    table = {role: numbers(frame, required(frame, roles, role)) for role in names}
    for role in ("N", "D", "loss"):
        if role in table:
            check_range(frame, roles.get(role, role), table[role], f"{role} must be > 0", table[role] > 0)
    if "acc" not in table and (column := roles.get("acc", "acc")) in frame.columns:
        table["acc"] = numbers(frame, column)
    if "acc" in table:
        inside = (table["acc"] >= 0) & (table["acc"] <= 1)
        check_range(frame, roles.get("acc", "acc"), table["acc"], "a score must be between 0 and 1", inside)
    floor = constant_or_column(frame, roles, "floor")
    if floor is not None:
        check_range(
            frame, roles.get("floor", "floor"), floor, "a chance level must be >= 0 and < 1", (floor >= 0) & (floor < 1)
        )
    empty = np.full(len(frame), np.nan)
    runs = Runs(table["N"], table["D"], table.get("loss", empty), table.get("acc", empty), floor)
    if fitted:
        runs = _last_checkpoints(frame, roles["run"], runs) if "run" in roles else runs
        _check_fittable(frame, roles, runs)
    return runs


def _last_checkpoints(frame: pd.DataFrame, column: str, runs: Runs) -> Runs:
    """Returns a row for each run: the mean of its last checkpoints by tokens, and the noise of their scores."""
    names = frame[required(frame, {"run": column}, "run")].astype(str).to_numpy()
    parts = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    last = [rows[np.argsort(runs.D[rows], kind="stable")][-LAST:] for rows in parts]

    def mean(values: Array) -> Array:
        return np.array([values[rows].mean() for rows in last])

    several = [rows for rows in last if len(rows) > 1]
    noise = np.sqrt(np.mean([runs.acc[rows].var(ddof=1) for rows in several])) if several else 0.0
    ends = np.array([rows[-1] for rows in last])
    floor = None if runs.floor is None else runs.floor[ends]
    return Runs(runs.N[ends], runs.D[ends], mean(runs.loss), mean(runs.acc), floor, float(noise))


def _check_fittable(frame: pd.DataFrame, roles: Mapping[str, str], runs: Runs) -> None:
    """Raises ValueError for a chance level above the scores, a single size, and too few runs."""
    if runs.floor is not None and (runs.floor >= runs.acc.max()).all():
        score = roles.get("acc", "acc")
        best = numbers(frame, score)
        raise ValueError(
            f"the floor {runs.floor.max():g} ({roles.get('floor', 'floor')}) is above every score: the highest, "
            f"{best.max():g}, is in {row_of(frame, int(np.argmax(best)))}, column {score!r}; correct the floor"
        )
    if len(np.unique(runs.N)) < 2:
        size = roles.get("N", "N")
        raise ValueError(
            f"every row has the size {runs.N[0]:g} in column {size!r}, from {row_of(frame, 0)} on: the law needs runs "
            "of several sizes"
        )
    if len(runs) < FEWEST:
        raise ValueError(
            f"the table has {len(runs)} runs up to {row_of(frame, len(frame) - 1)}, column {roles.get('acc', 'acc')!r}:"
            f" the law needs at least {FEWEST}"
        )
