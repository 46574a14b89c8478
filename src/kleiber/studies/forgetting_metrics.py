"""Metrics of forgetting from one matrix: R[i][j], the score of task j after stage i.

Scores become gains (higher is better) first, so that a positive BWT is always an improvement, and forgetting is
positive where a score got worse. A missing score is nan and makes what depends on it nan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kleiber.types import Json

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """Scores by stage and task. Stage `trained_by[j]` is the one that trained task j, None where it was never trained.

    gains     R with the sign of its task, so that higher is better
    baseline  the same of the model before any training
    """

    tasks: tuple[str, ...]
    stages: tuple[str, ...]
    gains: Array
    baseline: Array
    trained_by: tuple[int | None, ...]

    @property
    def learned(self) -> list[int]:
        """Tasks that a stage trained."""
        return [j for j, stage in enumerate(self.trained_by) if stage is not None]

    @property
    def earlier(self) -> list[int]:
        """Learned tasks that a later stage could make the model forget."""
        return [j for j in self.learned if (self.trained_by[j] or 0) < len(self.stages) - 1]


def matrix(record: Json, trained_by: Sequence[int | None] | None = None) -> Matrix:
    """The `R` of a summary. `trained_by`: the stage of each task; None reads stage i as the one of task i.

    Errors: ValueError for a matrix whose shape is not stages x tasks.
    """
    tasks, stages = tuple(record["tasks"]), tuple(record["stages"])
    scores = np.array(record["matrix"], dtype=np.float64).reshape(len(stages), -1)
    if scores.shape != (len(stages), len(tasks)):
        raise ValueError(f"R has {scores.shape} entries for {len(stages)} stages and {len(tasks)} tasks")
    sign = np.array([1.0 if record["higher_is_better"][task] else -1.0 for task in tasks])
    baseline = record.get("baseline") or [None] * len(tasks)
    diagonal = [j if j < len(stages) else None for j in range(len(tasks))]
    return Matrix(
        tasks,
        stages,
        scores * sign,
        np.array(baseline, dtype=np.float64) * sign,
        tuple(diagonal if trained_by is None else trained_by),
    )


def when_learned(r: Matrix) -> Array:
    """R[stage of j][j] by task, nan where it was never trained."""
    return np.array([np.nan if i is None else r.gains[i, j] for j, i in enumerate(r.trained_by)])


def average(r: Matrix) -> float:
    """ACC = mean_j R[T][j] over the learned tasks; Lopez-Paz & Ranzato 2017, arXiv:1706.08840, eq. 2."""
    return float(r.gains[-1, r.learned].mean())


def learning_average(r: Matrix) -> float:
    """LA = mean_j R[j][j]: how well each task was learned at its time."""
    return float(when_learned(r)[r.learned].mean())


def backward_transfer(r: Matrix) -> float:
    """BWT = mean over all tasks but the last of R[T][j] - R[j][j]; Lopez-Paz & Ranzato 2017, eq. 3."""
    return float(-forgetting_by_task(r)[r.earlier].mean()) if r.earlier else float("nan")


def forward_transfer(r: Matrix) -> float:
    """FWT = mean over all tasks but the first of R[j-1][j] - b_j; Lopez-Paz & Ranzato 2017, eq. 4."""
    transfers = [r.gains[i - 1, j] - r.baseline[j] for j, i in enumerate(r.trained_by) if i]
    return float(np.mean(transfers)) if transfers else float("nan")


def forgetting_by_task(r: Matrix) -> Array:
    """First minus last: R[own stage][j] - R[T][j], 0 for the task learned last."""
    return when_learned(r) - r.gains[-1]


def chaudhry_forgetting_by_task(r: Matrix) -> Array:
    """max_{l in 1..T-1} R[l][j] - R[T][j]: the best score after any earlier stage, less the last; (tasks,).

    Chaudhry et al. 2018, arXiv:1801.10112, eq. 2, at the last of T stages. The maximum also runs over the stages before
    the task was learned, so a task that was better before its own stage than ever after counts as forgotten. Of the
    task learned last 0, which the paper's mean leaves out; nan of a task that was never trained, and where an earlier
    score was not taken.
    """
    forgotten = np.full(len(r.tasks), np.nan)
    for j in r.learned:
        forgotten[j] = (r.gains[:-1, j].max() if j in r.earlier else r.gains[-1, j]) - r.gains[-1, j]
    return forgotten


def max_forgetting_by_task(r: Matrix) -> Array:
    """max_{l in own stage of j..T-1} R[l][j] - R[T][j]: the best score since the task was learned, less the last.

    Ours: `chaudhry_forgetting_by_task` with the stages before the task was learned left out, whose scores its training
    has not made. Of the task learned last 0.
    """
    forgotten = np.full(len(r.tasks), np.nan)
    for j in r.learned:
        since = r.gains[r.trained_by[j] : -1, j] if j in r.earlier else r.gains[-1:, j]
        forgotten[j] = since.max() - r.gains[-1, j]
    return forgotten


def intransigence(r: Matrix, joint: Sequence[float]) -> Array:
    """a*_j - R[j][j], `joint` the scores of a model trained on everything at once, in the matrix's own direction.

    Chaudhry et al. 2018, arXiv:1801.10112, eq. 3; `joint` in the units of the task, its sign as in `gains`.
    """
    return np.array(joint, dtype=np.float64) - when_learned(r)


def summary(r: Matrix) -> dict[str, float]:
    """All of one matrix that needs no further run."""
    return {
        "ACC": average(r),
        "LA": learning_average(r),
        "BWT": backward_transfer(r),
        "FWT": forward_transfer(r),
        "forgetting": float(forgetting_by_task(r)[r.earlier].mean()) if r.earlier else float("nan"),
        "max_forgetting": float(max_forgetting_by_task(r)[r.earlier].mean()) if r.earlier else float("nan"),
        "chaudhry_forgetting": float(chaudhry_forgetting_by_task(r)[r.earlier].mean()) if r.earlier else float("nan"),
    }


def savings(relearning: Mapping[float, float], level: float, scratch: Mapping[float, float]) -> float:
    """1 - steps to come back to a loss / steps to reach it from scratch: 1 nothing was erased, 0 all of it was.

    Both are curves, loss by step; crossings are interpolated linearly. nan where the relearning never gets there or
    the scratch run never did, or began there and had nothing to learn. Ebbinghaus's measure (1885): it tells erased
    from misaligned.
    """
    learned = steps_to(scratch, level)
    return 1 - steps_to(relearning, level) / learned if learned else float("nan")


def steps_to(curve: Mapping[float, float], level: float) -> float:
    """The first step at which the loss is `level` or less, between evaluations by a straight line; nan for never."""
    steps = sorted(curve)
    for before, after in zip([None, *steps], steps, strict=False):
        if curve[after] <= level:
            if before is None:
                return float(after)
            return before + (after - before) * (curve[before] - level) / (curve[before] - curve[after])
    return float("nan")


KINDS = {"load_shift": "before to after", "load_gap_before": "to the new text, before",
         "load_gap_after": "to the new text, after"}  # fmt: skip
