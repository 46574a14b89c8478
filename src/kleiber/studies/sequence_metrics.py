"""Sequences of tasks as a table of runs, and the metrics of one matrix: R[i][j], the score of task j after stage i.

Scores become gains (higher is better) first, so that a positive BWT is always an improvement, and forgetting is
positive where a score got worse. A missing score is nan and makes what depends on it nan. Intransigence also needs runs
of each task alone, and savings the curve of a last stage that trains the first task again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.config.stages import is_chain
from kleiber.records.catalog import Run
from kleiber.studies.compare.frontier import best_settings
from kleiber.studies.compare.places import refuse_twin_rows, refuse_twins
from kleiber.studies.compare.rows import differing_overrides, method_of
from kleiber.studies.study import PlannedPoint
from kleiber.types import Config, Json

Array = NDArray[np.float64]
AGAIN = "again"  # the stage that trains the first task once more, to see how fast it comes back
LABELS = {
    "ACC": "ACC", "LA": "LA", "BWT": "BWT", "FWT": "FWT", "forgetting": "forgetting",
    "max_forgetting": "max forgetting since learned", "chaudhry_forgetting": "max forgetting (Chaudhry)",
    "intransigence": "intransigence", "savings": "savings", "upstream": "upstream",
}  # fmt: skip
METRICS = tuple(LABELS)
LOWER = {"forgetting", "max_forgetting", "chaudhry_forgetting", "intransigence", "upstream"}  # is better
CELL = ["start", "method", "setting", "lr"]
Alone = Mapping[tuple[str, str], Mapping[int, float]]  # scores of tasks trained alone, by (start, task) and seed


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
    return best_less_last(r, [0] * len(r.tasks))


def max_forgetting_by_task(r: Matrix) -> Array:
    """max_{l in own stage of j..T-1} R[l][j] - R[T][j]: the best score since the task was learned, less the last.

    Ours: `chaudhry_forgetting_by_task` with the stages before the task was learned left out, whose scores its training
    has not made. Of the task learned last 0.
    """
    return best_less_last(r, r.trained_by)


def best_less_last(r: Matrix, since: Sequence[int | None]) -> Array:
    """The best score from the stage `since` of each task to the last but one, less the last; nan if never trained."""
    forgotten = np.full(len(r.tasks), np.nan)
    for j in r.learned:
        earlier = r.gains[since[j] : -1, j] if j in r.earlier else r.gains[-1:, j]
        forgotten[j] = earlier.max() - r.gains[-1, j]
    return forgotten


def intransigence(r: Matrix, joint: Sequence[float]) -> Array:
    """a*_j - R[j][j], `joint` the scores of a model trained on everything at once, in the matrix's own direction.

    Chaudhry et al. 2018, arXiv:1801.10112, eq. 3; `joint` in the units of the task, its sign as in `gains`.
    """
    return np.array(joint, dtype=np.float64) - when_learned(r)


def summary(r: Matrix) -> dict[str, float]:
    """All metrics of one matrix that need no further run; nan where no task is left to average over.

    ACC = mean_j R[T][j] over the learned tasks, LA = mean_j R[j][j]. BWT = mean over all tasks but the last of
    R[T][j] - R[j][j], FWT = mean over all tasks but the first of R[j-1][j] - b_j; Lopez-Paz & Ranzato 2017,
    arXiv:1706.08840, eq. 2 to 4. Of the kinds of forgetting the mean over all tasks but the last.
    """
    forgotten = forgetting_by_task(r)
    values = {
        "ACC": r.gains[-1, r.learned], "LA": when_learned(r)[r.learned], "BWT": -forgotten[r.earlier],
        "FWT": np.array([r.gains[i - 1, j] - r.baseline[j] for j, i in enumerate(r.trained_by) if i]),
        "forgetting": forgotten[r.earlier], "max_forgetting": max_forgetting_by_task(r)[r.earlier],
        "chaudhry_forgetting": chaudhry_forgetting_by_task(r)[r.earlier],
    }  # fmt: skip
    return {name: float(each.mean()) if len(each) else float("nan") for name, each in values.items()}


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


def sequence_rows(runs: Sequence[Run], tolerance: float) -> pd.DataFrame:
    """A row for each finished sequence of tasks: CELL, order, seed, METRICS and its `matrix` R.

    tolerance  the first task counts as relearned at (1 + tolerance) times the loss at the end of its stage

    Raises ValueError without a finished sequence, where a sequence mixes kinds of scores, and as `refuse_twins`.
    """
    alone = alone_scores(runs)
    chains = [run for run in runs if len(run.stages) > 1 and not any(stage.get("trunk") for stage in run.stages)]
    kept = [run for run in chains if run.finished]
    suffixes = differing_overrides(kept)
    rows = [sequence_row(run, alone, tolerance, suffixes[run.name]) for run in kept]
    if not rows:
        raise ValueError("no finished run over a sequence of tasks: this study needs the chains of its own design")
    table = pd.DataFrame(rows).sort_values([*CELL, "order", "seed"], ignore_index=True)
    refuse_twin_rows(table, [*CELL, "order", "seed"], runs)
    return table


def refuse_planned_twins(points: Sequence[PlannedPoint]) -> None:
    """Raises ValueError as `refuse_twins` for planned sequences, of those with one schedule, batch and optimizer."""
    placed: dict[str, list[tuple[str, str, Config]]] = {}
    for config, name in ((point.config, point.folder.name) for point in points if is_chain(point.config)):
        cell = [start_of(config), *method_of(config), config["optimizer"]["lr"]]
        order = " > ".join(stage for stage in config["stages"]["chain"] if stage != AGAIN)
        names = zip([*CELL, "order", "seed"], [*cell, order, config["seed"]], strict=True)
        other = str([config.get(key) for key in ("schedule", "batch", "optimizer")])
        placed.setdefault(other, []).append((", ".join(f"{key} {value}" for key, value in names), name, config))
    for sequences in placed.values():
        refuse_twins(sequences)


def sequence_row(run: Run, alone: Alone, tolerance: float, suffix: str = "") -> Json:
    """The row of one sequence; `suffix` is appended to its setting."""
    config, stages = run.config, [stage for stage in run.stages if stage["name"] != AGAIN]
    r, kind = own_matrix(run)
    method, setting = method_of(config)
    setting = f"{setting} {suffix}".strip()
    start, seed = start_of(config), int(run.summary["seed"])
    # The rate of the run, since a task may have one of its own.
    lr = float((config.get("optimizer") or {}).get("lr") or stages[0]["lr"])
    scores = summary(r)
    if any(stage["objective"] == "classify" for stage in stages):
        scores["FWT"] = float("nan")  # a head that nothing has trained says nothing of what the backbone learned
    untrained = [j for j in range(len(r.tasks)) if r.trained_by[j] is None]
    behind = intransigence(r, [reference(alone, start, task, seed) for task in r.tasks])[r.learned]
    first = tasks_in_order(r)[0][1]
    return {
        "run": run.name, "start": start, "method": method, "setting": setting, "lr": lr, "seed": seed,
        "order": " > ".join(r.stages), **scores,
        "intransigence": float(behind.mean()),
        "savings": saved(run, r.tasks[first], tolerance),
        "upstream": float((r.baseline - r.gains[-1])[untrained].mean()) if untrained else float("nan"),
        "matrix": r, "kind": kind, "seconds": run.summary.get("seconds"),
    }  # fmt: skip


def own_matrix(run: Run) -> tuple[Matrix, str]:
    """R without the stage that trains the first task again, and the kind of score of all learned tasks.

    Raises ValueError where tasks have different kinds of scores.
    """
    stages = [stage for stage in run.stages if stage["name"] != AGAIN]
    record = run.summary["R"]
    names = [stage["name"] for stage in stages]
    kept = [row for name, row in zip(record["stages"], record["matrix"], strict=True) if name in names]
    trained = {task: i for i, stage in enumerate(stages) for task in stage["tasks"]}
    trained_by = [trained.get(task) for task in record["tasks"]]
    kinds = {record["metric"][task].rsplit("/", 1)[1] for task in trained}
    if len(kinds) > 1:
        raise ValueError(f"{run.name}: its tasks have scores of several kinds, {' and '.join(sorted(kinds))}")
    return matrix({**record, "stages": names, "matrix": kept}, trained_by), kinds.pop()


def start_of(config: Config) -> str:
    return str((config.get("study") or {}).get("start") or "start")


def alone_scores(runs: Sequence[Run]) -> Alone:
    """The final main scores of runs of one task at their best rate, as sequences score it, by start and task."""
    scored: dict[str, tuple[str, float]] = {}
    for record in (run.summary.get("R") or {} for run in runs):
        for task, key in (record.get("metric") or {}).items():
            scored[task] = (key, 1.0 if record["higher_is_better"][task] else -1.0)
    rows = [
        {"start": start_of(run.config), "task": task, "lr": float(run.stage["lr"]), "seed": int(run.summary["seed"]),
         "score": scored[task][1] * run.metrics[scored[task][0]]}
        for run in runs if run.finished and len(run.stages) == 1
        for task in run.stage["tasks"] if task in scored and run.metrics.get(scored[task][0]) is not None
    ]  # fmt: skip
    if not rows:
        return {}
    table = pd.DataFrame(rows)
    best = table.merge(best_settings(table, ["start", "task"], ["lr"], "score", higher=True))
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for row in best.to_dict("records"):
        scores.setdefault((row["start"], row["task"]), {})[row["seed"]] = row["score"]
    return scores


def reference(alone: Alone, start: str, task: str, seed: int) -> float:
    """The score of a task alone, of the seed or else the mean of all; nan without such runs."""
    scores = alone.get((start, task), {})
    return scores.get(seed, float(np.mean(list(scores.values()))) if scores else float("nan"))


def saved(run: Run, task: str, tolerance: float) -> float:
    """Savings of the first task, from its loss curves when trained first and when trained again."""
    again = next((stage for stage in run.stages if stage["name"] == AGAIN), None)
    if again is None:
        return float("nan")
    key = f"val/{task}/loss"
    level = (1 + tolerance) * run.stages[0]["metrics"][key]
    return savings(curve(again, key), level, curve(run.stages[0], key))


def curve(stage: Json, key: str) -> dict[float, float]:
    return {float(row["step"]): float(row[key]) for row in stage.get("curve") or [] if row.get(key) is not None}


def by_position(rows: Sequence[Matrix]) -> np.ndarray:
    """Mean of R over runs, tasks in the order of training: entry i, j is the score of the j-th task after stage i."""
    return np.mean([r.gains[:, [task for _, task in tasks_in_order(r)]] for r in rows], axis=0)


def tasks_in_order(r: Matrix) -> list[tuple[int, int]]:
    """(stage, task) of every task that a stage trained, by stage."""
    return sorted((stage, j) for j, stage in enumerate(r.trained_by) if stage is not None)
