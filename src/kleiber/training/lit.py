"""LitLM: the one LightningModule. Pre-training, fine-tuning and MoE differ in what it is given, not in what it does.

It owns the optimizer step (manual optimisation: `global_step` counts optimizer steps) and nothing else: data order,
evaluation, logging and checkpoints live beside it. It never calls `self.log`, which costs more than a small step.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from kleiber.optimizers.adamw import Optimizer
from kleiber.training import checkpoint
from kleiber.training.lightning import Unasked
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


class LitLM(Unasked, LightningModule):
    """A model, an objective, an optimizer and a schedule.

    model         a backbone with a head (types.Model) that knows its roles and its parametrisation
    schedule      f(step, total_steps) -> factor of every learning rate
    total_steps   the horizon of the schedule
    micro_batch   rows per forward and backward; memory, not mathematics
    seed          of everything random inside a step, together with the step's number
    restored      optimizer state by parameter name, from a checkpoint
    retention     ways not to forget, each with its memory
    partial       whether a checkpoint holds what is trained alone: an adapter's weights and not those that it adapts

    `last` holds the means of the latest step ("ce", "total", ...), its "grad_norm" and "lr". `guard` (a callback) may
    refuse a step before it changes a weight; the position moves on all the same. Where memory ends, `micro_batch` is
    halved and the step is made again.
    """

    def __init__(
        self,
        model: Any,
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
        self.automatic_optimization = False
        self.model, self.objective = model, objective
        self.optimizer, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.micro_batch, self.seed, self.restored = micro_batch, seed, restored
        self.retention = nn.ModuleList(retention)
        self.partial = partial
        self.last: dict[str, Tensor | float] = {}
        self.guard: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook that it is in twice for every hook, and a Module first asks whether that is a weight.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

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
        # Lightning can believe in ranks that were never made; half of the data would then be seen by nobody.
        assert self.trainer.world_size == ranks, f"Lightning counts {self.trainer.world_size} ranks, there are {ranks}"

    def training_step(self, batch: Batch, index: int) -> None:
        step = self.global_step
        optimizer: Any = self.optimizers()
        methods: list[Any] = list(self.retention)
        penalties = [functools.partial(method.penalty, step=step) for method in methods]
        sums = self.backward_pass(batch, step, penalties).reduce()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        told: dict[str, Tensor] = {}

        def change() -> None:
            for method in methods:
                found = method.gradients(self.model, step)
                told.update({f"retention/{name}": value for name, value in found.items()})

        means, tokens = sums.means(), sums.values["tokens"].item()
        clip, ranks = self.optimizer.clip, self.trainer.world_size
        loss, failure, norm = means["ce"].item(), None, math.nan
        try:
            norm = normalise(parameters, tokens, ranks, clip, change if methods else None)
        except Diverged as error:
            failure = error
        if self.guard is not None and self.guard.refuses(loss, norm):
            return self.pass_over(optimizer, {**means, "grad_norm": norm, "lr": 0.0})
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
        self.last = {**means, **told, "grad_norm": norm, "lr": self.optimizer.lr * factor}

    def backward_pass(self, batch: Batch, step: int, penalties: Sequence[Penalty]) -> Sums:
        """This rank's sums over the batch, with the gradients accumulated."""
        no_sync = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        while True:
            # Noise inside a step is a function of (seed, step, rank): a resumed run draws what the unbroken one drew.
            seed_generators(hash((self.seed, step, self.global_rank)) % 2**63)
            rows = min(self.micro_batch, len(batch))
            try:
                batches = self.objective.prepared(self.model, micro_batches(batch, self.micro_batch))
                return accumulate(self.model, self.objective, batches, self.manual_backward, no_sync, penalties)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or rows == 1:
                    raise
                if self.trainer.world_size > 1:  # the others wait in a collective, where nobody can call them back
                    told = f"out of memory with micro-batches of {rows} rows: set batch.micro={-(-rows // 2)}"
                    raise MemoryError(told) from error
            # Outside of `except`, whose traceback would keep the activations alive.
            self.micro_batch = -(-rows // 2)
            self.model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"out of memory with micro-batches of {rows} rows: on with {self.micro_batch}", file=sys.stderr)

    def pass_over(self, optimizer: Any, told: dict[str, Tensor | float]) -> None:
        """Leaves weights and moments as they are; the position, which Lightning counts in optimizer steps, moves on."""
        optimizer.zero_grad()
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        self.last = told


# Lightning asks for it at every step, and to work it out anew took 2 % of a small one.
setattr(LitLM.training_step, "__signature__", inspect.signature(LitLM.training_step))  # noqa: B010 (no attribute of a function)
