"""What each run over a sequence of tasks learned, forgot and carried over, as rows: from R and curves alone.

R is the single source of every metric but two: intransigence needs runs of each task alone, and savings the curve of
the stage that trains the first task once more. A metric whose runs are not there is nan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies import forgetting_metrics as metrics
from kleiber.studies.compare.rows import apart, described

LABELS = {
    "ACC": "ACC", "LA": "LA", "BWT": "BWT", "FWT": "FWT", "forgetting": "forgetting",
    "max_forgetting": "max forgetting since learned", "chaudhry_forgetting": "max forgetting (Chaudhry)",
    "intransigence": "intransigence", "savings": "savings", "upstream": "upstream",
}  # fmt: skip
METRICS = tuple(LABELS)
LOWER = {"forgetting", "max_forgetting", "chaudhry_forgetting", "intransigence", "upstream"}  # is better
CELL = ["start", "method", "setting", "lr"]
Alone = Mapping[
    tuple[str, str], Mapping[float, Mapping[int, float]]
]  # (start, task): lr: seed: score, higher is better


def outcomes(runs: Sequence[Run], tolerance: float) -> pd.DataFrame:
    """A row a finished sequence: CELL, order, seed, METRICS, its `matrix` of the tasks' own stages, `tasks` in order.

    tolerance  the first task counts as regained at (1 + tolerance) times the loss that it was left with

    Errors: ValueError without a finished sequence, and where one mixes scores that have no mean.
    """
    alone = alone_scores(runs)
    kept = [run for run in runs if run.status == "finished" and is_sequence(run)]
    more = apart(kept)
    rows = [row_of(run, alone, tolerance, more[run.name]) for run in kept]
    if not rows:
        raise ValueError("no finished run over a sequence of tasks: this study reads chains that its design made")
    return pd.DataFrame(rows).sort_values([*CELL, "order", "seed"], ignore_index=True)


def is_sequence(run: Run) -> bool:
    return len(run.stages) > 1 and not any(stage.get("trunk") for stage in run.stages)


def row_of(run: Run, alone: Alone, tolerance: float, more: str = "") -> dict[str, Any]:
    config, stages = run.config, [one for one in run.stages if one["name"] != AGAIN]
    r, kind = own_matrix(run)
    method, setting = described(config)
    setting = f"{setting} {more}".strip()
    start, seed = start_of(config), int(run.summary["seed"])
    lr = float(
        (config.get("optimizer") or {}).get("lr") or stages[0]["lr"]
    )  # the run's: a task may have one of its own
    found = metrics.summary(r)
    if any(stage["objective"] == "classify" for stage in stages):
        found["FWT"] = float("nan")  # a head that nothing has trained says nothing of what the backbone learned
    known = [j for j in range(len(r.tasks)) if r.own[j] is None]
    best = np.array([reference(alone, start, task, seed) for task in r.tasks])
    behind = metrics.intransigence(r, best.tolist())[r.learned]
    first = in_order(r)[0][1]
    return {
        "run": run.name, "start": start, "method": method, "setting": setting, "lr": lr, "seed": seed,
        "order": " > ".join(r.stages), **found,
        "intransigence": float(behind.mean()),
        "savings": saved(run, r.tasks[first], tolerance),
        "upstream": float((r.baseline - r.gains[-1])[known].mean()) if known else float("nan"),
        "matrix": r, "kind": kind, "seconds": run.summary.get("seconds"),
    }  # fmt: skip


def own_matrix(run: Run) -> tuple[metrics.Matrix, str]:
    """R without the stage that trains the first task again, and the name of the score that all learned tasks share."""
    stages = [one for one in run.stages if one["name"] != AGAIN]
    told = run.summary["R"]
    names = [one["name"] for one in stages]
    kept = [row for name, row in zip(told["stages"], told["matrix"], strict=True) if name in names]
    trained = {task: i for i, stage in enumerate(stages) for task in stage["tasks"]}
    own = [trained.get(task) for task in told["tasks"]]
    kinds = {told["metric"][task].rsplit("/", 1)[1] for task in trained}
    if len(kinds) > 1:
        raise ValueError(f"{run.name}: its tasks are scored by {' and '.join(sorted(kinds))}, which have no mean")
    return metrics.matrix({**told, "stages": names, "matrix": kept}, own), kinds.pop()


def start_of(config: Mapping[str, Any]) -> str:
    return str((config.get("study") or {}).get("start") or "start")


def alone_scores(runs: Sequence[Run]) -> Alone:
    """Of the runs of one task: its main score when they ended, as the sequences score it."""
    scored: dict[str, tuple[str, float]] = {}
    for run in runs:
        told = run.summary.get("R") or {}
        for task, key in (told.get("metric") or {}).items():
            scored[task] = (key, 1.0 if told["higher_is_better"][task] else -1.0)
    found: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
    for run in runs:
        if run.status != "finished" or len(run.stages) != 1:
            continue
        start = start_of(run.config)
        for task in set(run.stage["tasks"]) & set(scored):
            key, sign = scored[task]
            value = run.metrics.get(key)
            if value is not None:
                by_rate = found.setdefault((start, task), {}).setdefault(float(run.stage["lr"]), {})
                by_rate[int(run.summary["seed"])] = sign * value
    return found


def reference(alone: Alone, start: str, task: str, seed: int) -> float:
    """The score of a task alone at the rate of best mean: that of the seed, else the mean; nan where none was run."""
    rates = alone.get((start, task))
    if not rates:
        return float("nan")
    best = max(rates.values(), key=lambda by_seed: sum(by_seed.values()) / len(by_seed))
    return best.get(seed, sum(best.values()) / len(best))


def saved(run: Run, task: str, tolerance: float) -> float:
    """Savings of the first task: its curve when trained again against the one when trained first, on its loss."""
    again = next((one for one in run.stages if one["name"] == AGAIN), None)
    if again is None:
        return float("nan")
    key = f"val/{task}/loss"
    level = (1 + tolerance) * run.stages[0]["metrics"][key]
    return metrics.savings(curve(again, key), level, curve(run.stages[0], key))


def curve(stage: Mapping[str, Any], key: str) -> dict[float, float]:
    return {float(row["step"]): float(row[key]) for row in stage.get("curve") or [] if row.get(key) is not None}


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: means of the metrics over orders and seeds, and how many runs there are."""
    with_means = {name: (name, "mean") for name in METRICS}
    return rows.groupby(CELL, as_index=False).agg(runs=("run", "size"), **with_means)  # type: ignore[call-overload]


def chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method's best setting, by mean ACC among those with the most runs."""
    points, kept = averaged(rows), []
    for _, one in points.groupby(["start", "method"]):
        full = pd.DataFrame(one[one["runs"] == one["runs"].max()])
        kept.append(full.loc[full["ACC"].idxmax(), CELL])
    return rows.merge(pd.DataFrame(kept), on=CELL)


def by_position(rows: Sequence[metrics.Matrix]) -> np.ndarray:
    """Mean of R over runs, tasks in the order of each run: entry i, j is the j-th task after the i-th stage."""
    return np.mean([r.gains[:, [task for _, task in in_order(r)]] for r in rows], axis=0)


def in_order(r: metrics.Matrix) -> list[tuple[int, int]]:
    """(stage, task) of every task that a stage trained, in the order of the stages."""
    return sorted((stage, j) for j, stage in enumerate(r.own) if stage is not None)


AGAIN = "again"  # the stage that trains the first task once more, to see how fast it comes back
