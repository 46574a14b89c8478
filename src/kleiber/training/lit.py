"""LitLM, the only LightningModule: pre-training, fine-tuning and mixtures of experts differ only in its arguments.

It makes optimizer steps (manual optimization: `global_step` counts them). Callbacks evaluate, log and save checkpoints.
It never calls `self.log`, which takes longer than a step of a small model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from kleiber.nn.sharding import OptimizerState, load_optimizer
from kleiber.optimizers.adamw import Optimizer
from kleiber.records.terminal import print_line
from kleiber.training.lightning import LeanModule, count_skipped_step
from kleiber.training.step import (
    Diverged,
    accumulate,
    gradient_norms,
    micro_batches,
    normalize_gradients,
    rank_errors,
    read_numbers,
    seed_generators,
)
from kleiber.types.batch import Batch, Sums
from kleiber.types.contracts import Objective
from kleiber.types.model import Model, device_of, out_of_memory
from kleiber.types.ranks import world_size
from kleiber.types.retention import Retention

if TYPE_CHECKING:
    from kleiber.optimizers.privacy import PrivateSteps


class Guard(Protocol):
    """Decides whether to skip a step, or raises Diverged or Rollback."""

    def refuses(self, loss: float, norm: float) -> bool:
        """Whether to skip the step with this cross-entropy (nats per token) and gradient norm."""
        ...


class LitLM(LeanModule):
    """Trains a model on an objective with an optimizer and a learning-rate schedule.

    schedule      f(step, total_steps) -> factor of every learning rate
    total_steps   number of steps that the schedule is planned for
    micro_batch   rows per forward and backward pass: changes the memory that a step needs, and not its result, except
                  for other random numbers of dropout and of `model/router=noisy`, and for the balance loss of
                  `model.mlp.balance.scope=global`, which is taken over each micro-batch
    seed          seeds all random numbers of a step, together with the number of the step
    restored      optimizer state by parameter name, from a checkpoint
    retention     methods against forgetting, each with its memory
    privacy       clips the gradient of each sample and adds noise (DP-SGD); None trains without
    partial       whether checkpoints contain only the trained weights, such as those of an adapter

    `last` contains the means of the latest step ("ce", "total", ...), its "grad_norm" and "lr". A `guard` can skip a
    step before it changes any weight; the step still counts. When a step runs out of memory, `micro_batch` is halved
    and the step is repeated.
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
        restored: OptimizerState | None = None,
        retention: Sequence[Retention] = (),
        partial: bool = False,
        privacy: PrivateSteps | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.optimizer, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.micro_batch, self.seed, self.restored = micro_batch, seed, restored
        self.retention = nn.ModuleList(retention)
        self.partial, self.privacy = partial, privacy
        self.last: dict[str, Tensor | float] = {}
        self.guard: Guard | None = None

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def configure_model(self) -> None:
        """Leaves the model as it is: the trainer has sharded it. Lightning's strategy for that asks for this method."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        built = self.optimizer.build(self.model, self.model.roles(), self.model.parametrization.lr_scale)
        if self.restored is not None:
            load_optimizer(built, self.restored)
        return built

    def on_fit_start(self) -> None:
        ranks = world_size()
        # Lightning can count ranks that do not exist; no rank would then train on their part of the data.
        assert self.trainer.world_size == ranks, f"Lightning counts {self.trainer.world_size} ranks, there are {ranks}"

    def training_step(self, batch: Batch, index: int) -> None:
        """Makes one optimizer step, or skips it where the batch has no target, or the guard refuses.

        With `privacy`, a step without a target is made too, of noise alone. Its loss is NaN, as that of a skipped one.
        Raises Diverged for a loss that is not finite, and what the guard raises.
        """
        step = self.global_step
        optimizer: Any = self.optimizers()
        methods: list[Any] = list(self.retention)
        with rank_errors():
            sums = self.backward_pass(batch, step, methods).reduce()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        logged: dict[str, Tensor] = {}

        def change() -> None:
            for method in methods:
                for name, value in method.gradients(self.model, step).items():
                    logged[f"retention/{name}"] = value

        means = sums.means()
        norms = [] if methods else gradient_norms(parameters)  # methods change the gradients first
        tokens, loss, *read = read_numbers([sums.values["tokens"], means["ce"], *norms])
        if not tokens and self.privacy is None:  # a small batch may have no masked token
            return self.skip_step(optimizer, {**means, "grad_norm": 0.0, "lr": 0.0})
        clip, ranks = self.optimizer.clip, self.trainer.world_size
        failure, norm = None, math.nan
        try:
            divisor = tokens if self.privacy is None else self.privacy.rows
            norm = normalize_gradients(parameters, divisor, ranks, clip, change if methods else None, read)
        except Diverged as error:
            failure = error
        if tokens and self.guard is not None and self.guard.refuses(loss, norm):
            return self.skip_step(optimizer, {**means, "grad_norm": norm, "lr": 0.0})
        if failure is None and tokens and not math.isfinite(loss):
            failure = Diverged("the loss is not finite")
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
        if self.privacy is not None:
            logged["epsilon"] = torch.tensor(self.privacy.epsilon_within(step + 1, self.total_steps))
        self.last = {**means, **logged, "grad_norm": norm, "lr": self.optimizer.lr * factor}

    def backward_pass(self, batch: Batch, step: int, retention: Sequence[Retention]) -> Sums:
        """Accumulates the gradients of the batch in micro-batches; returns this rank's sums over the batch."""
        strategy = self.trainer.strategy
        no_sync = strategy.block_backward_sync if isinstance(strategy, ParallelStrategy) else nullcontext
        while True:
            # Random numbers of a step depend only on (seed, step, rank), so a resumed run draws the same ones.
            seed_generators(hash((self.seed, step, self.global_rank)) % 2**63)
            rows = min(self.micro_batch, len(batch))
            if self.privacy is not None:
                from kleiber.training.private_step import noise_generator, private_gradients

                noise = noise_generator(self.seed, step, device_of(self.model))
                return private_gradients(
                    self.model, self.objective, batch, self.manual_backward, self.privacy, noise, retention, step
                )
            try:
                batches = self.objective.prepare_step(self.model, micro_batches(batch, self.micro_batch))
                return accumulate(self.model, self.objective, batches, self.manual_backward, no_sync, retention, step)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or rows == 1:
                    raise
                if self.trainer.world_size > 1:  # the others wait in a collective operation
                    raise MemoryError(
                        f"out of memory with micro-batches of {rows} rows: continue this run with "
                        f"batch.micro={-(-rows // 2)} and resume=FOLDER, the folder of the run"
                    ) from error
            # Outside of `except`, whose traceback would keep the activations alive.
            self.micro_batch = -(-rows // 2)
            self.model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print_line(f"out of memory with micro-batches of {rows} rows: continuing with {self.micro_batch}", err=True)

    def skip_step(self, optimizer: torch.optim.Optimizer, metrics: dict[str, Tensor | float]) -> None:
        """Counts the step without changing weights or optimizer state."""
        optimizer.zero_grad()
        count_skipped_step(self.trainer)
        self.last = metrics
