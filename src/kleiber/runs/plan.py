"""The plan of a stage: its data, model, number of steps, micro-batches and FLOPs. Nothing is written or trained."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from kleiber.config.signatures import build
from kleiber.config.stages import Budget, quantity
from kleiber.models.counting import Parameters, count_parameters, training_flops
from kleiber.runs.open import objective_of
from kleiber.runs.start_point import check_same_tokenizer, distinct_tasks
from kleiber.training.trainer import Local
from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus, Objective, Retention, Samples, Task

ModelBuilder = Callable[[DictConfig, Corpus, dict[str, int]], Any]


@dataclass
class Plan:
    """One stage, ready to start.

    rows     samples in the global batch of an optimizer step
    sides    rows of up to `context` tokens in a sample: 2 for a pair
    outputs  numbers of outputs of the model's task heads, by name
    earlier  tasks that the start point was trained for
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
    earlier: list[Task] = field(default_factory=list)

    @property
    def batch_tokens(self) -> int:
        """Tokens of an optimizer step without padding, on average where samples are of unequal length."""
        return step_tokens(self.corpus.train, self.rows)

    @property
    def row_tokens(self) -> int:
        """Tokens of a row, on average; `context` where rows are full."""
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


def make_plan(
    cfg: DictConfig, hardware: Local, before: Plan | None = None, model_of: ModelBuilder | None = None
) -> Plan:
    """Prepares the data and builds the model of a run, or takes the model of the stage `before`.

    model_of  builds a model without weights, for a plan that is only priced: no micro-batch is chosen for it

    Raises ValueError where batch, context or vocabulary do not fit.
    """
    context: int = cfg.model.context
    corpus: Corpus = build(cfg.data).prepare(context)
    objective = objective_of(cfg, corpus)
    check_stage_methods(cfg, corpus)
    earlier = [] if before or cfg.init is None else distinct_tasks(build(cfg.init).tasks(cfg, corpus), corpus)
    outputs = dict(before.outputs) if before else {}
    for reader in (*(task.objective for task in earlier), objective):
        outputs |= reader.outputs
    if before is not None:
        check_same_tokenizer(before.corpus, corpus, "stages.chain")
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
        earlier=earlier,
    )


def check_stage_methods(cfg: DictConfig, corpus: Corpus) -> None:
    """Raises ValueError for wrong settings of retention and adapter before any stage is trained."""
    retention_of(cfg, corpus)
    if cfg.adapter is not None:
        build(cfg.adapter)


def retention_of(cfg: DictConfig, corpus: Corpus) -> list[Retention]:
    """The retention methods of a stage's config."""
    nodes = cfg.retention or {}
    return [build(node, vocabulary=corpus.tokenizer) for node in nodes.values() if node is not None]


def samples_of(tokens: int | float | str, longest: int, world_size: int) -> int:
    """Samples of a batch of `tokens`. Raises ValueError where they do not fill it, or a rank gets none."""
    samples, left = divmod(round(quantity(tokens)), longest)
    if left or samples < world_size:
        near = max(world_size, round(quantity(tokens) / longest)) * longest
        raise ValueError(
            f"batch.tokens={tokens} must be a multiple of the {longest} tokens of a sample, with at least one for "
            f"each of trainer.devices={world_size}: set batch.tokens={near}"
        )
    return samples


def step_tokens(samples: Samples, count: int) -> int:
    """Tokens of `count` samples, on average."""
    return max(1, round(count * samples.num_tokens / len(samples)))


def row_tokens(samples: Samples, sides: int) -> int:
    """Tokens of one of the `sides` rows of a sample, on average."""
    return max(1, round(samples.num_tokens / (len(samples) * sides)))


def build_model(cfg: DictConfig, corpus: Corpus, outputs: dict[str, int]) -> Any:
    """The model before any training, which depends on the config and its seed alone. Heads are zero."""
    torch.manual_seed(cfg.seed)
    model = build(cfg.model, vocab_size=corpus.tokenizer.vocab_size)
    add_heads(model, outputs)
    return model


def add_heads(model: Any, outputs: Mapping[str, int]) -> None:
    """Adds task heads with these numbers of outputs."""
    for name, count in outputs.items():
        model.add_head(name, count)


def micro_batch(
    setting: int | str, rows: int, context: int, model: Any, hardware: Local, sides: int = 1, padded: bool = False
) -> int:
    """Samples per forward and backward pass: the setting, or for "auto" the most that half of the free memory holds.

    On a CPU padded rows are split into eight parts, of at least eight rows each, so that rows of a part are of similar
    length.
    """
    if setting != "auto":
        return min(int(setting), rows)
    row = sides * activation_bytes(model, context)
    if hardware.checkpoint_activations:  # the inputs of all blocks, and the inside of one
        row = row // len(model.blocks) + 4 * sides * context * model.width * len(model.blocks)
    fits = int(0.5 * free_memory_bytes(hardware.accelerator) // row)
    most = max(8, -(-rows // 8)) if padded and hardware.accelerator == "cpu" else rows
    return max(1, min(rows, most, fits))


def activation_bytes(model: Any, context: int) -> int:
    """Bytes that a row of `context` tokens keeps for the backward pass, measured on two rows and on one."""
    with torch.random.fork_rng(devices=[]):
        return max(1, _kept_bytes(model, 2, context) - _kept_bytes(model, 1, context))


def _kept_bytes(model: Any, rows: int, context: int) -> int:
    """Bytes of the distinct storages that a forward pass keeps, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # referenced, so that no address is reused

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(Batch(torch.zeros(rows, context, dtype=torch.long, device=next(model.parameters()).device)))
    return sum(storage.nbytes() for storage in kept.values())


def free_memory_bytes(accelerator: str) -> int:
    """Free memory of the device; for a CPU half of all memory where the system does not tell."""
    if accelerator == "gpu":
        return torch.cuda.mem_get_info()[0]
    try:  # includes memory that the kernel can free, which only Linux reports
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def describe(stages: Sequence[Any]) -> list[str]:
    """Lines on the stages (`stage_tree.Stage`): data, parameters, FLOPs, steps, learning rate."""
    lines: list[str] = []
    chain = len(stages) > 1 and not any(stage.continues for stage in stages)
    for stage in stages if chain else stages[-1:]:
        parts = [stage] if chain else stages
        lines += ([f"stage {stage.name}"] if chain else []) + _describe_plan(
            stage.plan, sum(part.steps for part in parts)
        )
    if len(stages) > 1:
        lines += [*_describe_starts(stages), *([] if chain else [_describe_saving(stages)])]
    return lines


def _describe_plan(plan: Plan, steps: int) -> list[str]:
    """Lines on a plan of `steps` optimizer steps."""
    p, trained = plan.parameters, steps * plan.batch_tokens
    unique = plan.corpus.train.num_tokens
    return [
        f"parameters   {p.total:,} total, {p.active:,} active, {p.non_embedding:,} outside embeddings",
        f"data         {plan.corpus.name}: {unique:,} unique training tokens, {plan.epochs:.2f} epochs",
        f"steps        {plan.stop_step:,} of {plan.batch_tokens:,} tokens, micro-batches of {plan.micro_batch} rows; "
        f"{plan.tokens:,} tokens ({plan.tokens / p.active:.1f} per active parameter)",
        f"compute      {plan.flops_per_token * trained:.3g} FLOPs ({plan.flops_per_token:,.0f} per token; 6ND = "
        f"{6 * p.active * trained:.3g})",
        f"lr           peak {plan.optimizer.lr:g} ({type(plan.model.parametrization).__name__}); over the run:  "
        f"{sparkline(plan)}",
    ]


def _describe_starts(stages: Sequence[Any]) -> list[str]:
    lines = []
    for stage in stages:
        start = f"from {stage.parent}" if stage.parent else "from the start"
        first = stage.branch_step if stage.continues else 0
        lines.append(f"stage        {stage.name}: {start}, steps {first:,} to {stage.plan.stop_step:,}")
    return lines


def _describe_saving(stages: Sequence[Any]) -> str:
    trained = sum(stage.steps for stage in stages)
    separate = sum(stage.plan.stop_step for stage in stages if stage.parent)
    return (
        f"saving       {1 - trained / separate:.0%}: {trained:,} steps; a run for each branch would take {separate:,}"
    )


def sparkline(plan: Plan, width: int = 60) -> str:
    """The schedule as a row of bars."""
    bars = " ▁▂▃▄▅▆▇█"
    places = [math.floor(i * (plan.steps - 1) / (width - 1)) for i in range(width)]
    return "".join(bars[math.ceil(plan.schedule(step, plan.steps) * (len(bars) - 1))] for step in places)
