"""What a stage is going to do, before it does it: data, model, number of steps, size of micro-batches, cost.

A dry run prices it (`cost`). Nothing is written and nothing is trained.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from kleiber.config.budget import Budget, quantity
from kleiber.config.signatures import build
from kleiber.models.counting import Parameters, count_parameters, training_flops
from kleiber.runs.open import objective_of
from kleiber.runs.start_point import apart, same_tokenizer
from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus, Objective, Retention, Samples, Task

ModelBuilder = Callable[[DictConfig, Corpus, dict[str, int]], Any]


@dataclass
class Plan:
    """One stage, ready to start.

    rows     samples in the global batch of an optimizer step
    sides    rows of up to `context` tokens in a sample: 2 of a pair
    outputs  heads of tasks that the model has, with their numbers of outputs
    known    tasks that the start point was trained for
    """

    corpus: Corpus
    model: Any
    objective: Objective
    optimizer: Any
    schedule: Any
    parameters: Parameters
    context: int
    rows: int
    micro_batch: int
    steps: int
    stop_step: int
    flops_per_token: float
    world_size: int
    max_steps: int | None = None
    outputs: dict[str, int] = field(default_factory=dict)
    sides: int = 1
    known: list[Task] = field(default_factory=list)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step: on average, where samples are of unequal length; padding is none."""
        return step_tokens(self.corpus.train, self.rows)

    @property
    def row_tokens(self) -> int:
        """Tokens of a row, on average: `context`, where rows are full."""
        return row_tokens(self.corpus.train, self.sides)

    @property
    def tokens(self) -> int:
        return self.stop_step * self.batch_tokens

    @property
    def epochs(self) -> float:
        """Passes over the training samples."""
        return self.stop_step * self.rows / len(self.corpus.train)

    @property
    def unique_tokens(self) -> int:
        """Tokens of the samples that are seen at least once."""
        return round(self.corpus.train.num_tokens * min(1.0, self.epochs))


def make_plan(cfg: DictConfig, hardware: Any, before: Plan | None = None, model_of: ModelBuilder | None = None) -> Plan:
    """Prepares the data and builds the model of a run, or takes the model of the stage `before`.

    `model_of` builds a model without weights, for a plan that is priced alone: no micro-batch is chosen for it.
    Raises ValueError where batch, context or vocabulary do not fit.
    """
    context: int = cfg.model.context
    corpus: Corpus = build(cfg.data).prepare(context)
    objective = objective_of(cfg, corpus)
    settled(cfg, corpus)
    known: list[Task] = [] if before or cfg.init is None else apart(build(cfg.init).tasks(cfg, corpus), corpus)
    outputs = dict(before.outputs) if before else {}
    for one in (*(task.objective for task in known), objective):
        outputs |= one.outputs
    if before is not None:
        same_tokenizer(before.corpus, corpus, "stages.chain")
    model = before.model if before is not None else (model_of or build_model)(cfg, corpus, {})
    add_heads(model, outputs)
    parameters = count_parameters(model)
    sides = corpus.train.sides
    padded = corpus.train.padded and sides == 1  # a pair's two rows are of different lengths
    rows = samples_of(cfg.batch.tokens, context * sides, hardware.world_size)
    flops = training_flops(model, row_tokens(corpus.train, sides), objective.outputs)
    batch = step_tokens(corpus.train, rows)
    steps = Budget(**cfg.budget).num_steps(batch_tokens=batch, active_params=parameters.active, flops_per_token=flops)
    share = -(-rows // hardware.world_size)
    return Plan(
        corpus=corpus,
        model=model,
        objective=objective,
        optimizer=build(cfg.optimizer),
        schedule=build(cfg.schedule),
        parameters=parameters,
        context=context,
        rows=rows,
        micro_batch=0 if model_of else micro_batch(cfg.batch.micro, share, context, model, hardware, sides, padded),
        steps=steps,
        stop_step=min(steps, hardware.max_steps or steps),
        flops_per_token=flops,
        world_size=hardware.world_size,
        max_steps=hardware.max_steps,
        outputs=outputs,
        sides=sides,
        known=known,
    )


def settled(cfg: DictConfig, corpus: Corpus) -> None:
    """Raises ValueError for settings of retention and adapter that cannot be: a stage makes them when it begins, and
    by then those before it are trained."""
    retention_of(cfg, corpus)
    if cfg.adapter is not None:
        build(cfg.adapter)


def retention_of(cfg: DictConfig, corpus: Corpus) -> list[Retention]:
    """The methods that a stage's config names; the check of the config has seen that there is something to keep."""
    nodes = cfg.retention or {}
    return [build(node, vocabulary=corpus.tokenizer) for node in nodes.values() if node is not None]


def samples_of(tokens: int | float | str, longest: int, world_size: int) -> int:
    """Samples of a batch that has room for `tokens`. Raises ValueError where it is not filled, or a rank gets none."""
    samples, left = divmod(round(quantity(tokens)), longest)
    if left or samples < world_size:
        near = max(world_size, round(quantity(tokens) / longest)) * longest
        raise ValueError(
            f"batch.tokens={tokens} is no number of samples of up to {longest} tokens, one at least for each of "
            f"trainer.devices={world_size}: take {near}"
        )
    return samples


def step_tokens(samples: Samples, count: int) -> int:
    """Tokens of `count` samples, on average."""
    return max(1, round(count * samples.num_tokens / len(samples)))


def row_tokens(samples: Samples, sides: int) -> int:
    """Tokens of one of the `sides` rows of a sample, on average."""
    return max(1, round(samples.num_tokens / (len(samples) * sides)))


def build_model(cfg: DictConfig, corpus: Corpus, outputs: dict[str, int]) -> Any:
    """The model as it is before any training: a function of the config and its seed. Heads begin at 0."""
    torch.manual_seed(cfg.seed)
    model = build(cfg.model, vocab_size=corpus.tokenizer.vocab_size)
    add_heads(model, outputs)
    return model


def add_heads(model: Any, outputs: dict[str, int]) -> None:
    for name, count in outputs.items():
        model.add_head(name, count)


def micro_batch(
    asked: int | str, rows: int, context: int, model: Any, hardware: Any, sides: int = 1, padded: bool = False
) -> int:
    """Samples per forward and backward: as asked, or the most that half of the free memory holds.

    On a CPU padded rows come in eight parts of like length, of eight rows or more: a part costs what its longest does.
    """
    if asked != "auto":
        return min(int(asked), rows)
    row = sides * activation_bytes(model, context)
    if hardware.checkpoint_activations:  # what enters each block, and the inside of one
        row = row // len(model.blocks) + 4 * sides * context * model.width * len(model.blocks)
    fits = int(0.5 * free_memory_bytes(hardware.accelerator) // row)
    most = max(8, -(-rows // 8)) if padded and hardware.accelerator == "cpu" else rows
    return max(1, min(rows, most, fits))


def activation_bytes(model: Any, context: int) -> int:
    """Bytes that one row of `context` tokens keeps for its backward, by a forward pass of two rows and one of one."""
    with torch.random.fork_rng(devices=[]):
        return max(1, _kept_bytes(model, 2, context) - _kept_bytes(model, 1, context))


def _kept_bytes(model: Any, rows: int, context: int) -> int:
    """Bytes of the distinct storages that a forward pass keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that none is freed and its address given to another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(Batch(torch.zeros(rows, context, dtype=torch.long, device=next(model.parameters()).device)))
    return sum(storage.nbytes() for storage in kept.values())


def free_memory_bytes(accelerator: str) -> int:
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[0]
    try:  # what the kernel can free counts too, and only Linux says how much that is
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def describe(stages: Sequence[Any]) -> list[str]:
    """The stages (of `tree.Stage`) in words: data, parameters, FLOPs, steps, learning rate."""
    told: list[str] = []
    chain = len(stages) > 1 and not any(stage.continues for stage in stages)
    for stage in stages if chain else stages[-1:]:
        own = [stage] if chain else stages
        told += ([f"stage {stage.name}"] if chain else []) + _one(stage.plan, sum(part.steps for part in own))
    if len(stages) > 1:
        told += [*_origins(stages), *([] if chain else [_saving(stages)])]
    return told


def _one(plan: Plan, steps: int) -> list[str]:
    """The plan of `steps` optimizer steps in words."""
    p, trained = plan.parameters, steps * plan.batch_tokens
    unique = plan.corpus.train.num_tokens
    return [
        f"parameters   {p.total:,} total, {p.active:,} active, {p.non_embedding:,} outside embeddings",
        f"data         {plan.corpus.name}: {unique:,} unique training tokens, {plan.epochs:.2f} epochs",
        f"steps        {plan.stop_step:,} of {plan.batch_tokens:,} tokens, micro-batches of {plan.micro_batch} rows; "
        f"{plan.tokens:,} tokens ({plan.tokens / p.active:.1f} per active parameter)",
        f"compute      {plan.flops_per_token * trained:.3g} FLOPs ({plan.flops_per_token:,.0f} per token; 6ND says "
        f"{6 * p.active * trained:.3g})",
        f"lr           peak {plan.optimizer.lr:g} ({type(plan.model.parametrization).__name__}); over the run:  "
        f"{sparkline(plan)}",
    ]


def _origins(stages: Sequence[Any]) -> list[str]:
    lines = []
    for stage in stages:
        origin = f"from {stage.parent}" if stage.parent else "from the start"
        first = stage.branch_step if stage.continues else 0
        lines.append(f"stage        {stage.name}: {origin}, steps {first:,} to {stage.plan.stop_step:,}")
    return lines


def _saving(stages: Sequence[Any]) -> str:
    trained = sum(stage.steps for stage in stages)
    apart = sum(stage.plan.stop_step for stage in stages if stage.parent)
    return f"saving       {1 - trained / apart:.0%}: {trained:,} steps; a run for each branch would take {apart:,}"


def sparkline(plan: Plan, width: int = 60) -> str:
    """The schedule as a row of bars."""
    bars = " ▁▂▃▄▅▆▇█"
    places = [math.floor(i * (plan.steps - 1) / (width - 1)) for i in range(width)]
    return "".join(bars[math.ceil(plan.schedule(step, plan.steps) * (len(bars) - 1))] for step in places)
