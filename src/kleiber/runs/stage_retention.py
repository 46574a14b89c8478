"""The retention methods of a stage: their memory when it begins, and their own checkpoints when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.config.targets import build
from kleiber.nn.sharding import full_parameters, place_by_name
from kleiber.runs.stage_tree import Stage, StageTasks, Tree
from kleiber.training import checkpoint
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.callbacks.fault_tolerance import method_name
from kleiber.types import Json
from kleiber.types.contracts import Objective, Samples
from kleiber.types.model import Model
from kleiber.types.retention import Retention


def trained_objectives(methods: Sequence[Retention], stage: Stage, tasks: StageTasks) -> list[Objective]:
    """Returns the objective of a stage, and those of earlier tasks that its retention methods train beside it."""
    return [stage.plan.objective, *(other for method in methods for other in method.trained_objectives(tasks.earlier))]


def begin_retention(
    methods: Sequence[Retention], tree: Tree, stage: Stage, model: Model, tasks: StageTasks, saved: Json | None
) -> Samples:
    """Loads the memory of the retention methods and returns the samples that the stage trains on.

    A stage without an adapter takes over the memory of its parent. A stage with an adapter does not, nor do its
    children: that memory is about the parameters of the adapter alone.

    saved  memory by method from the checkpoint that the stage continues from; None at the first start

    Raises ConfigError when a method cannot work with the model or the tasks.
    """
    memory = saved or {}
    has_adapter = any(other.config.adapter for other in tree.stages if other.name in (stage.name, stage.parent))
    if saved is None and methods and stage.parent is not None and not has_adapter:
        last, _ = checkpoint.latest(tree.checkpoints(stage.parent))
        memory = last.load_state(model)["retention"] if last else {}
    samples: Samples = stage.plan.corpus.train
    for method in methods:
        if method_name(method) in memory:
            method.load_state_dict(place_by_name(memory[method_name(method)], model))
        try:
            if saved is None:
                method.begin_stage(model, tasks.earlier, stage.config.seed)
            samples = method.data(samples, tasks.earlier, stage.plan.objective)
        except ValueError as error:
            where = f"stages.chain.{stage.name}: " if stage.parent else ""
            raise ConfigError(f"{where}{error}") from error
    return samples


def end_retention(methods: Sequence[Retention], tree: Tree, stage: Stage, model: Model, evaluate: Evaluate) -> None:
    """Lets the retention methods write their own checkpoints of a finished stage, and scores each of them.

    The updates of an adapter are first merged into a copy of the model, so methods see plain weights.
    """
    adapter = stage.config.adapter
    if not methods:
        return
    from kleiber.evals.drift import merge_copy

    with full_parameters(model):
        merged = merge_copy(model, None if adapter is None else build(adapter).merge)
        _end_retention(methods, tree, stage, merged, evaluate)


def _end_retention(methods: Sequence[Retention], tree: Tree, stage: Stage, model: Model, evaluate: Evaluate) -> None:
    def save(name: str) -> Path:
        folder = tree.folder / "stages" / stage.name / name
        if tree.hardware.rank == 0:
            checkpoint.save(folder, 0, model, {}, "")
        return folder / checkpoint.name(0)

    for method in methods:
        points = method.end_stage(model, save)
        if points:
            end = {name: value.clone() for name, value in model.state_dict().items()}
            for name, path in points.items():
                checkpoint.read(path).load_model(model)
                evaluate.record.add_scores(evaluate.scores(model, evaluate.all, evaluate.tokens, name))
            model.load_state_dict(end)
