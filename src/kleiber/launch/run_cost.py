"""What one run costs: its parameters, tokens and FLOPs, counted, and its seconds and memory, measured by a few steps.

`cost_of_stages` counts. It plans the stages as a run does, on the run's real data, but with models on PyTorch's meta
device, which have shapes and no weights. The counts are those that summary.json will record.

`measure` trains the run itself, shortened, in a scratch folder, so that the time includes the optimizer, retention
methods, compilation, evaluation and checkpoints. It separates seconds of a step, of an evaluated token, and of what
happens once a stage. Seconds of a run with one CPU thread are those of a free core: time that other processes took from
the core is left out.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ExitCode, Status
from kleiber.config.instantiate import build
from kleiber.config.stages import is_chain, quantity
from kleiber.models.counting import Parameters, count_parameters, training_flops
from kleiber.records.catalog import read_run
from kleiber.records.summary import StageRecord
from kleiber.runs.open import add_heads, freeze_unused_heads
from kleiber.runs.plan import build_model
from kleiber.runs.run import plan_stages, train
from kleiber.runs.stage_tree import Stage, Tree
from kleiber.training.callbacks.log import Throughput
from kleiber.training.lit import LitLM
from kleiber.types import Config, Json
from kleiber.types.contracts import Corpus, Task

STEPS = (6, 80)  # steps of a measured run, at least and at most
FLOPS = 2e10  # approximate FLOPs of a measured run, where the number of steps allows it
EVALUATED = 4096  # targets of each task that a measured run scores at most
CORE = "core.txt"  # CPU seconds and wall seconds of the steps of each stage


@dataclass(frozen=True)
class StageCost:
    """Counts of one stage of a run.

    parameters   of the model with its heads and its adapter
    steps        optimizer steps of this stage, of `batch_tokens` tokens each
    evaluated    tokens that are scored before, during and after the stage
    total        training tokens since the root of the tree, as in summary.json
    leaf         whether no other stage continues from it
    full_rows    whether every row holds `context` tokens, so that none is padded
    """

    name: str
    parameters: Parameters
    steps: int
    batch_tokens: int
    flops_per_token: float
    evaluated: float
    total: int
    leaf: bool
    full_rows: bool

    @property
    def tokens(self) -> int:
        """Training tokens of this stage."""
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs of this stage."""
        return self.tokens * self.flops_per_token

    @property
    def flops_per_step(self) -> float:
        return self.batch_tokens * self.flops_per_token


class Models:
    """Models without weights by config and vocabulary, each built once."""

    def __init__(self) -> None:
        self.built: dict[str, Any] = {}

    def __call__(self, cfg: DictConfig, corpus: Corpus, outputs: dict[str, int]) -> Any:
        """A new copy of the model, with the heads of `outputs`.

        A Hugging Face model has weights: its attention and its output layer are identified by running it.
        """
        node: Any = OmegaConf.to_container(cfg.model, resolve=True)
        key = json.dumps([node, corpus.tokenizer.vocab_size], sort_keys=True)
        if key not in self.built:
            with torch.device("cpu" if node["_target_"].endswith(".HFModel") else "meta"):
                self.built[key] = build_model(cfg, corpus, {})
        model = copy.deepcopy(self.built[key])
        with torch.device("meta"):
            add_heads(model, outputs)
        return model


def stages_of(config: Config, hardware: Any, models: Models | None = None) -> list[Stage]:
    """The stages of a resolved config; without `models` each has a model with weights, and a micro-batch.

    Raises ValueError where a stage does not fit its data.
    """
    return plan_stages(OmegaConf.create(dict(config)), hardware, models)


def cost_of_stages(stages: list[Stage], hardware: Any, models: Models) -> list[StageCost]:
    """The cost of every stage, parents first."""
    tree = Tree(stages, hardware=hardware, folder=None, loggers=[], done={})  # type: ignore[arg-type]
    parents = {stage.parent for stage in stages}
    totals: dict[str, int] = {}
    costs = []
    for stage in stages:
        plan, objective = stage.plan, stage.plan.objective
        model = models(stage.config, plan.corpus, plan.outputs)
        if stage.config.adapter is not None:
            build(stage.config.adapter).apply(model, stage.config.seed)
        freeze_unused_heads(model, objective)
        flops = training_flops(model, plan.row_tokens, objective.outputs)
        before = 0 if stage.parent is None or stage.continues else totals[stage.parent]
        totals[stage.name] = before + plan.tokens
        costs.append(
            StageCost(
                name=stage.name,
                parameters=count_parameters(model),
                steps=stage.steps,
                batch_tokens=plan.batch_tokens,
                flops_per_token=flops,
                evaluated=evaluated_tokens(tree, stage),
                total=totals[stage.name],
                leaf=stage.name not in parents,
                full_rows=not plan.corpus.train.padded,
            )
        )
    return costs


def evaluated_tokens(tree: Tree, stage: Stage) -> float:
    """Tokens that the callback `evaluate` scores before, during and after the steps of a stage."""
    settings, plan = stage.config.eval, stage.plan
    tasks = tree.stage_tasks(stage)
    others = [*tasks.earlier, *tasks.later]
    most = None if settings.tokens is None else round(quantity(settings.tokens))
    full, watch = (partial(held_out_tokens, tokens=n) for n in (most, round(quantity(settings.watch_tokens))))
    first = stage.branch_step if stage.continues else 0
    every = max(1, plan.steps // 4) if settings.every_steps is None else settings.every_steps
    due = (plan.stop_step - 1) // every - first // every if every else 0
    own_tokens, everything, watched = full(tasks.current), full([*tasks.current, *others]), watch(tasks.earlier)
    tokens = due * (own_tokens + watched) + everything + watched
    if tree.from_weights and not first:
        tokens += watched + (0 if stage.parent else everything)  # a later stage starts as its parent ended
    if tasks.earlier:
        switches = sum(first < 2**power <= plan.stop_step for power in range(plan.stop_step.bit_length()))
        tokens += switches * watch([*tasks.current, *others])
    return tokens


def held_out_tokens(tasks: list[Task], tokens: int | None) -> float:
    """Tokens of the held-out samples that a score on `tokens` targets of each task reads."""
    return float(sum(task.held_out.first(tokens).num_tokens for task in tasks))


@dataclass(frozen=True)
class Speed:
    """Measured speed of one run.

    flops_per_step  by the key of the stage (`key_of`)
    step            seconds of an optimizer step, by the same keys
    evaluation      seconds of an evaluated token / seconds of a training token
    once            mean seconds that a stage spends once: preparing, compiling, writing
    memory_bytes    largest memory of the process so far
    """

    flops_per_step: Mapping[str, float]
    step: Mapping[str, float]
    evaluation: float
    once: float
    memory_bytes: int


class CoreClock(Throughput):
    """Throughput of a measured run; also writes to `folder` the CPU and wall seconds of its steps (`core_share`)."""

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


def core_share(folder: Path, config: Config) -> float:
    """The share of a core that a measured run had; 1 for several threads or a GPU, where it cannot be measured."""
    if torch.get_num_threads() > 1 or config["trainer"].get("accelerator") == "gpu":
        return 1.0
    cpu, wall = map(
        sum, zip(*(map(float, line.split()) for line in (folder / CORE).read_text().splitlines()), strict=True)
    )
    return min(1.0, cpu / wall) if wall else 1.0


def key_of(config: Config, stage: str) -> str:
    """The key of a stage's speed: the stages of a chain take different steps, those of a tree the same."""
    return stage if is_chain(config) else ""


def shortened(config: Config, costs: Sequence[StageCost], folder: Path) -> Json:
    """The config of the same run with few steps and little evaluation, in a scratch folder.

    Of a run on several devices it measures one rank, with its share of the batch.
    """
    short = copy.deepcopy(dict(config))
    largest = max(cost.flops_per_step for cost in costs)
    steps = round(min(STEPS[1], max(STEPS[0], FLOPS / largest)))
    short["trainer"]["max_steps"] = min(steps, short["trainer"].get("max_steps") or steps)
    devices = short["trainer"].get("devices", 1)
    if devices > 1:
        short["trainer"] |= {"_target_": "kleiber.training.Local", "devices": 1}
        short["batch"]["tokens"] = round(quantity(short["batch"]["tokens"])) // devices
    tokens = short["eval"]["tokens"]
    short["eval"]["tokens"] = EVALUATED if tokens is None else min(EVALUATED, round(quantity(tokens)))
    clock = {"_target_": "kleiber.launch.CoreClock"}
    short["callbacks"] = {**short["callbacks"], "progress": None, "throughput": clock}
    return short | {"logger": {}, "root": str(folder.parent), "dry_run": False, "study": None, "resume": "auto"}


def measure(short: Config, costs: Sequence[StageCost], folder: Path) -> Speed:
    """Trains a shortened run in `folder`, with the costs of its stages, and returns its speed.

    Raises ValueError where the run does not finish.
    """
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = train(OmegaConf.create(dict(short)), folder, [])
    wall = time.perf_counter() - began
    run = read_run(folder)
    if code != ExitCode.DONE or run.status != Status.FINISHED:
        raise ValueError(f"a run of few steps does not finish: {run.summary.get('error') or f'exit code {code}'}")
    return speed_of(short, run.stages, costs, wall, core_share(folder, short))


def speed_of(
    config: Config, stages: Sequence[Json], costs: Sequence[StageCost], wall: float,
    share: float = 1.0,
) -> Speed:  # fmt: skip
    """The speed, from the stages in summary.json, `wall` seconds of the whole run, and its share of a core.

    The first step of a stage includes allocation and compilation, so it counts towards `once`.
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
        raise ValueError("a stage of one step is too short to measure its speed")
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
