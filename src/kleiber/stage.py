"""Runs the stages of a tree, each with a Trainer built afresh, from its newest good checkpoint or its parent's.

State passes between stages by checkpoint path, never as a live object: so a killed run resumes in any of them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from kleiber import checkpoint
from kleiber.budget import quantity
from kleiber.build import build
from kleiber.callbacks.checkpoints import Checkpoints, restore_callbacks
from kleiber.callbacks.evaluate import Evaluate
from kleiber.callbacks.preempt import Preempt
from kleiber.callbacks.throughput import Throughput, peak_flops, peak_memory_bytes
from kleiber.data.sampler import stream
from kleiber.lit import LitLM
from kleiber.plan import Plan, build_model
from kleiber.tree import Stage, branch_steps


class Stream:
    """The endless batches of this rank, from the step that a run has reached."""

    def __init__(self, plan: Plan, seed: int, start: int, rank: int) -> None:
        self.arguments = (plan.corpus.train, seed, start, plan.rows, rank, plan.world_size)

    def __iter__(self) -> Any:
        return stream(*self.arguments)


def run_tree(
    cfg: DictConfig,
    base: Plan,
    stages: list[Stage],
    hardware: Any,
    folder: Path,
    loggers: list[Any],
    finished: Container[str],
    put: Callable[[dict[str, Any]], None],
) -> None:
    """Runs the stages that are not `finished`, parents first, and hands each one's record to `put`."""
    model = base.model  # built for the plan; every further stage gets one of its own
    for number, stage in enumerate(stages, start=1):
        if stage.name in finished:
            continue
        if hardware.rank == 0 and len(stages) > 1:
            origin = f" from {stage.parent} at step {stage.branch_step:,}" if stage.parent else ""
            print(f"stage {number} of {len(stages)}: {stage.name}{origin}", file=sys.stderr)
        plan = stage.plan(base, build_model(cfg, base.corpus) if model is None else model)
        model = None
        put(run_stage(cfg, plan, stage, stages, hardware, folder, loggers))
        if hardware.rank == 0 and stage.parent is not None:
            forget_branch(folder, stage, stages[number:], cfg.callbacks.checkpoints.keep)


def checkpoints_of(folder: Path, name: str) -> Path:
    return folder / "stages" / name / "checkpoints"


def forget_branch(folder: Path, done: Stage, still_open: list[Stage], keep: int) -> None:
    """Removes the parent's checkpoints that only finished children needed."""
    assert done.parent is not None
    place = checkpoints_of(folder, done.parent)
    checkpoint.tidy(place, keep, [place / checkpoint.name(step) for step in branch_steps(still_open, done.parent)])


def run_stage(
    cfg: DictConfig, plan: Plan, stage: Stage, stages: list[Stage], hardware: Any, folder: Path, loggers: list[Any]
) -> dict[str, Any]:
    """Trains to the stage's last step, evaluates, and returns the stage's entry of summary.json."""
    place = checkpoints_of(folder, stage.name)
    callbacks = make_callbacks(cfg, plan, place, folder, branch_steps(stages, stage.name))
    found, complaints = checkpoint.latest(place)
    resumed = found is not None
    if found is None and stage.parent is not None:
        found = checkpoint.read(checkpoints_of(folder, stage.parent) / checkpoint.name(stage.branch_step))
    start = found.step if found else 0
    if hardware.rank == 0:
        for complaint in complaints:
            print(f"damaged checkpoint passed over: {complaint}", file=sys.stderr)
        if found and resumed:
            print(f"resuming at step {start:,} from {found.path}", file=sys.stderr)
        for logger in loggers:
            if hasattr(logger, "begin"):
                logger.begin(stage.name if len(stages) > 1 else None, start)
    state = found.load_state() if found else None
    if found and state:
        found.load_model(plan.model.to(hardware.dtype))
        restore_callbacks(callbacks, state["callbacks"], own=resumed)
    lit = LitLM(
        plan.model,
        plan.objective,
        plan.optimizer,
        plan.schedule,
        total_steps=plan.steps,
        micro_batch=plan.micro_batch,
        seed=cfg.seed,
        restored=state["optimizer"] if state else None,
    )
    hardware.fit_out(lit.model)
    fit(lit, callbacks, plan, hardware, loggers, cfg.seed, start)
    return record(cfg, plan, stage, lit, callbacks, place, folder)


def fit(lit: LitLM, callbacks: list[Any], plan: Plan, hardware: Any, loggers: list[Any], seed: int, start: int) -> None:
    """Steps `start` to the last one; nothing when that was reached before."""
    if start >= plan.stop_step:
        return
    trainer = hardware.trainer(callbacks, loggers, plan.stop_step)
    # The one number of a resumed position: Lightning counts optimizer steps of manual optimisation here.
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    progress.ready = progress.completed = start
    try:
        trainer.fit(lit, train_dataloaders=Stream(plan, seed, start, hardware.rank))
    except SystemExit as error:
        raise KeyboardInterrupt from error  # which Lightning has turned into an exit


def make_callbacks(cfg: DictConfig, plan: Plan, place: Path, folder: Path, branches: list[int]) -> list[Any]:
    """The configured callbacks in the order in which a step's end concerns them.

    The clock stops before evaluation begins, and a checkpoint holds the score of its own step.
    """
    tokens = None if cfg.eval.tokens is None else round(quantity(cfg.eval.tokens))
    every = max(1, plan.steps // 4) if cfg.eval.every_steps is None else cfg.eval.every_steps
    evaluate = Evaluate(plan.corpus.validation, every, tokens, max(1, plan.rows), plan.objective.likelihood)
    available = {
        "batch_tokens": plan.batch_tokens,
        "branch_steps": branches,
        "corpus": plan.corpus,
        "config_hash": folder.name.rsplit("-", 1)[-1],
    }
    nodes = {key: node for key, node in cfg.callbacks.items() if node is not None}
    built = [build(node, **available, folder=place if key == "checkpoints" else folder) for key, node in nodes.items()]
    writer = next((c for c in built if isinstance(c, Checkpoints)), None)
    clocks = [c for c in built if isinstance(c, Throughput)]
    return [*clocks, evaluate, *(c for c in built if c not in clocks), Preempt(writer)]


def record(
    cfg: DictConfig, plan: Plan, stage: Stage, lit: LitLM, callbacks: list[Any], place: Path, folder: Path
) -> dict[str, Any]:
    """The stage's entry of summary.json."""
    clock = next((c for c in callbacks if isinstance(c, Throughput)), None)
    evaluate = next(c for c in callbacks if isinstance(c, Evaluate))
    speed = clock.tokens_per_s if clock else None
    device = torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu")
    peak = peak_flops(device) if speed else None
    corpus, tokens = plan.corpus, plan.tokens
    last = checkpoint.steps(place)
    return {
        "name": stage.name, "parent": stage.parent, "trunk": stage.parent, "status": "finished",
        "branch_step": stage.branch_step if stage.parent else None,
        "objective": type(plan.objective).__name__.lower(),
        "data": {
            "name": corpus.name, "config": corpus.config, "hash": corpus.hash, "tokenizer_hash": corpus.tokenizer.hash,
            "tokens": corpus.train.num_tokens, "bytes": corpus.train.num_bytes,
        },
        "params": dataclasses.asdict(plan.parameters),
        "tokens": tokens, "unique_tokens": min(tokens, corpus.train.num_tokens),
        "samples": plan.stop_step * plan.rows, "steps": plan.stop_step, "batch_tokens": plan.batch_tokens,
        "lr": plan.optimizer.lr,
        "flops": {
            "model": plan.flops_per_token * tokens, "executed": plan.executed_per_token * tokens,
            "six_nd": 6.0 * plan.parameters.active * tokens,
        },
        "seconds": clock.seconds if clock else None,
        "device_seconds": clock.seconds * plan.world_size if clock else None,
        "tokens_per_s": speed,
        "mfu": speed * plan.flops_per_token / (peak * plan.world_size) if speed and peak else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "metrics": evaluate.latest, "start_metrics": {}, "curve": evaluate.curve,
        "checkpoint": str(last[0].relative_to(folder)) if last else None,
    }  # fmt: skip
