"""Fits one stage of a run with a Trainer built afresh, from its newest good checkpoint where there is one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from kleiber import checkpoint
from kleiber.budget import quantity
from kleiber.build import build
from kleiber.callbacks.checkpoints import restore_callbacks
from kleiber.callbacks.evaluate import Evaluate
from kleiber.callbacks.throughput import Throughput, peak_flops, peak_memory_bytes
from kleiber.data.sampler import stream
from kleiber.lit import LitLM
from kleiber.plan import Plan


class Stream:
    """The endless batches of this rank, from the step that a run has reached."""

    def __init__(self, plan: Plan, seed: int, start: int, rank: int) -> None:
        self.arguments = (plan.corpus.train, seed, start, plan.rows, rank, plan.world_size)

    def __iter__(self) -> Any:
        return stream(*self.arguments)


def run_stage(
    cfg: DictConfig, plan: Plan, hardware: Any, folder: Path, loggers: list[Any], name: str = "main"
) -> dict[str, Any]:
    """Trains to the plan's last step, evaluates, and returns the stage's entry of summary.json."""
    place = folder / "stages" / name / "checkpoints"
    found, complaints = checkpoint.latest(place)
    state = found.load_state() if found else None
    callbacks = make_callbacks(cfg, plan, place, folder)
    if hardware.rank == 0:
        for complaint in complaints:
            print(f"damaged checkpoint passed over: {complaint}", file=sys.stderr)
        for logger in loggers:
            if hasattr(logger, "cut"):
                logger.cut(found.step if found else 0)
    if found and state:
        found.load_model(plan.model)
        restore_callbacks(callbacks, state["callbacks"])
        if hardware.rank == 0:
            print(f"resuming at step {found.step:,} from {found.path}", file=sys.stderr)
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
    if hardware.compile:
        lit.model.compile()
    fit(lit, callbacks, plan, hardware, loggers, cfg.seed, start=found.step if found else 0)
    return record(cfg, plan, lit, callbacks, place, folder, name)


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


def make_callbacks(cfg: DictConfig, plan: Plan, place: Path, folder: Path) -> list[Any]:
    """The configured callbacks, with evaluation first, so that a checkpoint holds the score of its own step."""
    tokens = None if cfg.eval.tokens is None else round(quantity(cfg.eval.tokens))
    every = cfg.eval.every_steps or max(1, plan.steps // 4)
    evaluate = Evaluate(plan.corpus.validation, every, tokens, max(1, plan.rows), plan.objective.likelihood)
    available = {
        "batch_tokens": plan.batch_tokens,
        "corpus": plan.corpus,
        "config_hash": folder.name.rsplit("-", 1)[-1],
    }
    nodes = {key: node for key, node in cfg.callbacks.items() if node is not None}
    built = [build(node, **available, folder=place if key == "checkpoints" else folder) for key, node in nodes.items()]
    return [evaluate, *built]


def record(
    cfg: DictConfig, plan: Plan, lit: LitLM, callbacks: list[Any], place: Path, folder: Path, name: str
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
        "name": name, "parent": None, "branch_step": None, "trunk": None, "status": "finished",
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
            "model": plan.flops_per_token * tokens, "executed": plan.flops_per_token * tokens,
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
