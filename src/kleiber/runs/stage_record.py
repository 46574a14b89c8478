"""The record of a finished stage: what it trained, and what that cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from kleiber.config.cost import Power, cost_of, device_power, read_cost
from kleiber.data.batches import ConcatSamples
from kleiber.models.counting import count_parameters, executed_flops, forward_flops, training_flops
from kleiber.records.summary import StageRecord
from kleiber.runs.plan import Plan
from kleiber.runs.stage_tree import Stage, Tree
from kleiber.training import checkpoint
from kleiber.training.memory import peak_memory_bytes
from kleiber.training.trainer import peak_flops
from kleiber.types.contracts import Samples
from kleiber.types.model import Model
from kleiber.types.retention import Retention
from kleiber.types.score import Score


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
    executed = executed_flops(model, plan.row_tokens, tree.hardware.checkpoint_activations, heads)
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
