"""Reads curves of runs for the law of schedules: rows of run, step, learning rate and loss, or folders of runs.

Every refusal names the row and the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kleiber.records import Run
from kleiber.studies import Array, check_range, numbers, required, row_of
from kleiber.types import Json
from kleiber_topics.schedules.forms import warmup_length

ROLES = ("run", "step", "lr", "loss")
LOSS, RATE = "train/loss", "train/lr"  # of our own runs
MEASURED = "measured"  # column of runs: whether the loss of a row was logged, and not its learning rate alone
SAME = 0.01  # relative difference of learning rates that counts as none


@dataclass(frozen=True)
class Curve:
    """One run: steps, learning rates and losses of all rows, of which the law describes those from `start` on.

    start  the first row with a loss after the warm-up
    """

    name: str
    steps: Array
    rates: Array
    losses: Array
    start: int = 0

    @property
    def at(self) -> Array:
        """Steps that have a loss."""
        return self.steps[self.start :][self.measured]

    @property
    def measured(self) -> np.ndarray:
        """Mask of the rows from `start` on that have a loss."""
        return np.isfinite(self.losses[self.start :])

    @property
    def observed(self) -> Array:
        """The losses at the steps `at`."""
        return self.losses[self.start :][self.measured]

    def is_same_schedule(self, other: Curve) -> bool:
        """Whether two runs have the same learning rates, as far as both go."""
        last = min(self.steps[-1], other.steps[-1])
        common = self.steps[(self.steps <= last) & (self.steps >= other.steps[0])]
        if not len(common):
            return False
        rates, others = (np.interp(common, each.steps, each.rates) for each in (self, other))
        return bool(np.abs(rates - others).max() <= SAME * max(self.rates.max(), other.rates.max()))


def read_curves(frame: pd.DataFrame, roles: Mapping[str, str], fitted: bool = True) -> list[Curve]:
    """Returns the curves of a table, in the order of their first rows.

    roles   column by role: run, step, lr and loss
    fitted  whether the law is to be fitted to them; otherwise losses may be missing

    Raises ValueError, with row and column, for values that no curve can have, and for steps that do not increase.
    """
    column = required(frame, roles, "run")
    names = frame[column]
    if (empty := names.isna().to_numpy(dtype=bool)).any():
        row = row_of(frame, int(np.argmax(empty)))
        raise ValueError(f"{row} has no value in column {column!r}: name the run of each row")
    return [_curve(str(name), frame.loc[names == name], roles, fitted) for name in dict.fromkeys(names)]


def _curve(name: str, rows: pd.DataFrame, roles: Mapping[str, str], fitted: bool) -> Curve:
    """Returns the curve of the rows of one run. Raises ValueError as `read_curves`."""
    step, rate = (required(rows, roles, role) for role in ("step", "lr"))
    steps, rates, losses = numbers(rows, step), numbers(rows, rate), _losses(rows, roles, fitted)
    measured = np.isfinite(losses)
    first = int(np.argmax(measured))  # 0 without a loss
    after = (np.arange(len(rows)) > first) | ~measured.any()
    check_range(rows, step, steps, "a step must be >= 0", steps >= 0)
    rising = np.diff(steps, prepend=-1.0) > 0
    check_range(rows, step, steps, "a step must be larger than the one before it in the run (--map run=COL)", rising)
    check_range(rows, rate, rates, "a learning rate must be >= 0", rates >= 0)
    check_range(rows, rate, rates, "a learning rate must be > 0 until the loss starts", after | (rates > 0))
    loss = roles.get("loss", "loss")
    check_range(rows, loss, losses, "a loss must be > 0", ~(losses <= 0))
    if fitted and measured.any() and MEASURED not in rows.columns:
        check_range(rows, loss, losses, "a loss must not be missing after the first one", measured | ~after)
    start = max(first, warmup_length(rates), int(steps[0] == 0))
    return Curve(name, steps, rates, losses, start)


def _losses(rows: pd.DataFrame, roles: Mapping[str, str], fitted: bool) -> Array:
    """Returns the losses of the rows of a run, nan where there is none."""
    losses = np.full(len(rows), np.nan)
    if fitted or roles.get("loss", "loss") in rows.columns:
        column = required(rows, roles, "loss")
        measured = rows[column].notna().to_numpy(dtype=bool)
        losses[measured] = numbers(rows.loc[measured], column)
    return losses


def distinct_schedules(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Returns the curves in groups of the same schedule."""
    groups: list[list[Curve]] = []
    for curve in curves:
        group = next((group for group in groups if curve.is_same_schedule(group[0])), None)
        if group is None:
            groups.append([curve])
        else:
            group.append(curve)
    return groups


def rows_of_runs(runs: Sequence[Run], roles: Mapping[str, str]) -> pd.DataFrame:
    """Returns the rows of the curve to each end of each run, of a trunk to each of its branches.

    The columns are run, schedule (such as wsd), seed, step, lr, measured, and the loss, by its name in `roles`.

    roles  of which loss is the metric, as metrics.jsonl names it; default: train/loss, in the column loss

    Raises ValueError where no run has logged the metric and a learning rate.
    """
    rows: list[Json] = []
    metric, column = roles.get("loss", LOSS), roles.get("loss", "loss")
    for run in runs:
        stages = {stage["name"]: stage for stage in run.stages}
        parents = {stage.get("parent") for stage in stages.values()}
        for leaf in [name for name in stages if name not in parents] or [None]:
            name = run.name if len(stages) < 2 else f"{run.name}/{leaf}"
            rows += [
                {"run": name, **row, MEASURED: loss is not None, column: loss}
                for row, loss in _curve_rows(run, stages, leaf, metric)
            ]
    if not any(row[MEASURED] for row in rows):
        logged = sorted({key for run in runs for row in run.rows for key in row if key.endswith("loss")})
        raise ValueError(
            f"the runs have not logged {metric} and {RATE}; add --map loss=METRIC with one of {', '.join(logged)}"
            if logged
            else "the folder has no run with losses and learning rates in its metrics.jsonl"
        )
    return pd.DataFrame(rows)


def _curve_rows(run: Run, stages: Mapping[str, Json], leaf: str | None, metric: str) -> list[tuple[Json, float | None]]:
    """Returns the rows of one curve with their losses, from the root of the run to the stage `leaf`."""
    path: dict[str | None, float] = {}
    stage, last = leaf, np.inf
    while stage is not None:
        path[stage] = last
        entry = stages[stage]
        branch = entry.get("branch_step")
        stage, last = (entry.get("parent"), min(last, branch)) if branch is not None else (None, last)
    by_step: dict[int, Json] = {}
    for row in run.rows:
        owner = row.get("stage") or (leaf if len(stages) < 2 else None)
        if row["step"] <= path.get(owner, -1.0 if stages else np.inf):
            by_step.setdefault(row["step"], {}).update({key: row[key] for key in (metric, RATE) if key in row})
    steps = sorted(by_step)
    rates = [by_step[step].get(RATE) for step in steps]
    if not any(rates):
        return []
    logged = [step for step, rate in zip(steps, rates, strict=True) if rate is not None]
    filled = np.interp(steps, logged, [rate for rate in rates if rate is not None])
    kind = str((run.config.get("schedule") or {}).get("_target_")).rpartition(".")[2].lower()
    facts = {"schedule": kind, "seed": run.config.get("seed")}
    return [
        ({**facts, "step": step, "lr": rate}, by_step[step].get(metric))
        for step, rate in zip(steps, filled.tolist(), strict=True)
    ]
