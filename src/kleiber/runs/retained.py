"""What retention methods do around a stage: they get their memory before it, and what they leave after it is scored.

R: the score on every task after every stage, from which all measures of forgetting and transfer are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kleiber.config.errors import ConfigError
from kleiber.config.signatures import build
from kleiber.evals.drift import merged
from kleiber.retention.memory import ranks
from kleiber.runs.stage_tree import Around, Stage, Tree
from kleiber.training import checkpoint
from kleiber.training.callbacks.checkpoints import name_of
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.types.contracts import Retention, Samples, Task


def retain(
    methods: list[Retention], tree: Tree, stage: Stage, model: Any, tasks: Around, own: dict[str, Any] | None
) -> Samples:
    """Gives the methods their memory (their `own` of a stage that goes on) and returns what the stage trains on.

    What an adapter's stage remembers is about its own parameters: nothing is taken over from it, nor by it. Raises
    ConfigError where a method finds nothing to keep, or not what it needs.
    """
    memory = own or {}
    adapted = any(one.config.adapter for one in tree.stages if one.name in (stage.name, stage.parent))
    if own is None and methods and stage.parent is not None and not adapted:
        last, _ = checkpoint.latest(tree.place(stage.parent))
        memory = last.load_state()["retention"] if last else {}
    samples: Samples = stage.plan.corpus.train
    for method in methods:
        if name_of(method) in memory:
            method.load_state_dict(memory[name_of(method)])
        try:
            if own is None:
                method.begin_stage(model, tasks.earlier, stage.config.seed)
            samples = method.data(samples, tasks.earlier, stage.plan.objective)
        except ValueError as error:
            where = f"stages.chain.{stage.name}: " if stage.parent else ""
            raise ConfigError(f"{where}{error}") from error
    return samples


def end_retention(methods: list[Retention], tree: Tree, stage: Stage, model: Any, evaluate: Evaluate) -> None:
    """Scores what methods make of a finished stage, beside its own scores and under their names.

    They see plain weights: an adapter's updates are merged into a copy of the model first.
    """
    adapter = stage.config.adapter
    model = merged(model, None if adapter is None or not methods else build(adapter).merge)

    def save(name: str) -> Path:
        place = tree.folder / "stages" / stage.name / name
        if ranks()[0] == 0:
            checkpoint.save(place, 0, model, {}, "")
        return place / checkpoint.name(0)

    for method in methods:
        points = method.end_stage(model, save)
        if points:
            end = {name: value.clone() for name, value in model.state_dict().items()}
            for name, path in points.items():
                checkpoint.read(path).load_model(model)
                evaluate.latest |= evaluate.scores(model, evaluate.all, evaluate.tokens, name)
            model.load_state_dict(end)


def matrix(tasks: Sequence[Task], stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """R[i][j]: the main metric of task j after stage i; "baseline" is that of the model before the first step.

    A score that was not taken is null.
    """
    keys = {task.name: f"val/{task.name}/{task.objective.metric}" for task in tasks}
    return {
        "tasks": list(keys),
        "stages": [stage["name"] for stage in stages],
        "metric": keys,
        "higher_is_better": {task.name: task.objective.higher_is_better for task in tasks},
        "matrix": [[stage["metrics"].get(key) for key in keys.values()] for stage in stages],
        "baseline": [stages[0]["start_metrics"].get(key) for key in keys.values()],
    }
