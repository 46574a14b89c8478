"""Estimates what one run costs: counts parameters, tokens and FLOPs, and measures seconds and memory.

`count_costs` counts. It plans the stages as a run does, on the run's real data, but with models on PyTorch's meta
device, which have shapes and no weights. The counts are those that summary.json will contain.

`measure` trains the run for a few steps in a scratch folder, so that the time includes the optimizer, retention
methods, compilation, evaluation and checkpoints. It separates the seconds of a step, of an evaluated token, and of what
happens once in each stage. With one CPU thread, time in which other processes used the core is subtracted.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ConfigError, ExitCode, Status
from kleiber.config.stages import is_chain, is_wrapped, quantity
from kleiber.config.targets import build
from kleiber.launch.speed import Speed
from kleiber.models.counting import Parameters, count_parameters, training_flops
from kleiber.records.catalog import read_run
from kleiber.records.regular_files import open_to_add_lines, read_text
from kleiber.records.summary import StageRecord
from kleiber.runs.open import add_heads, freeze_unused_heads
from kleiber.runs.plan import build_model, build_retention
from kleiber.runs.run import train
from kleiber.runs.stage_evaluation import scored_tokens, token_limit, validation_interval
from kleiber.runs.stage_retention import trained_objectives
from kleiber.runs.stage_tree import Stage, Tree
from kleiber.training.callbacks.log import Throughput
from kleiber.training.lightning import LightningModule, Trainer
from kleiber.training.lit import LitLM
from kleiber.training.trainer import Local
from kleiber.types import Config, Json
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model

MIN_STEPS, MAX_STEPS = 6, 80  # of a measured run
MEASURED_FLOPS = 2e10  # of a measured run, unless its number of steps would be outside of these limits
EVALUATED_TOKENS = 4096  # largest number of tokens of each task that a measured run scores
CORE_FILE = "core.txt"  # contains CPU seconds and wall seconds of the steps of each stage
MAX_CORE_BYTES = 2**20


@dataclass(frozen=True)
class StageCost:
    """Tokens and FLOPs that one stage of a run costs.

    parameters       of the model with its task heads and its adapter
    steps            optimizer steps that this stage trains
    batch_tokens     tokens of a step
    flops_per_token  training FLOPs of a token, forward and backward
    evaluated        tokens that are scored before, during and after the stage
    total            training tokens since the root of the tree, as in summary.json
    leaf             whether no other stage starts from it
    full_rows        whether every row has `context` tokens, without padding
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
        """Training FLOPs of one optimizer step of this stage."""
        return self.batch_tokens * self.flops_per_token


class Models:
    """Builds models without weights, each model config and vocabulary size only once."""

    def __init__(self) -> None:
        self.built: dict[str, Model] = {}

    def __call__(self, cfg: DictConfig, corpus: Corpus, outputs: dict[str, int]) -> Model:
        """Returns a new copy of the model of `cfg`, on the meta device, with heads of `outputs` (size by task).

        The vocabulary is that of `corpus`. A Hugging Face model has weights, because kleiber finds its attention and
        output layer by running it.
        """
        node = OmegaConf.to_container(cfg.model, resolve=True)
        assert isinstance(node, dict)
        key = json.dumps([node, corpus.tokenizer.vocab_size], sort_keys=True)
        if key not in self.built:
            with torch.device("cpu" if is_wrapped(cfg.model) else "meta"):
                self.built[key] = build_model(cfg, corpus, {})
        model = copy.deepcopy(self.built[key])
        with torch.device("meta"):
            add_heads(model, outputs)
        return model


def count_costs(stages: list[Stage], hardware: Local, models: Models) -> list[StageCost]:
    """Returns the cost of each stage, in the order of `stages`."""
    tree = Tree(stages, hardware=hardware, folder=None, loggers=[], done={})  # type: ignore[arg-type]
    parents = {stage.parent for stage in stages}
    totals: dict[str, int] = {}
    costs = []
    for stage in stages:
        plan, objective = stage.plan, stage.plan.objective
        model = models(stage.config, plan.corpus, plan.outputs)
        if stage.config.adapter is not None:
            build(stage.config.adapter).apply(model, stage.config.seed)
        methods = build_retention(stage.config, plan.corpus)
        freeze_unused_heads(model, trained_objectives(methods, stage, tree.stage_tasks(stage)))
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
    """Returns the tokens that the callback `evaluate` scores before, during and after the steps of a stage."""
    settings, plan = stage.config.eval, stage.plan
    tasks = tree.stage_tasks(stage)
    others = [*tasks.earlier, *tasks.later]
    full = partial(scored_tokens, limit=token_limit(stage.config))
    watch = partial(scored_tokens, limit=round(quantity(settings.watch_tokens)))
    first = stage.branch_step if stage.continues else 0
    every = validation_interval(stage, tasks.current)
    due = (plan.stop_step - 1) // every - first // every if every else 0
    current, everything, watched = full(tasks.current), full([*tasks.current, *others]), watch(tasks.earlier)
    tokens = due * (current + watched) + everything + watched
    if tree.from_weights and not first:
        tokens += watched + (0 if stage.parent else everything)  # a later stage has the last scores of its parent
    if tasks.earlier:
        switches = sum(first < 2**power <= plan.stop_step for power in range(plan.stop_step.bit_length()))
        tokens += switches * watch([*tasks.current, *others])
    return tokens


class CoreClock(Throughput):
    """The callback `throughput` of a measured run, and a file of the CPU and wall seconds of its steps."""

    def __init__(self, batch_tokens: int, record: StageRecord, folder: Path) -> None:
        super().__init__(batch_tokens, record)
        self.path = folder / CORE_FILE
        self.cpu = 0.0

    def start(self) -> None:
        self.cpu_started = time.process_time()
        super().start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        was_warm = self._warm
        super().on_train_batch_end(trainer, pl_module)
        self.cpu += (time.process_time() - self.cpu_started) if was_warm else 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with open_to_add_lines(self.path) as file:
            file.write(f"{self.cpu} {self.timed_seconds}\n")


def core_share(folder: Path, config: Config) -> float:
    """Returns the share of a core that a measured run had; 1 for several threads or a GPU, where it is not measured."""
    if torch.get_num_threads() > 1 or config["trainer"].get("accelerator") == "gpu":
        return 1.0
    rows = [line.split() for line in read_text(folder / CORE_FILE, MAX_CORE_BYTES).splitlines()]
    cpu, wall = (sum(float(row[column]) for row in rows) for column in (0, 1))
    return min(1.0, cpu / wall) if wall else 1.0


def stage_key(config: Config, stage: str) -> str:
    """Returns the key of a stage's speed: its name in a chain, and an empty text in a tree, whose steps are alike."""
    return stage if is_chain(config) else ""


def shorten_config(config: Config, costs: Sequence[StageCost], folder: Path) -> Json:
    """Returns the config of a run with few steps and little evaluation, in the scratch folder `folder`.

    A run on several devices becomes a single rank with its share of the batch.
    """
    short = copy.deepcopy(dict(config))
    steps = round(min(MAX_STEPS, max(MIN_STEPS, MEASURED_FLOPS / max(cost.flops_per_step for cost in costs))))
    short["trainer"]["max_steps"] = min(steps, short["trainer"].get("max_steps") or steps)
    devices = short["trainer"].get("devices", 1)
    if devices > 1:
        local = {key: value for key, value in short["trainer"].items() if key in Local.__dataclass_fields__}
        short["trainer"] = {**local, "_target_": "kleiber.training.Local", "devices": 1}
        short["batch"]["tokens"] = round(quantity(short["batch"]["tokens"])) // devices
    tokens = short["eval"]["tokens"]
    short["eval"]["tokens"] = EVALUATED_TOKENS if tokens is None else min(EVALUATED_TOKENS, round(quantity(tokens)))
    short["callbacks"] |= {"progress": None, "throughput": {"_target_": "kleiber.launch.CoreClock"}}
    (short["callbacks"].get("checkpoints") or {}).pop("sharded", None)
    return short | {"logger": {}, "root": str(folder.parent), "dry_run": False, "study": None, "resume": "auto"}


class UnknownSpeed(Exception):
    """The speed of a run cannot be measured in a few steps. The message says why; the run itself may work."""


def measure(short: Config, costs: Sequence[StageCost], folder: Path, devices: int = 1) -> Speed:
    """Trains a shortened run in `folder` and returns its speed.

    costs    of the stages of the shortened run
    devices  of the run, on one of which it is measured

    Raises ConfigError where the run fails, so that it would fail without dry_run too, and UnknownSpeed where it
    diverges, is too short, or needs the memory of several devices.
    """
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = train(short, folder)
    wall = time.perf_counter() - started
    run = read_run(folder)
    if code != ExitCode.DONE or not run.finished:
        error = run.summary.get("error") or f"exit code {code}"
        if run.summary.get("status") == Status.DIVERGED:
            raise UnknownSpeed(f"the loss diverges at {error}")
        if devices > 1 and any(text in error for text in ("MemoryError", "out of memory")):
            raise UnknownSpeed("one device has too little memory to measure a run on several")
        raise ConfigError(f"the run fails in its first steps, with dry_run or without: {error}")
    return compute_speed(short, run.stages, costs, wall, core_share(folder, short))


def compute_speed(
    config: Config, stages: Sequence[Json], costs: Sequence[StageCost], wall: float,
    share: float = 1.0,
) -> Speed:  # fmt: skip
    """Returns the speed of a measured run.

    stages  entries of the stages in summary.json
    wall    seconds of the whole run
    share   share of a core that it had

    The first step of a stage includes allocation and compilation, so it counts towards `once`. Raises UnknownSpeed for
    a stage without a second step.
    """
    timed: dict[str, float] = {}
    steps: dict[str, int] = {}
    flops: dict[str, float] = {}
    for record, cost in zip(stages, costs, strict=True):
        key = stage_key(config, cost.name)
        flops[key] = cost.flops_per_step
        if record["tokens_per_s"] and cost.steps > 1:
            steps[key] = steps.get(key, 0) + cost.steps - 1
            timed[key] = timed.get(key, 0.0) + (cost.steps - 1) * cost.batch_tokens / record["tokens_per_s"]
    if timed.keys() != flops.keys():
        raise UnknownSpeed("a stage of a single step is too short to measure its speed")
    step = {key: timed[key] / steps[key] for key in timed}
    trained = {cost.name: step[stage_key(config, cost.name)] / cost.batch_tokens for cost in costs}
    evaluation = sum(record["evaluation_seconds"] for record in stages)
    at_training_speed = sum(cost.evaluated * trained[cost.name] for cost in costs)
    training = sum(cost.steps * step[stage_key(config, cost.name)] for cost in costs)
    return Speed(
        flops_per_step=flops,
        step={key: seconds * share for key, seconds in step.items()},
        evaluation=evaluation / at_training_speed if at_training_speed else 0.0,
        once=share * max(0.0, wall - training - evaluation) / len(costs),
        memory_bytes=max(record["peak_memory_bytes"] for record in stages),
    )
