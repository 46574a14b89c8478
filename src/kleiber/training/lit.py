"""LitLM, the only LightningModule: pre-training, fine-tuning and mixtures of experts differ in its arguments alone.

It makes optimizer steps (manual optimization: `global_step` counts them) and nothing else: data order, evaluation,
logging and checkpoints are callbacks' business. It never calls `self.log`, which costs more than a small step.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kleiber.optimizers.adamw import Optimizer
from kleiber.training import checkpoint
from kleiber.training.lightning import LeanModule, count_skipped_step
from kleiber.training.step import (
    Diverged,
    Penalty,
    accumulate,
    micro_batches,
    normalise,
    out_of_memory,
    seed_generators,
)
from kleiber.types.batch import Batch, Sums
from kleiber.types.contracts import Objective, Retention
from kleiber.types.model import Model


class LitLM(LeanModule):
    """A model, an objective, an optimizer and a schedule.

    schedule      f(step, total_steps) -> factor of every learning rate
    total_steps   the horizon of the schedule
    micro_batch   rows per forward and backward pass: changes the memory that a step needs, not its result
    seed          of everything random inside a step, together with the step's number
    restored      optimizer state by parameter name, from a checkpoint
    retention     methods against forgetting, each with its memory
    partial       whether a checkpoint holds the trained weights alone: an adapter's, and not those that it adapts

    `last` holds the means of the latest step ("ce", "total", ...), its "grad_norm" and "lr". `guard` (a callback) may
    refuse a step before it changes a weight; the position moves on all the same. When a step runs out of memory,
    `micro_batch` is halved and the step is made again.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: Optimizer,
        schedule: Callable[[int, int], float],
        *,
        total_steps: int,
        micro_batch: int,
        seed: int = 0,
        restored: dict[str, Any] | None = None,
        retention: Sequence[Retention] = (),
        partial: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.optimizer, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.micro_batch, self.seed, self.restored = micro_batch, seed, restored
        self.retention = nn.ModuleList(retention)
        self.partial = partial
        self.last: dict[str, Tensor | float] = {}
        self.guard: Any = None

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def configure_model(self) -> None:
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        built = self.optimizer.build(self.model, self.model.roles(), self.model.parametrization.lr_scale)
        if self.restored is not None:
            checkpoint.load_optimizer(built, self.restored)
        return built

    def on_fit_start(self) -> None:
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        # Lightning can count ranks that do not exist; half of the data would then be trained on by nobody.
        assert self.trainer.world_size == ranks, f"Lightning counts {self.trainer.world_size} ranks, there are {ranks}"

    def training_step(self, batch: Batch, index: int) -> None:
        step = self.global_step
        optimizer: Any = self.optimizers()
        methods: list[Any] = list(self.retention)
        penalties = [functools.partial(method.penalty, step=step) for method in methods]
        sums = self.backward_pass(batch, step, penalties).reduce()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        logged: dict[str, Tensor] = {}

        def change() -> None:
            for method in methods:
                for name, value in method.gradients(self.model, step).items():
                    logged[f"retention/{name}"] = value

        means, tokens = sums.means(), sums.values["tokens"].item()
        clip, ranks = self.optimizer.clip, self.trainer.world_size
        loss, failure, norm = means["ce"].item(), None, math.nan
        try:
            norm = normalise(parameters, tokens, ranks, clip, change if methods else None)
        except Diverged as error:
            failure = error
        if self.guard is not None and self.guard.refuses(loss, norm):
            return self.skip_step(optimizer, {**means, "grad_norm": norm, "lr": 0.0})
        if failure is not None:
            samples = "" if batch.samples is None else f", samples {batch.samples[:4].tolist()}..."
            raise Diverged(f"step {step + 1}: {failure}, loss {loss:g}{samples}")
        factor = self.schedule(step, self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = self.optimizer.lr * group["lr_scale"] * factor
        optimizer.step()
        with torch.no_grad():
            for method in methods:
                method.after_step(self.model, step, self.optimizer.lr * factor)
        optimizer.zero_grad()
        self.model.rebalance(sums.values)
        self.last = {**means, **logged, "grad_norm": norm, "lr": self.optimizer.lr * factor}

    def backward_pass(self, batch: Batch, step: int, penalties: Sequence[Penalty]) -> Sums:
        """This rank's sums over the batch, with the gradients accumulated."""
        no_sync = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        while True:
            # Noise inside a step is a function of (seed, step, rank): a resumed run draws what the unbroken one drew.
            seed_generators(hash((self.seed, step, self.global_rank)) % 2**63)
            rows = min(self.micro_batch, len(batch))
            try:
                batches = self.objective.prepare_step(self.model, micro_batches(batch, self.micro_batch))
                return accumulate(self.model, self.objective, batches, self.manual_backward, no_sync, penalties)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or rows == 1:
                    raise
                if self.trainer.world_size > 1:  # the others wait in a collective operation
                    raise MemoryError(
                        f"out of memory with micro-batches of {rows} rows: set batch.micro={-(-rows // 2)}"
                    ) from error
            # Outside of `except`, whose traceback would keep the activations alive.
            self.micro_batch = -(-rows // 2)
            self.model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(
                f"out of memory with micro-batches of {rows} rows: continuing with {self.micro_batch}", file=sys.stderr
            )

    def skip_step(self, optimizer: torch.optim.Optimizer, metrics: dict[str, Tensor | float]) -> None:
        """Leaves weights and moments as they are; the position moves on."""
        optimizer.zero_grad()
        count_skipped_step(self.trainer)
        self.last = metrics
