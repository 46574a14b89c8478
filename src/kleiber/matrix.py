"""R: the score on every task after every stage, from which all measures of forgetting and transfer are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kleiber.score import main_metric
from kleiber.types import Task


def matrix(tasks: Sequence[Task], stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """R[i][j]: the main metric of task j after stage i; "baseline" is that of the model before the first step.

    A score that was not taken is null.
    """
    keys = {task.name: f"val/{task.name}/{main_metric(task)[0]}" for task in tasks}
    return {
        "tasks": list(keys),
        "stages": [stage["name"] for stage in stages],
        "metric": keys,
        "higher_is_better": {task.name: main_metric(task)[1] for task in tasks},
        "matrix": [[stage["metrics"].get(key) for key in keys.values()] for stage in stages],
        "baseline": [stages[0]["start_metrics"].get(key) for key in keys.values()],
    }
