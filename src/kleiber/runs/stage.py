"""Runs the stages of a tree, each with a Trainer built afresh, from its newest good checkpoint or its parent's.

State passes between stages by checkpoint path, never as a live object: so a killed run resumes in any of them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch

from kleiber.config.budget import quantity
from kleiber.config.signatures import build
from kleiber.config.stages import built_trained
from kleiber.data.sampler import stream
from kleiber.evals.drift import drift, merged, untrained
from kleiber.models.counting import count_parameters, executed_flops, training_flops
from kleiber.nn.sharding import full_parameters
from kleiber.runs.plan import Plan, build_model, retention_of
from kleiber.runs.retained import end_retention, retain
from kleiber.runs.stage_tree import Around, Stage, Tree, branch_steps
from kleiber.runs.start_point import begin_with
from kleiber.training import checkpoint
from kleiber.training.callbacks.checkpoints import Checkpoints, Preempt, restore_callbacks
from kleiber.training.callbacks.evaluate import Evaluate, StopAtLoss
from kleiber.training.callbacks.throughput import Throughput, peak_flops, peak_memory_bytes
from kleiber.training.lit import LitLM
from kleiber.types.contracts import Objective, Samples
from kleiber.types.model import Model


class Stream:
    """The endless batches of this rank, from the step that a run has reached."""

    def __init__(self, samples: Samples, plan: Plan, seed: int, start: int, rank: int) -> None:
        self.arguments = (samples, seed, start, plan.rows, rank, plan.world_size)

    def __iter__(self) -> Any:
        return stream(*self.arguments)


def run_tree(tree: Tree, put: Callable[[dict[str, Any]], None]) -> None:
    """Runs the stages that are not done, parents first, and hands each one's record to `put`."""
    model = tree.stages[0].plan.model  # built for the plan; every further stage gets one of its own
    for number, stage in enumerate(tree.stages, start=1):
        if stage.name in tree.done:
            begin(tree, stage, model)  # its tasks are scored again, against what it began with
            continue
        if tree.hardware.rank == 0 and len(tree.stages) > 1:
            at = f" at step {stage.branch_step:,}" if stage.continues else ""
            origin = f" from {stage.parent}{at}" if stage.parent else ""
            print(f"stage {number} of {len(tree.stages)}: {stage.name}{origin}", file=sys.stderr)
        if model is None:
            model = build_model(stage.config, stage.plan.corpus, stage.plan.outputs)
        told = run_stage(tree, stage, model)
        model = None
        tree.done[stage.name] = told
        put(told)
        if tree.hardware.rank == 0 and stage.continues:
            forget_branch(tree, stage, tree.stages[number:])


def forget_branch(tree: Tree, done: Stage, still_open: list[Stage]) -> None:
    """Removes the parent's checkpoints that only finished children needed."""
    assert done.parent is not None
    place = tree.place(done.parent)
    needed = [place / checkpoint.name(step) for step in branch_steps(still_open, done.parent)]
    checkpoint.tidy(place, done.config.callbacks.checkpoints.keep, needed)


def run_stage(tree: Tree, stage: Stage, model: Any) -> dict[str, Any]:
    """Trains to the stage's last step, evaluates, and returns the stage's entry of summary.json."""
    cfg, plan, hardware = stage.config, dataclasses.replace(stage.plan, model=model), tree.hardware
    found, resumed = newest(tree, stage)
    start = found.step if found else 0
    give_weights(tree, stage, model, found)
    begin(tree, stage, model)
    tasks = tree.around(stage)
    callbacks = make_callbacks(tree, stage, plan, tasks)
    state = found.load_state() if found else None
    if state:
        restore_callbacks(callbacks, state["callbacks"], own=resumed)
    methods = retention_of(cfg, plan.corpus)
    # A branch holds to what its trunk held to: it is the run of its length, and that began where the trunk did.
    samples = retain(methods, tree, stage, model, tasks, state["retention"] if state else None)
    for logger in tree.loggers:
        if hasattr(logger, "begin"):
            logger.begin(stage.name if len(tree.stages) > 1 else None, start)
    lit = LitLM(
        model,
        plan.objective,
        plan.optimizer,
        plan.schedule,
        total_steps=plan.steps,
        # What a stage has come to for want of memory it goes on with, or its sums would be in another order.
        micro_batch=state.get("micro_batch", plan.micro_batch) if state and resumed else plan.micro_batch,
        seed=cfg.seed,
        restored=state["optimizer"] if state else None,
        retention=methods,
        partial=cfg.adapter is not None,
    )
    hardware.fit_out(lit.model)
    reached = fit(lit, callbacks, plan, Stream(samples, plan, cfg.seed, start, hardware.rank), tree, start)
    stage = dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, stop_step=reached))
    evaluate = next(c for c in callbacks if isinstance(c, Evaluate))
    with full_parameters(model):
        end_retention(methods, tree, stage, model, evaluate)
        evaluate.latest |= moved(tree, stage, model, tasks)
        return record(tree, stage, lit, callbacks, planned=plan.stop_step)


def begin(tree: Tree, stage: Stage, model: Any) -> None:
    """Lets the objective ask the model that the stage begins with, a branch that of its trunk.

    Of a stage with checkpoints it reads what was answered then.
    """
    first = stage.parent if stage.continues and stage.parent else stage.name
    with tree.hardware.place.precision(tree.hardware.device):  # a reference rounds as the model that trains does
        stage.plan.objective.begin(model, stage.plan.corpus, tree.place(first).parent)


def newest(tree: Tree, stage: Stage) -> tuple[checkpoint.Checkpoint | None, bool]:
    """The checkpoint whose full state the stage goes on from, and whether it is its own; a branch begins with its
    parent's."""
    found, complaints = checkpoint.latest(tree.place(stage.name))
    if tree.hardware.rank == 0:
        for complaint in complaints:
            print(f"damaged checkpoint passed over: {complaint}", file=sys.stderr)
        if found:
            print(f"resuming at step {found.step:,} from {found.path}", file=sys.stderr)
    if found is None and stage.continues:
        assert stage.parent is not None
        return checkpoint.read(tree.place(stage.parent) / checkpoint.name(stage.branch_step)), False
    return found, found is not None


def give_weights(tree: Tree, stage: Stage, model: Any, found: checkpoint.Checkpoint | None) -> None:
    """Loads what the stage begins or goes on with, and marks what it trains.

    Where an adapter is at work, a checkpoint holds what it trained alone, beside the weights that it began with.
    """
    model.to(tree.hardware.device, tree.hardware.dtype)
    if found is None or found.names is not None:
        begin_from(tree, stage, model)
    adapted = stage.config.adapter is not None
    if adapted:
        build(stage.config.adapter).apply(model, stage.config.seed)
    leave_heads(model, stage.plan.objective)
    if found:
        found.load_model(model, checkpoint.trained(model) if adapted else None)


def begin_from(tree: Tree, stage: Stage, model: Any) -> bool:
    """Loads the trained weights that a stage begins with, and says whether there are any."""
    if stage.parent is not None and not stage.continues:
        begin_with(model, tree.folder, stage.parent)
        return True
    if tree.origin is not None:
        tree.origin.load(model)
    return tree.from_weights and stage.parent is None and tree.origin is not None


def moved(tree: Tree, stage: Stage, model: Any, tasks: Around) -> dict[str, float]:
    """How far the stage has moved the model from the trained weights that it began with; nothing of a new model."""
    if stage.continues or not tree.from_weights:
        return {}
    start = build_model(stage.config, stage.plan.corpus, stage.plan.outputs)
    start.to(tree.hardware.device, tree.hardware.dtype)
    pass_over = round(quantity(stage.config.eval.watch_tokens)), max(1, stage.plan.rows), tree.hardware.place
    fresh = {} if built_trained(stage.config.model) else untrained(start, tasks.earlier, *pass_over)
    if not begin_from(tree, stage, start):
        return {}
    adapter = stage.config.adapter
    after = merged(model, None if adapter is None else build(adapter).merge)
    return fresh | drift(start, after, tasks.earlier, tasks.own, *pass_over)


def leave_heads(model: Model, objective: Objective) -> None:
    """Leaves out of training the output layers that this objective does not read: they would get no gradient."""
    for name, head in model.heads.items():
        if name not in objective.outputs:
            head.requires_grad_(False)
    if objective.outputs:
        model.leave_out_head()


def fit(lit: LitLM, callbacks: list[Any], plan: Plan, batches: Stream, tree: Tree, start: int) -> int:
    """Steps `start` to the last one, which is returned; nothing when that was reached before."""
    stop = next((c for c in callbacks if isinstance(c, StopAtLoss)), None)
    if start >= plan.stop_step or (stop is not None and start and stop.reached(start)):
        return start
    trainer = tree.hardware.trainer(callbacks, tree.loggers, plan.stop_step)
    # The one number of a resumed position: Lightning counts optimizer steps of manual optimisation here.
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    progress.ready = progress.completed = start
    try:
        trainer.fit(lit, train_dataloaders=batches)
    except SystemExit as error:
        raise KeyboardInterrupt from error  # which Lightning has turned into an exit
    return trainer.global_step


def make_callbacks(tree: Tree, stage: Stage, plan: Plan, tasks: Around) -> list[Any]:
    """The configured callbacks in the order in which a step's end concerns them.

    The clock stops before evaluation begins, and a checkpoint holds the score of its own step.
    """
    cfg, folder = stage.config, tree.folder
    tokens = None if cfg.eval.tokens is None else round(quantity(cfg.eval.tokens))
    every = max(1, plan.steps // 4) if cfg.eval.every_steps is None else cfg.eval.every_steps
    handed = tree.done[stage.parent]["metrics"] if stage.parent and not stage.continues else {}
    known = {name: value for name, value in handed.items() if name.startswith("val/")}  # and not its drift
    watched = round(quantity(cfg.eval.watch_tokens))
    evaluate = Evaluate(
        tasks.own,
        every,
        tokens,
        max(1, plan.rows),
        tree.hardware.place,
        tasks.earlier,
        tasks.later,
        from_weights=tree.from_weights,
        start=known,
        watched=watched,
    )
    available = {
        "batch_tokens": plan.batch_tokens,
        "branch_steps": branch_steps(tree.stages, stage.name),
        "corpus": plan.corpus,
        "config_hash": folder.name.rsplit("-", 1)[-1],
    }
    place = tree.place(stage.name)
    nodes = {key: node for key, node in cfg.callbacks.items() if node is not None}
    own = ("checkpoints", "ema")  # the stage's and not the run's
    built = [build(node, **available, folder=place if key in own else folder) for key, node in nodes.items()]
    writers = [c for c in built if isinstance(c, Checkpoints)]
    clocks = [c for c in built if isinstance(c, Throughput)]
    stop = cfg.budget.get("stop_at_loss")
    stops = [] if stop is None else [StopAtLoss(stop, evaluate)]
    others = [c for c in built if c not in clocks and c not in writers]
    return [*clocks, evaluate, *stops, *others, *writers, Preempt(writers[0] if writers else None)]


def record(tree: Tree, stage: Stage, lit: LitLM, callbacks: list[Any], planned: int) -> dict[str, Any]:
    """The stage's entry of summary.json; tokens and FLOPs are those since the root of the tree."""
    plan, cfg, before = stage.plan, stage.config, tree.done.get(stage.parent or "", {})
    clock = next((c for c in callbacks if isinstance(c, Throughput)), None)
    evaluate = next(c for c in callbacks if isinstance(c, Evaluate))
    speed = clock.tokens_per_s if clock else None
    device = torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    peak = peak_flops(device) if speed else None
    corpus, parameters = plan.corpus, count_parameters(lit.model)
    past = {"tokens": 0, "samples": 0, "model": 0.0, "executed": 0.0, "six_nd": 0.0}
    if before and not stage.continues:
        past |= {"tokens": before["tokens"], "samples": before["samples"], **before["flops"]}
    read = plan.objective.outputs
    # Of what is trained: an adapter's step is cheaper.
    tokens, flops = plan.tokens, training_flops(lit.model, plan.row_tokens, read)
    executed = executed_flops(lit.model, plan.row_tokens, tree.hardware.checkpoint_activations, read)
    last = checkpoint.steps(tree.place(stage.name))
    return {
        "name": stage.name, "parent": stage.parent, "trunk": stage.parent if stage.continues else None,
        "status": "finished", "branch_step": stage.branch_step if stage.parent else None,
        "objective": type(plan.objective).__name__.lower(), "tasks": [task.name for task in evaluate.own],
        "data": {
            "name": corpus.name, "config": corpus.config, "hash": corpus.hash, "tokenizer_hash": corpus.tokenizer.hash,
            "tokens": corpus.train.num_tokens, "bytes": corpus.train.num_bytes,
        },
        "params": dataclasses.asdict(parameters),
        "tokens": past["tokens"] + tokens, "unique_tokens": plan.unique_tokens,
        "samples": past["samples"] + plan.stop_step * plan.rows, "steps": plan.stop_step,
        "batch_tokens": plan.batch_tokens, "lr": plan.optimizer.lr,
        "stopped_at_loss": cfg.budget.get("stop_at_loss") if plan.stop_step < planned else None,
        "flops": {
            "model": past["model"] + flops * tokens,
            "executed": past["executed"] + executed * tokens,
            "six_nd": past["six_nd"] + 6.0 * plan.parameters.active * tokens,
        },
        "seconds": clock.seconds if clock else None,
        "device_seconds": clock.seconds * plan.world_size if clock else None,
        "evaluation_seconds": evaluate.seconds,
        "tokens_per_s": speed,
        "mfu": speed * flops / (peak * plan.world_size) if speed and peak else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "metrics": evaluate.latest, "start_metrics": evaluate.start, "curve": evaluate.curve,
        "checkpoint": str(last[0].relative_to(tree.folder)) if last else None,
    }  # fmt: skip
