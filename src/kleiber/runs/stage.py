"""Runs the stages of a run, each with a new Trainer, from its newest valid checkpoint or its parent's.

State passes between stages by checkpoint path, never as a live object, so a killed run can resume in any of them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from kleiber.config.errors import ConfigError
from kleiber.config.signatures import build
from kleiber.config.stages import built_trained, quantity
from kleiber.data.sampler import stream
from kleiber.evals.drift import drift, merged, untrained
from kleiber.models.counting import count_parameters, executed_flops, training_flops
from kleiber.records.summary import Scores, StageRecord
from kleiber.retention.memory import ranks
from kleiber.runs.open import load_stage
from kleiber.runs.plan import Plan, build_model, retention_of
from kleiber.runs.stage_callbacks import make_callbacks, make_evaluate
from kleiber.runs.stage_tree import Stage, TasksAround, Tree, branch_steps
from kleiber.training import checkpoint
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.callbacks.fault_tolerance import method_name, restore_callbacks
from kleiber.training.lightning import fit
from kleiber.training.lit import LitLM
from kleiber.training.loggers import StageLogger
from kleiber.training.sharding import full_parameters
from kleiber.training.trainer import peak_flops, peak_memory_bytes
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective, Retention, Samples
from kleiber.types.model import Model


class Batches:
    """Infinite stream of this rank's batches, starting at step `start`."""

    def __init__(self, samples: Samples, plan: Plan, seed: int, start: int, rank: int) -> None:
        self.arguments = (samples, seed, start, plan.rows, rank, plan.world_size)

    def __iter__(self) -> Iterator[Batch]:
        return stream(*self.arguments)


def run_tree(tree: Tree, put: Callable[[Json], None]) -> None:
    """Runs the stages that are not finished, parents first, and calls `put` with each one's entry of summary.json."""
    model = tree.stages[0].plan.model  # built for the plan; every other stage gets a new one
    for number, stage in enumerate(tree.stages, start=1):
        if stage.name in tree.done:
            begin_objective(tree, stage, model)  # later stages score its tasks against its first weights
            continue
        if tree.hardware.rank == 0 and len(tree.stages) > 1:
            step = f" at step {stage.branch_step:,}" if stage.continues else ""
            start = f" from {stage.parent}{step}" if stage.parent else ""
            print(f"stage {number} of {len(tree.stages)}: {stage.name}{start}", file=sys.stderr)
        if model is None:
            model = build_model(stage.config, stage.plan.corpus, stage.plan.outputs)
        tree.done[stage.name] = run_stage(tree, stage, model).to_json()
        model = None
        put(tree.done[stage.name])
        if tree.hardware.rank == 0 and stage.continues:
            remove_branch_checkpoints(tree, stage, tree.stages[number:])


def remove_branch_checkpoints(tree: Tree, branch: Stage, unfinished: Sequence[Stage]) -> None:
    """Removes the checkpoints of a branch's trunk that no unfinished branch starts from."""
    assert branch.parent is not None
    folder = tree.checkpoints(branch.parent)
    needed = [folder / checkpoint.name(step) for step in branch_steps(unfinished, branch.parent)]
    checkpoint.tidy(folder, branch.config.callbacks.checkpoints.keep, needed)


def run_stage(tree: Tree, stage: Stage, model: Model) -> StageRecord:
    """Trains to the stage's last step, evaluates, and returns the stage's record."""
    cfg, plan, hardware = stage.config, dataclasses.replace(stage.plan, model=model), tree.hardware
    saved, resumed = newest_checkpoint(tree, stage)
    start = saved.step if saved else 0
    load_weights(tree, stage, model, saved)
    begin_objective(tree, stage, model)
    tasks = tree.tasks_around(stage)
    record = new_record(tree, stage, tasks)
    evaluate = make_evaluate(tree, stage, plan, tasks, record)
    callbacks = make_callbacks(tree, stage, plan, evaluate)
    state = saved.load_state() if saved else None
    if state:
        restore_callbacks(callbacks, state["callbacks"], same_stage=resumed)
    methods = retention_of(cfg, plan.corpus)
    # A branch retains what its trunk did, because it equals the run of its length, which began where the trunk did.
    samples = begin_retention(methods, tree, stage, model, tasks, state["retention"] if state else None)
    for logger in tree.loggers:
        if isinstance(logger, StageLogger):
            logger.begin(stage.name if len(tree.stages) > 1 else None, start)
    lit = LitLM(
        model,
        plan.objective,
        plan.optimizer,
        plan.schedule,
        total_steps=plan.steps,
        # A stage that reduced its micro-batch for lack of memory keeps it, or its sums would be in another order.
        micro_batch=state.get("micro_batch", plan.micro_batch) if state and resumed else plan.micro_batch,
        seed=cfg.seed,
        restored=state["optimizer"] if state else None,
        retention=methods,
        partial=cfg.adapter is not None,
    )
    hardware.prepare_model(lit.model)
    target_loss = cfg.budget.get("stop_at_loss")
    if start < plan.stop_step and not (target_loss is not None and start and record.reaches(target_loss, start)):
        trainer = hardware.trainer(callbacks, tree.loggers, plan.stop_step)
        fit(trainer, lit, Batches(samples, plan, cfg.seed, start, hardware.rank), start)
        start = trainer.global_step
    record.stopped_at_loss = target_loss if start < plan.stop_step else None
    stage = dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, stop_step=start))
    with full_parameters(model):
        end_retention(methods, tree, stage, model, evaluate)
        record.add_scores(stage_drift(tree, stage, model, tasks))
        complete_record(record, tree, stage, model)
    return record


def begin_objective(tree: Tree, stage: Stage, model: Model | None) -> None:
    """Lets the objective read the model that the stage begins with (a branch: its trunk's).

    For a stage that has checkpoints it reads the results of then.
    """
    first = stage.parent if stage.continues and stage.parent else stage.name
    with tree.hardware.place.precision(tree.hardware.device):  # as in training
        stage.plan.objective.begin(model, stage.plan.corpus, tree.checkpoints(first).parent)


def newest_checkpoint(tree: Tree, stage: Stage) -> tuple[checkpoint.Checkpoint | None, bool]:
    """The checkpoint that the stage continues, and whether the stage itself saved it; a new branch has its trunk's."""
    saved, defects = checkpoint.latest(tree.checkpoints(stage.name))
    if tree.hardware.rank == 0:
        for defect in defects:
            print(f"damaged checkpoint skipped: {defect}", file=sys.stderr)
        if saved:
            print(f"resuming at step {saved.step:,} from {saved.path}", file=sys.stderr)
    if saved is None and stage.continues:
        assert stage.parent is not None
        return checkpoint.read(tree.checkpoints(stage.parent) / checkpoint.name(stage.branch_step)), False
    return saved, saved is not None


def load_weights(tree: Tree, stage: Stage, model: Model, saved: checkpoint.Checkpoint | None) -> None:
    """Loads the weights that the stage begins or continues with, and freezes those that it does not train.

    With an adapter, a checkpoint holds the trained weights alone, and the others are those that the stage began with.
    """
    model.to(tree.hardware.device, tree.hardware.dtype)
    if saved is None or saved.names is not None:
        load_start(tree, stage, model)
    adapted = stage.config.adapter is not None
    if adapted:
        build(stage.config.adapter).apply(model, stage.config.seed)
    freeze_unused_heads(model, stage.plan.objective)
    if saved:
        saved.load_model(model, checkpoint.trained_names(model) if adapted else None)


def load_start(tree: Tree, stage: Stage, model: Model) -> bool:
    """Loads the trained weights that a stage begins with. Returns whether there are any."""
    if stage.parent is not None and not stage.continues:
        load_stage(model, tree.folder, stage.parent)
        return True
    if tree.start_point is not None:
        tree.start_point.load(model)
    return tree.from_weights and stage.parent is None and tree.start_point is not None


def stage_drift(tree: Tree, stage: Stage, model: Model, tasks: TasksAround) -> Scores:
    """How far the stage has moved the model from the trained weights that it began with; {} for a new model."""
    if stage.continues or not tree.from_weights:
        return {}
    start = build_model(stage.config, stage.plan.corpus, stage.plan.outputs)
    start.to(tree.hardware.device, tree.hardware.dtype)
    options = round(quantity(stage.config.eval.watch_tokens)), max(1, stage.plan.rows), tree.hardware.place
    before = {} if built_trained(stage.config.model) else untrained(start, tasks.earlier, *options)
    if not load_start(tree, stage, start):
        return {}
    adapter = stage.config.adapter
    after = merged(model, None if adapter is None else build(adapter).merge)
    return before | drift(start, after, tasks.earlier, tasks.own, *options)


def freeze_unused_heads(model: Model, objective: Objective) -> None:
    """Freezes the output layers that the objective does not read, which get no gradient."""
    for name, head in model.heads.items():
        if name not in objective.outputs:
            head.requires_grad_(False)
    if objective.outputs:
        model.leave_out_head()


def begin_retention(
    methods: Sequence[Retention], tree: Tree, stage: Stage, model: Model, tasks: TasksAround, saved: Json | None
) -> Samples:
    """Loads the memory of the methods and returns the samples that the stage trains on.

    The memory of a stage with an adapter is about the adapter's parameters, so no other stage begins with it, nor that
    stage with another's. Raises ConfigError where a method cannot work with the model or the tasks.

    saved  memory by method, of a stage that continues
    """
    memory = saved or {}
    adapted = any(other.config.adapter for other in tree.stages if other.name in (stage.name, stage.parent))
    if saved is None and methods and stage.parent is not None and not adapted:
        last, _ = checkpoint.latest(tree.checkpoints(stage.parent))
        memory = last.load_state()["retention"] if last else {}
    samples: Samples = stage.plan.corpus.train
    for method in methods:
        if method_name(method) in memory:
            method.load_state_dict(memory[method_name(method)])
        try:
            if saved is None:
                method.begin_stage(model, tasks.earlier, stage.config.seed)
            samples = method.data(samples, tasks.earlier, stage.plan.objective)
        except ValueError as error:
            where = f"stages.chain.{stage.name}: " if stage.parent else ""
            raise ConfigError(f"{where}{error}") from error
    return samples


def end_retention(methods: Sequence[Retention], tree: Tree, stage: Stage, model: Model, evaluate: Evaluate) -> None:
    """Scores the further checkpoints that methods make of a finished stage, under their names.

    The methods get plain weights: an adapter's updates are merged into a copy of the model first.
    """
    adapter = stage.config.adapter
    model = merged(model, None if adapter is None or not methods else build(adapter).merge)

    def save(name: str) -> Path:
        folder = tree.folder / "stages" / stage.name / name
        if ranks()[0] == 0:
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


def new_record(tree: Tree, stage: Stage, tasks: TasksAround) -> StageRecord:
    """The record of a stage that begins or resumes."""
    corpus = stage.plan.corpus
    return StageRecord(
        name=stage.name,
        parent=stage.parent,
        trunk=stage.parent if stage.continues else None,
        branch_step=stage.branch_step if stage.parent else None,
        objective=type(stage.plan.objective).__name__.lower(),
        tasks=[task.name for task in tasks.own],
        data={
            "name": corpus.name, "config": corpus.config, "hash": corpus.hash, "tokenizer_hash": corpus.tokenizer.hash,
            "tokens": corpus.train.num_tokens, "bytes": corpus.train.num_bytes,
        },
        batch_tokens=stage.plan.batch_tokens,
        lr=stage.plan.optimizer.lr,
    )  # fmt: skip


def complete_record(record: StageRecord, tree: Tree, stage: Stage, model: Model) -> None:
    """Adds what was trained and what it cost; tokens, samples and FLOPs are those since the root of the tree."""
    plan, cfg = stage.plan, stage.config
    device = torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    speed = record.tokens_per_s
    peak = peak_flops(device) if speed else None
    record.params = dataclasses.asdict(count_parameters(model))
    before = {"tokens": 0, "samples": 0, "flops": {"model": 0.0, "executed": 0.0, "six_nd": 0.0}}
    if stage.parent and not stage.continues:
        before = tree.done.get(stage.parent) or before
    heads = plan.objective.outputs
    # Of what is trained: an adapter's step is cheaper.
    tokens, flops = plan.tokens, training_flops(model, plan.row_tokens, heads)
    executed = executed_flops(model, plan.row_tokens, tree.hardware.checkpoint_activations, heads)
    record.status = "finished"
    record.tokens, record.unique_tokens = before["tokens"] + tokens, plan.unique_tokens
    record.samples, record.steps = before["samples"] + plan.stop_step * plan.rows, plan.stop_step
    record.flops = {
        "model": before["flops"]["model"] + flops * tokens,
        "executed": before["flops"]["executed"] + executed * tokens,
        "six_nd": before["flops"]["six_nd"] + 6.0 * plan.parameters.active * tokens,
    }
    record.device_seconds = None if record.seconds is None else record.seconds * plan.world_size
    record.mfu = speed * flops / (peak * plan.world_size) if speed and peak else None
    record.peak_memory_bytes = peak_memory_bytes(device)
    last = checkpoint.steps(tree.checkpoints(stage.name))
    record.checkpoint = str(last[0].relative_to(tree.folder)) if last else None
