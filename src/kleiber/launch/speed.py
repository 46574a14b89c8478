"""How fast this machine trains a run, by a few optimizer steps: the run itself, cut short, in a scratch folder.

So the optimizer, retention methods, compilation, evaluation, checkpoints and everything else that a run does is in the
time. What it costs is told apart: seconds of a step, of an evaluated token, and of all that comes once a stage. Seconds
of a run with one CPU thread are those of a core of its own: what other processes took from it is left out.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf

from kleiber.config.budget import quantity
from kleiber.config.stages import is_chain
from kleiber.launch.cost import StageCost
from kleiber.records.stage_record import StageRecord
from kleiber.records.summary import read
from kleiber.runs.run import train
from kleiber.training.callbacks.log import Throughput
from kleiber.training.lit import LitLM

STEPS = (6, 80)  # of a measured run, at least and at most
FLOPS = 2e10  # that a measured run computes, about, in between
EVALUATED = 4096  # targets of a task that it scores at most
CORE = "core.txt"  # CPU seconds and seconds of the steps of each stage


@dataclass(frozen=True)
class Speed:
    """What one measured run took.

    flops_per_step  of each of its stages that is measured apart (`key_of`)
    step            seconds of an optimizer step, likewise
    evaluation      seconds of an evaluated token over those of a trained one
    once            seconds of a stage that come once, on average: preparing, compiling, writing
    memory_bytes    largest memory of the process so far
    """

    flops_per_step: Mapping[str, float]
    step: Mapping[str, float]
    evaluation: float
    once: float
    memory_bytes: int


class CoreClock(Throughput):
    """The clock of a measured run, which also notes in `folder` how much of a core the process had in its steps."""

    def __init__(self, batch_tokens: int, record: StageRecord, folder: Path) -> None:
        super().__init__(batch_tokens, record)
        self.path = folder / CORE
        self.cpu = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.cpu_started = time.process_time()
        super().on_train_batch_start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: Any) -> None:
        was_warm = self._warm
        super().on_train_batch_end(trainer, pl_module)
        self.cpu += (time.process_time() - self.cpu_started) if was_warm else 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self.path.open("a") as file:
            file.write(f"{self.cpu} {self.timed_seconds}\n")


def core_share(folder: Path, config: Mapping[str, Any]) -> float:
    """The share of a core that a measured run had; 1 for a run of several threads or on a GPU, which cannot be told."""
    if torch.get_num_threads() > 1 or config["trainer"].get("accelerator") == "gpu":
        return 1.0
    cpu, wall = map(
        sum, zip(*(map(float, line.split()) for line in (folder / CORE).read_text().splitlines()), strict=True)
    )
    return min(1.0, cpu / wall) if wall else 1.0


def key_of(config: Mapping[str, Any], stage: str) -> str:
    """Stages of a chain differ in what a step does; trunk and branches of a tree do not."""
    return stage if is_chain(config) else ""


def shortened(config: Mapping[str, Any], costs: Sequence[StageCost], folder: Path) -> dict[str, Any]:
    """The config of the same run in a scratch folder, of few steps and little evaluation.

    One rank stands for several: each has its share of the batch.
    """
    short = copy.deepcopy(dict(config))
    largest = max(cost.flops_per_step for cost in costs)
    steps = round(min(STEPS[1], max(STEPS[0], FLOPS / largest)))
    asked = short["trainer"].get("max_steps")
    short["trainer"]["max_steps"] = min(steps, asked or steps)
    devices = short["trainer"].get("devices", 1)
    if devices > 1:
        short["trainer"] |= {"_target_": "kleiber.training.Local", "devices": 1}
        short["batch"]["tokens"] = round(quantity(short["batch"]["tokens"])) // devices
    tokens = short["eval"]["tokens"]
    short["eval"]["tokens"] = EVALUATED if tokens is None else min(EVALUATED, round(quantity(tokens)))
    clock = {"_target_": "kleiber.launch.CoreClock"}
    short["callbacks"] = {**short["callbacks"], "progress": None, "throughput": clock}
    return short | {"logger": {}, "root": str(folder.parent), "dry_run": False, "study": None, "resume": "auto"}


def measure(short: Mapping[str, Any], costs: Sequence[StageCost], folder: Path) -> Speed:
    """Trains a shortened run in `folder`; `costs` are of the shortened run too.

    Raises ValueError where it does not finish.
    """
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = train(OmegaConf.create(dict(short)), folder, [])
    wall = time.perf_counter() - began
    summary = read(folder / "summary.json") or {}
    if code or summary.get("status") != "finished":
        raise ValueError(f"a run of few steps does not finish: {summary.get('error') or f'exit code {code}'}")
    return speed_of(short, summary["stages"], costs, wall, core_share(folder, short))


def speed_of(
    config: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], costs: Sequence[StageCost], wall: float,
    share: float = 1.0,
) -> Speed:  # fmt: skip
    """From the records of a measured run's stages, the seconds that it took in all and the share of a core it had.

    The first step of a stage pays for allocation and compilation, so it counts among what comes once.
    """
    timed: dict[str, float] = {}
    steps: dict[str, int] = {}
    flops: dict[str, float] = {}
    for record, cost in zip(stages, costs, strict=True):
        key = key_of(config, cost.name)
        flops[key] = cost.flops_per_step
        if record["tokens_per_s"] and cost.steps > 1:
            steps[key] = steps.get(key, 0) + cost.steps - 1
            timed[key] = timed.get(key, 0.0) + (cost.steps - 1) * cost.batch_tokens / record["tokens_per_s"]
    if timed.keys() != flops.keys():
        raise ValueError("a stage of one step has no speed")
    step = {key: timed[key] / steps[key] for key in timed}
    trained = {cost.name: step[key_of(config, cost.name)] / cost.batch_tokens for cost in costs}
    scored = sum(record["evaluation_seconds"] for record in stages)
    as_trained = sum(cost.evaluated * trained[cost.name] for cost in costs)
    training = sum(cost.steps * step[key_of(config, cost.name)] for cost in costs)
    return Speed(
        flops_per_step=flops,
        step={key: seconds * share for key, seconds in step.items()},
        evaluation=scored / as_trained if as_trained else 0.0,
        once=share * max(0.0, wall - training - scored) / len(costs),
        memory_bytes=max(record["peak_memory_bytes"] for record in stages),
    )
