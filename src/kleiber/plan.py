"""What a stage is going to do, before it does it: data, model, number of steps, size of micro-batches, cost.

A dry run stops here and prints the plan. Nothing is written and nothing is trained.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from kleiber.budget import Budget, quantity
from kleiber.build import build
from kleiber.data.sampler import stream
from kleiber.models.counting import Parameters, count_parameters, executed_flops, training_flops
from kleiber.step import accumulate
from kleiber.types import Corpus, Objective


@dataclass
class Plan:
    """One stage, ready to start. `rows` is the number of samples in the global batch of an optimizer step."""

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
    executed_per_token: float
    world_size: int
    max_steps: int | None = None

    @property
    def batch_tokens(self) -> int:
        return self.rows * self.context

    @property
    def tokens(self) -> int:
        return self.stop_step * self.batch_tokens


def make_plan(cfg: DictConfig, hardware: Any) -> Plan:
    """Prepares the data and builds the model of a run. Raises ValueError where batch and context do not fit."""
    context: int = cfg.model.context
    corpus: Corpus = build(cfg.data).prepare(context)
    model = build_model(cfg, corpus)
    parameters = count_parameters(model)
    flops = training_flops(model, context)
    rows = round(quantity(cfg.batch.tokens)) // context
    budget = Budget(**cfg.budget)
    steps = budget.num_steps(batch_tokens=rows * context, active_params=parameters.active, flops_per_token=flops)
    share = -(-rows // hardware.world_size)
    micro = micro_batch(cfg.batch.micro, share, context, model, hardware)
    return Plan(
        corpus=corpus,
        model=model,
        objective=build(cfg.objective, vocabulary=corpus.tokenizer),
        optimizer=build(cfg.optimizer),
        schedule=build(cfg.schedule),
        parameters=parameters,
        context=context,
        rows=rows,
        micro_batch=micro,
        steps=steps,
        stop_step=min(steps, hardware.max_steps or steps),
        flops_per_token=flops,
        executed_per_token=executed_flops(model, context, hardware.checkpoint_activations),
        world_size=hardware.world_size,
        max_steps=hardware.max_steps,
    )


def build_model(cfg: DictConfig, corpus: Corpus) -> Any:
    """The model as it is before any training: a function of the config and its seed."""
    torch.manual_seed(cfg.seed)
    return build(cfg.model, vocab_size=corpus.tokenizer.vocab_size)


def micro_batch(asked: int | str, rows: int, context: int, model: Any, hardware: Any) -> int:
    """Rows per forward and backward: as asked, or the most that half of the free memory holds."""
    if asked != "auto":
        return min(int(asked), rows)
    fits = int(0.5 * free_memory_bytes(hardware.accelerator) // activation_bytes(model, context))
    return max(1, min(rows, fits))


def activation_bytes(model: Any, context: int) -> int:
    """Bytes that one row keeps for its backward: about 34 vectors of the width per token and layer, in fp32.

    20 around attention and the norms and 14 in an MLP of 8/3 the width: an estimate for choosing a micro-batch.
    """
    return 4 * context * 34 * model.width * len(model.blocks)


def free_memory_bytes(accelerator: str) -> int:
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[0]
    try:  # what the kernel can free counts too, and only Linux says how much that is
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def describe(plan: Plan, stages: Sequence[Any]) -> str:
    """The plan in words: parameters, FLOPs, memory, steps, time by a measured step, and the learning-rate curve.

    `stages` (of `tree.Stage`) say how far training goes, and where a run of several leaves one for another.
    """
    p, last = plan.parameters, stages[-1]
    plan = replace(plan, steps=last.total_steps, stop_step=last.stop_step, schedule=last.schedule)
    trained = sum(stage.stop_step - stage.branch_step for stage in stages)
    seconds = measured_step(plan)
    state = 4 * 4 * p.total + plan.micro_batch * activation_bytes(plan.model, plan.context)
    total_flops = plan.flops_per_token * trained * plan.batch_tokens
    unique = plan.corpus.train.num_tokens
    lines = [
        f"parameters   {p.total:,} total, {p.active:,} active, {p.non_embedding:,} outside embeddings",
        f"data         {plan.corpus.name}: {unique:,} unique training tokens, {plan.tokens / unique:.2f} epochs",
        f"steps        {plan.stop_step:,} of {plan.batch_tokens:,} tokens, micro-batches of {plan.micro_batch} rows; "
        f"{plan.tokens:,} tokens ({plan.tokens / p.active:.1f} per active parameter)",
        f"compute      {total_flops:.3g} FLOPs ({plan.flops_per_token:,.0f} per token; 6ND says "
        f"{6 * p.active * trained * plan.batch_tokens:.3g})",
        f"memory       about {state / 2**20:,.0f} MiB for weights, gradients, optimizer and activations",
        f"time         {seconds * 1e3:,.0f} ms a measured step, {seconds * trained / 60:,.1f} minutes in all",
        f"lr           peak {plan.optimizer.lr:g}; over the run:  {sparkline(plan)}",
    ]
    for stage in stages if len(stages) > 1 else ():
        origin = f"from {stage.parent}" if stage.parent else "from the start"
        lines.append(f"stage        {stage.name}: {origin}, steps {stage.branch_step:,} to {stage.stop_step:,}")
    if len(stages) > 1:
        apart = sum(stage.stop_step for stage in stages if stage.parent)
        lines.append(
            f"saving       {1 - trained / apart:.0%}: {trained:,} steps; a run for each branch would take {apart:,}"
        )
    return "\n".join(lines)


def measured_step(plan: Plan, repeats: int = 3) -> float:
    """Seconds of a forward and backward over one global batch, the median of `repeats` after a warm-up."""
    batch = next(stream(plan.corpus.train, seed=0, batch_samples=plan.rows))
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        accumulate(plan.model, plan.objective, batch.split(plan.micro_batch), torch.Tensor.backward)
        taken.append(time.perf_counter() - began)
    plan.model.zero_grad()
    return sorted(taken[1:])[repeats // 2]


def sparkline(plan: Plan, width: int = 60) -> str:
    """The schedule as a row of bars."""
    bars = " ▁▂▃▄▅▆▇█"
    places = [math.floor(i * (plan.steps - 1) / (width - 1)) for i in range(width)]
    return "".join(bars[math.ceil(plan.schedule(step, plan.steps) * (len(bars) - 1))] for step in places)
