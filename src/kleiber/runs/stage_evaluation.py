"""The callbacks that score a stage: on its tasks, and by the evaluations of the config group `evals`."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from kleiber.config.stages import quantity
from kleiber.data.order import Reading
from kleiber.evals.measure import make_subject
from kleiber.records.summary import StageRecord
from kleiber.runs.plan import Plan, build_retention
from kleiber.runs.stage_tree import Stage, StageTasks, Tree
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.callbacks.evaluations import RunEvaluations
from kleiber.types.contracts import Corpus


def make_evaluate(tree: Tree, stage: Stage, plan: Plan, tasks: StageTasks, record: StageRecord) -> Evaluate:
    """Builds the callback that scores tasks, with the settings of the config's node `eval`."""
    settings = stage.config.eval
    parent = tree.done[stage.parent]["metrics"] if stage.parent and not stage.continues else {}
    return Evaluate(
        record,
        tasks.current,
        every=max(1, plan.steps // 4) if settings.every_steps is None else settings.every_steps,
        tokens=None if settings.tokens is None else round(quantity(settings.tokens)),
        rows=plan.scored_rows,
        runtime=tree.hardware.runtime,
        earlier=tasks.earlier,
        later=tasks.later,
        from_weights=tree.from_weights,
        start={name: value for name, value in parent.items() if name.startswith(("val/", "eval/"))},
        watched=round(quantity(settings.watch_tokens)),
    )


def plan_reading(cfg: DictConfig, corpus: Corpus, rows: int, steps: int = 0) -> Reading | None:
    """How a stage reads its training samples, `rows` in each step; None where a retention method mixes in others."""
    if any(method.mixes_data for method in build_retention(cfg, corpus)):
        return None
    return Reading(cfg.seed, rows, steps, cfg.get("privacy") is not None)


def make_evaluations(tree: Tree, stage: Stage, plan: Plan, record: StageRecord) -> RunEvaluations:
    """Builds the callback that runs the evaluations of the config's node `evals`."""
    settings = stage.config.eval
    tokens = None if settings.tokens is None else round(quantity(settings.tokens))
    reading = plan_reading(stage.config, plan.corpus, plan.rows)
    is_trunk = any(other.continues and other.parent == stage.name for other in tree.stages)
    return RunEvaluations(
        plan.measurements,
        make_subject(plan.model, plan.corpus, plan.objective, tokens, min(plan.scored_rows, 64), reading),
        record,
        tree.folder,
        OmegaConf.to_container(stage.config.evals, resolve=True),  # type: ignore[arg-type]
        batch_tokens=plan.batch_tokens,
        every=None if settings.every_tokens is None else round(quantity(settings.every_tokens)),
        at_start=tree.from_weights and stage.parent is None,
        at_end=not is_trunk,
    )
