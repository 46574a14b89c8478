"""Builds the callbacks of a stage: those that the config names, evaluation, early stopping and preemption."""

from __future__ import annotations

from kleiber.config.signatures import build
from kleiber.config.stages import quantity
from kleiber.records.summary import StageRecord
from kleiber.runs.plan import Plan
from kleiber.runs.stage_tree import Stage, TasksAround, Tree, branch_steps
from kleiber.training.callbacks.evaluate import Evaluate, StopAtLoss
from kleiber.training.callbacks.fault_tolerance import Checkpoints, Preempt
from kleiber.training.callbacks.log import Throughput
from kleiber.training.lightning import Callback


def make_evaluate(tree: Tree, stage: Stage, plan: Plan, tasks: TasksAround, record: StageRecord) -> Evaluate:
    """The callback that scores tasks, as the config's `eval` asks for."""
    settings = stage.config.eval
    parent = tree.done[stage.parent]["metrics"] if stage.parent and not stage.continues else {}
    return Evaluate(
        record,
        tasks.own,
        every=max(1, plan.steps // 4) if settings.every_steps is None else settings.every_steps,
        tokens=None if settings.tokens is None else round(quantity(settings.tokens)),
        rows=max(1, plan.rows),
        place=tree.hardware.place,
        earlier=tasks.earlier,
        later=tasks.later,
        from_weights=tree.from_weights,
        start={name: value for name, value in parent.items() if name.startswith("val/")},  # without the parent's drift
        watched=round(quantity(settings.watch_tokens)),
    )


def make_callbacks(tree: Tree, stage: Stage, plan: Plan, evaluate: Evaluate) -> list[Callback]:
    """The configured callbacks in the order in which they follow a step.

    The clock stops before evaluation begins, and a checkpoint holds the score of its step.
    """
    cfg, folder = stage.config, tree.folder
    available = {
        "batch_tokens": plan.batch_tokens,
        "branch_steps": branch_steps(tree.stages, stage.name),
        "corpus": plan.corpus,
        "config_hash": folder.name.rsplit("-", 1)[-1],
        "evaluate": evaluate,
        "record": evaluate.record,
    }
    folders = dict.fromkeys(("checkpoints", "ema"), tree.checkpoints(stage.name))  # of the stage, not of the run
    nodes = {key: node for key, node in cfg.callbacks.items() if node is not None}
    built = [build(node, **available, folder=folders.get(key, folder)) for key, node in nodes.items()]
    writers = [callback for callback in built if isinstance(callback, Checkpoints)]
    clocks = [callback for callback in built if isinstance(callback, Throughput)]
    target_loss = cfg.budget.get("stop_at_loss")
    stops = [] if target_loss is None else [StopAtLoss(target_loss, evaluate)]
    others = [callback for callback in built if callback not in clocks and callback not in writers]
    return [*clocks, evaluate, *stops, *others, *writers, Preempt(writers[0] if writers else None)]
