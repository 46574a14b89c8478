"""Trains the stages of a run one after another, each with a new Trainer.

A stage continues from its newest valid checkpoint, or starts from that of its parent. Stages hand over state only
through checkpoints on disk, so a killed run can resume in any stage.

The record of a finished stage says what it trained, and what that cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch

from kleiber.config.cost import Power, cost_of, device_power, read_cost
from kleiber.config.errors import ConfigError
from kleiber.config.stages import has_pretrained_weights, quantity
from kleiber.config.targets import build
from kleiber.data.batches import ConcatSamples, repeat_each, stream
from kleiber.models.counting import count_parameters, executed_flops, forward_flops, training_flops
from kleiber.nn.sharding import full_parameters, place_by_name
from kleiber.records.summary import StageRecord
from kleiber.records.terminal import print_line
from kleiber.runs.open import freeze_unused_heads
from kleiber.runs.plan import Plan, build_model, build_retention
from kleiber.runs.stage_evaluation import make_evaluate, make_evaluations
from kleiber.runs.stage_retention import begin_retention, end_retention, trained_objectives
from kleiber.runs.stage_tree import Stage, StageTasks, Tree, branch_steps
from kleiber.training import checkpoint
from kleiber.training.callbacks.evaluate import Evaluate, LightningHooks, StopAtLoss
from kleiber.training.callbacks.fault_tolerance import (
    Checkpoints,
    DataPosition,
    Preempt,
    UnfinishedBatch,
    restore_callbacks,
)
from kleiber.training.callbacks.log import Log, Throughput
from kleiber.training.energy import EnergyMeter
from kleiber.training.lightning import Callback, end_fit, fit, is_of_lightning, misconfigurations
from kleiber.training.lit import LitLM
from kleiber.training.loggers import StageLogger
from kleiber.training.memory import peak_memory_bytes, reset_peak_memory
from kleiber.training.step import Rollback, rank_errors
from kleiber.training.trainer import peak_flops
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective, Samples
from kleiber.types.model import Model
from kleiber.types.retention import Retention
from kleiber.types.score import Score, Scores


def complete_record(
    record: StageRecord,
    tree: Tree,
    stage: Stage,
    model: Model,
    samples: Samples,
    measured: Power | None = None,
    methods: Sequence[Retention] = (),
) -> None:
    """Adds to the record what the stage trained and what it cost.

    Tokens, samples and FLOPs are counted from the root of the tree, steps from the start of the stage. FLOPs of the
    model are those of one forward and backward pass over the stage's batches. Executed are also recomputation, masked
    pairs, and the passes that the methods against forgetting, a teacher or a reference add in each step; rows of
    earlier tasks count as rows of the stage.

    methods   methods against forgetting with which the stage trained
    samples   those that the stage has trained on
    measured  power of a device while it trained; None where no counter could be read
    """
    plan, cfg = stage.plan, stage.config
    device = torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    speed = record.tokens_per_s
    peak = peak_flops(device, str(cfg.trainer.precision) == "bf16") if speed else None
    record.params = dataclasses.asdict(count_parameters(model))
    before = {"tokens": 0, "samples": 0, "flops": {"model": 0.0, "executed": 0.0, "six_nd": 0.0}}
    if stage.parent and not stage.continues:
        before = tree.done.get(stage.parent) or before
    heads = plan.objective.outputs
    # `flops` count only what is trained: a step of an adapter costs less.
    tokens, flops = plan.tokens, training_flops(model, plan.row_tokens, heads)
    executed = executed_flops(model, plan.row_tokens, tree.hardware.checkpoint_activations is True, heads)
    passes = [method.extra_passes(plan.rows) for method in methods]
    repeated, unlearned = sum(second for _, second in passes), sum(first for first, _ in passes)
    executed += repeated * executed + unlearned * forward_flops(model, plan.row_tokens, heads)
    executed += plan.objective.forward_only_flops(model, plan.row_tokens)
    record.status = "finished"
    record.tokens, record.unique_tokens = before["tokens"] + tokens, unique_tokens(plan, samples, cfg.seed)
    record.samples = before["samples"] + plan.stop_step * plan.rows // plan.objective.passes
    record.steps = plan.stop_step
    record.flops = {
        "model": before["flops"]["model"] + flops * tokens,
        "executed": before["flops"]["executed"] + executed * tokens,
        "six_nd": before["flops"]["six_nd"] + 6.0 * plan.parameters.active * tokens,
    }
    record.device_seconds = None if record.seconds is None else record.seconds * plan.world_size
    if record.device_seconds is not None:
        cost = read_cost(cfg)
        power = device_power(cost, cfg.trainer.accelerator, torch.get_num_threads(), measured)
        record.cost = cost_of(cost, power, record.device_seconds)
    record.mfu = speed * flops / (peak * plan.world_size) if speed and peak else None
    record.peak_memory_bytes = record.peak_memory_bytes or peak_memory_bytes(device)  # where no step was left to make
    if plan.privacy is not None:
        record.privacy = plan.privacy.record(plan.stop_step)
        record.add_scores({"privacy/epsilon": Score(record.privacy["epsilon"], better="lower", label="privacy loss ε")})
    last = checkpoint.steps(tree.checkpoints(stage.name))
    record.checkpoint = str(last[0].relative_to(tree.folder)) if last else None


def unique_tokens(plan: Plan, samples: Samples, seed: int) -> int:
    """Returns the number of distinct tokens of the stage's data that it has read up to `plan.stop_step`.

    With DP-SGD, whose steps draw every sample with a probability, it is the expected number.

    samples  those that it trains on: its data, or a mixture with those of earlier tasks behind them
    """
    train = plan.corpus.train
    if plan.privacy is not None:
        return round(train.num_tokens * (1 - (1 - plan.privacy.rate) ** plan.stop_step))
    whole = round(train.num_tokens * min(1.0, plan.epochs))
    if not isinstance(samples, ConcatSamples):
        return whole
    from kleiber.data.mixture import Mixture, fractions_of

    if not isinstance(samples, Mixture):
        return whole
    read = samples.order(seed).num_read(plan.stop_step * plan.rows)
    parts = samples.parts if samples is train else samples.parts[: len(fractions_of(train))]
    return round(sum(part.num_tokens * count / len(part) for part, count in zip(parts, read, strict=False)))


class Batches:
    """An infinite stream of this rank's batches, starting at the position of step `start` in the data.

    share  number of this rank's part of the rows, and that of all parts
    """

    def __init__(self, samples: Samples, plan: Plan, seed: int, start: int, share: tuple[int, int]) -> None:
        self.samples, self.seed, self.start, self.share = samples, seed, start, share
        self.rows, self.privacy, self.passes = plan.rows, plan.privacy, plan.objective.passes

    def __iter__(self) -> Iterator[Batch]:
        if self.privacy is not None:
            from kleiber.training.private_step import poisson_stream

            return poisson_stream(self.samples, self.seed, self.start, self.privacy.rate)
        first, taken = divmod(self.start, self.passes)
        batches = stream(self.samples, self.seed, first, self.rows, *self.share)
        return batches if self.passes == 1 else islice(repeat_each(batches, self.passes), taken, None)


def run_tree(tree: Tree, put: Callable[[Json], None]) -> None:
    """Trains the unfinished stages, parents first, and calls `put` with the entry of each in summary.json."""
    model = tree.stages[0].plan.model  # the first stage trains the model of its plan, every other stage a new one
    for number, stage in enumerate(tree.stages, start=1):
        if stage.name in tree.done:
            tree.begin_objective(stage, model)  # later stages are scored on its tasks too
            continue
        if tree.hardware.rank == 0 and len(tree.stages) > 1:
            step = f" at step {stage.branch_step:,}" if stage.continues else ""
            start = f" from {stage.parent}{step}" if stage.parent else ""
            print_line(f"stage {number} of {len(tree.stages)}: {stage.name}{start}", err=True)
        if model is None:
            model = build_model(stage.config, stage.plan.corpus, stage.plan.outputs, tree.hardware)
        with rank_errors():
            tree.done[stage.name] = run_stage(tree, stage, model).to_json()
        model = None
        put(tree.done[stage.name])
        if tree.hardware.rank == 0 and stage.continues:
            remove_branch_checkpoints(tree, stage, tree.stages[number:])


def remove_branch_checkpoints(tree: Tree, branch: Stage, unfinished: Sequence[Stage]) -> None:
    """Removes the checkpoints of a branch's trunk from which no unfinished branch starts."""
    assert branch.parent is not None
    folder = tree.checkpoints(branch.parent)
    needed = [folder / checkpoint.name(step) for step in branch_steps(unfinished, branch.parent)]
    checkpoint.tidy(folder, branch.config.callbacks.checkpoints.keep, needed)


def run_stage(tree: Tree, stage: Stage, model: Model) -> StageRecord:
    """Trains a stage to its last step, evaluates the model, and returns the record of the stage.

    A rollback resumes the stage in this process, as a killed run would. The list of rollbacks is in the checkpoints
    after it; a run that is killed before the next one meets the same alarm again, and does the same.
    """
    rollbacks: list[Json] = []
    limit: int | None = None
    while True:
        try:
            return train_stage(tree, stage, model, rollbacks, limit)
        except Rollback as alarm:
            limit = alarm.target
            rollbacks = [*alarm.earlier, {"step": alarm.step, "to": 0, "reason": alarm.reason}]
            if tree.hardware.rank == 0:
                print_line(f"stability at {alarm}; going back, and leaving out the data up to here", err=True)
        model = build_model(stage.config, stage.plan.corpus, stage.plan.outputs, tree.hardware)


def train_stage(tree: Tree, stage: Stage, model: Model, rollbacks: list[Json], limit: int | None) -> StageRecord:
    """Trains a stage from its newest checkpoint to its last step, and returns its record.

    rollbacks  those so far, where this process trains the stage again after the last of them; else empty
    limit      step to which the last of them goes back; None without any
    """
    cfg, plan, hardware = stage.config, dataclasses.replace(stage.plan, model=model), tree.hardware
    saved, resumed = tree.newest_checkpoint(stage, limit)
    start = saved.step if saved else 0
    tasks, methods = tree.stage_tasks(stage), build_retention(cfg, plan.corpus)
    load_weights(tree, stage, model, saved, trained_objectives(methods, stage, tasks))
    hardware.shard(model)
    tree.begin_objective(stage, model)
    record = stage.new_record(tasks)
    if stage.parent and not stage.continues:  # it may have stopped before the steps of its plan
        record.branch_step = tree.done[stage.parent]["steps"]
    evaluate = make_evaluate(tree, stage, plan, tasks, record)
    meter = EnergyMeter(hardware.device)
    callbacks = make_callbacks(tree, stage, plan, evaluate, meter)
    state = saved.load_state(model) if saved else None
    if state:
        state |= {key: place_by_name(state[key], model) for key in ("callbacks", "retention")}
        restore_callbacks(callbacks, state["callbacks"], same_stage=resumed)
    if rollbacks:
        record.rollbacks = [*rollbacks[:-1], {**rollbacks[-1], "to": start}]
    # A branch has the retention memory of its trunk, because it equals a separate run that started with the trunk.
    samples = begin_retention(methods, tree, stage, model, tasks, state["retention"] if state else None)
    for logger in tree.loggers:
        if isinstance(logger, StageLogger):
            name = stage.name if len(tree.stages) > 1 else None
            if resumed and (record.curve or any(isinstance(each, Log) and each.every <= start for each in callbacks)):
                logger.expect_rows(start)
            logger.begin(name, start if resumed else 0, tree.axis(stage))
    micro_batch = resumed_micro_batch(cfg.batch.micro, plan.micro_batch, state if resumed else None)
    lit = build_lit(stage, model, methods, micro_batch, state)
    hardware.prepare_model(lit.model)
    target_loss = cfg.budget.get("stop_at_loss")
    trained = start
    if start < plan.stop_step and not has_stopped(callbacks, record, target_loss, start):
        with misconfigurations():
            trainer = hardware.trainer(callbacks, tree.loggers, plan.stop_step)
        position = start + record.skipped_steps
        fit(trainer, lit, Batches(samples, plan, cfg.seed, position, (hardware.rank, hardware.world_size)), start)
        trained = trainer.global_step
        if trained == start:
            raise ConfigError("a callback of Lightning ended the training before its first step: remove or change it")
    else:  # a process that was killed after its last checkpoint may not have written what callbacks write at the end
        end_fit(hardware.trainer(callbacks, tree.loggers, start), lit, start)
    at_loss = target_loss is not None and trained < plan.stop_step and record.reaches(target_loss, trained)
    record.stopped_at_loss = target_loss if at_loss else None
    stage = dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, stop_step=trained))
    end_retention(methods, tree, stage, model, evaluate)
    record.add_scores(stage_drift(tree, stage, model, tasks))
    complete_record(record, tree, stage, model, samples, meter.power(), methods)
    return record


def has_stopped(callbacks: Sequence[Callback], record: StageRecord, target_loss: float | None, start: int) -> bool:
    """Whether an earlier process ended the stage at step `start`, at its target loss or for a callback of Lightning."""
    if target_loss is not None and start and record.reaches(target_loss, start):
        return True
    return any(isinstance(callback, LightningHooks) and callback.stopped == start for callback in callbacks)


def build_lit(stage: Stage, model: Model, methods: Sequence[Retention], micro_batch: int, state: Json | None) -> LitLM:
    """Returns the module that trains a stage; its optimizer continues from the `state` of a checkpoint, if any."""
    plan = stage.plan
    return LitLM(
        model,
        plan.objective,
        plan.optimizer,
        plan.schedule,
        total_steps=plan.steps,
        micro_batch=micro_batch,
        seed=stage.config.seed,
        restored=state["optimizer"] if state else None,
        retention=methods,
        partial=stage.config.adapter is not None,
        privacy=plan.privacy,
    )


def resumed_micro_batch(setting: int | str, planned: int, state: Json | None) -> int:
    """Returns the rows per forward and backward pass of a stage with the setting `batch.micro`.

    A resumed stage keeps a micro-batch that it reduced for lack of memory, so that sums keep their order. With
    resume=PATH the setting can be smaller than what it was.

    state  of the checkpoint from which the stage resumes; None where it starts
    """
    saved = planned if state is None else state.get("micro_batch", planned)
    return saved if setting == "auto" else min(saved, planned)


def make_callbacks(tree: Tree, stage: Stage, plan: Plan, evaluate: Evaluate, meter: EnergyMeter) -> list[Callback]:
    """Builds the callbacks of a stage, in the order in which they act after a step.

    Throughput stops its clock before evaluation begins, and starts it after the others. Checkpoints are written behind
    them, with the scores of the step.
    """
    cfg, folder = stage.config, tree.folder
    available = {
        "batch_tokens": plan.batch_tokens,
        "branch_steps": branch_steps(tree.stages, stage.name),
        "corpus": plan.corpus,
        "config_hash": folder.name.rsplit("-", 1)[-1],
        "evaluate": evaluate,
        "meter": meter,
        "record": evaluate.record,
    }
    folders = dict.fromkeys(("checkpoints", "ema"), tree.checkpoints(stage.name))  # others: of the run
    nodes = {key: node for key, node in cfg.callbacks.items() if node is not None}
    built = [build(node, **available, folder=folders.get(key, folder)) for key, node in nodes.items()]
    writers = [callback for callback in built if isinstance(callback, Checkpoints)]
    clocks = [callback for callback in built if isinstance(callback, Throughput)]
    target_loss = cfg.budget.get("stop_at_loss")
    stops = [] if target_loss is None else [StopAtLoss(target_loss, evaluate)]
    foreign = [callback for callback in built if is_of_lightning(callback)]
    hooks = [*foreign, LightningHooks(evaluate, foreign)] if foreign else []
    others = [callback for callback in built if callback not in (*clocks, *writers, *foreign)]
    if not plan.corpus.train.random_access:
        others.append(DataPosition(plan.corpus.train))
    if plan.objective.passes > 1:
        others.append(UnfinishedBatch(plan.objective))
    if plan.measurements:
        others.append(make_evaluations(tree, stage, plan, evaluate.record))
    preempt = Preempt(writers[0] if writers else None)
    return [
        *clocks,
        evaluate,
        *stops,
        *hooks,
        *others,
        *writers,
        preempt,
        *(clock.start_callback() for clock in clocks),
    ]


def load_weights(
    tree: Tree, stage: Stage, model: Model, saved: checkpoint.Checkpoint | None, objectives: Sequence[Objective]
) -> None:
    """Loads the weights that a stage starts or resumes with, and freezes those that it does not train.

    The checkpoint of a stage with an adapter holds only the trained weights; the others are those it started from.

    objectives  whose output layers are trained
    """
    model.to(tree.hardware.device, tree.hardware.dtype)
    reset_peak_memory(tree.hardware.device)  # that of an earlier stage
    if saved is None or saved.names is not None:
        tree.load_start(stage, model)
    has_adapter = stage.config.adapter is not None
    if has_adapter:
        build(stage.config.adapter).apply(model, stage.config.seed)
    freeze_unused_heads(model, objectives)
    if saved:
        saved.load_model(model, checkpoint.trained_names(model) if has_adapter else None)


def stage_drift(tree: Tree, stage: Stage, model: Model, tasks: StageTasks) -> Scores:
    """Measures how far a stage moved the model from the trained weights that the stage started from.

    Returns scores by metric name: the relative distance of the weights and the KL divergence on earlier tasks (see
    `drift_metrics`), and the losses of the model with random weights (see `untrained_losses`). Returns an empty
    dictionary when the stage started from random weights, or is a branch of a trunk.
    """
    if stage.continues or not tree.from_weights:
        return {}
    from kleiber.evals.drift import drift_metrics, merge_copy, untrained_losses

    start = build_model(stage.config, stage.plan.corpus, stage.plan.outputs)
    start.to(tree.hardware.device, tree.hardware.dtype)
    options = round(quantity(stage.config.eval.watch_tokens)), stage.plan.scored_rows, tree.hardware.runtime
    before = {} if has_pretrained_weights(stage.config.model) else untrained_losses(start, tasks.earlier, *options)
    if not tree.load_start(stage, start):
        return {}
    adapter = stage.config.adapter
    with full_parameters(model):
        after = merge_copy(model, None if adapter is None else build(adapter).merge)
        return before | drift_metrics(start, after, tasks.earlier, tasks.current, *options)
