"""The callbacks that score a stage: on its tasks, and by the evaluations of the config group `evals`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from kleiber.config.stages import quantity
from kleiber.data.order import Reading
from kleiber.records.evaluations import settings_of_run
from kleiber.records.summary import StageRecord
from kleiber.runs.plan import Plan, build_retention
from kleiber.runs.stage_tree import Stage, StageTasks, Tree
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.types import Json
from kleiber.types.contracts import Corpus, Task

if TYPE_CHECKING:
    from kleiber.training.callbacks.evaluations import RunEvaluations

VALIDATIONS = 4  # of a stage, at most, where eval.every_steps is null


def make_evaluate(tree: Tree, stage: Stage, plan: Plan, tasks: StageTasks, record: StageRecord) -> Evaluate:
    """Builds the callback that scores tasks, with the settings of the config's node `eval`."""
    settings = stage.config.eval
    parent = tree.done[stage.parent]["metrics"] if stage.parent and not stage.continues else {}
    return Evaluate(
        record,
        tasks.current,
        every=validation_interval(stage, tasks.current),
        tokens=token_limit(stage.config),
        rows=plan.scored_rows,
        runtime=tree.hardware.runtime,
        earlier=tasks.earlier,
        later=tasks.later,
        from_weights=tree.from_weights,
        start={name: value for name, value in parent.items() if name.startswith(("val/", "eval/"))},
        watched=round(quantity(settings.watch_tokens)),
    )


def validation_interval(stage: Stage, tasks: Sequence[Task]) -> int:
    """Returns the optimizer steps between two validations of `tasks`, those of the stage; 0: after the last step only.

    Without eval.every_steps there are at most VALIDATIONS. Those before the last score no more tokens than the stage
    trains, so that a short run does not spend its time on them; budget.stop_at_loss needs them all the same.
    """
    cfg, plan = stage.config, stage.plan
    if cfg.eval.every_steps is not None:
        return cfg.eval.every_steps
    affordable = plan.steps * plan.batch_tokens // max(1, scored_tokens(tasks, token_limit(cfg)))
    count = VALIDATIONS if cfg.budget.get("stop_at_loss") else min(VALIDATIONS, 1 + affordable)
    return math.ceil(plan.steps / count)


def token_limit(cfg: DictConfig) -> int | None:
    """Returns eval.tokens as a number: the targets of each task that are scored; None for all."""
    return None if cfg.eval.tokens is None else round(quantity(cfg.eval.tokens))


def scored_tokens(tasks: Sequence[Task], limit: int | None) -> int:
    """Returns the tokens of the held-out samples that a validation reads.

    limit  targets of each task that are scored; None means all
    """
    return sum(task.held_out.first(limit).num_tokens for task in tasks)


def plan_reading(cfg: DictConfig, corpus: Corpus, rows: int, steps: int = 0) -> Reading | None:
    """How a stage reads its training samples, `rows` in each step; None where a retention method mixes in others."""
    if any(method.mixes_data for method in build_retention(cfg, corpus)):
        return None
    return Reading(cfg.seed, rows, steps, cfg.get("privacy") is not None)


def make_evaluations(tree: Tree, stage: Stage, plan: Plan, record: StageRecord) -> RunEvaluations:
    """Builds the callback that runs the evaluations of the config's node `evals`."""
    from kleiber.evals.measure import make_subject
    from kleiber.training.callbacks.evaluations import RunEvaluations

    settings, tokens = stage.config.eval, token_limit(stage.config)
    config: Json = OmegaConf.to_container(stage.config, resolve=True)  # type: ignore[assignment]
    reading = plan_reading(stage.config, plan.corpus, plan.rows)
    is_trunk = any(other.continues and other.parent == stage.name for other in tree.stages)
    return RunEvaluations(
        plan.measurements,
        make_subject(plan.model, plan.corpus, plan.objective, tokens, min(plan.scored_rows, 64), reading),
        record,
        tree.folder,
        {name: settings_of_run(config, name) for name in config["evals"] or {}},
        batch_tokens=plan.batch_tokens,
        every=None if settings.every_tokens is None else round(quantity(settings.every_tokens)),
        at_start=tree.from_weights and stage.parent is None,
        at_end=not is_trunk,
    )
