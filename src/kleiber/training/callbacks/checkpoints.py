"""Writes checkpoints at optimizer steps and after the last one, and keeps the newest. What is in one: `checkpoint`.

Ends a run early and in good order: SIGTERM or SIGUSR1 becomes a checkpoint after the current step and exit code 75.

A scheduler that reads 75 (or the status `preempted`) starts the same command again, which continues bit-identically.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kleiber.config.errors import SIGNALS, Preempted
from kleiber.nn.sharding import full_parameters, gather_state
from kleiber.training import checkpoint
from kleiber.training.lightning import Watch


class Checkpoints(Watch):
    """Every `every` optimizer steps (None: ten times a run, at least every 1000 steps; 0: only after the last step).

    Also at the `branch_steps` where children of the stage begin, and those are kept beside the newest `keep`.

    A write that fails for want of space ends the run with status failed; the checkpoint before stays good.
    """

    def __init__(
        self,
        folder: Path,
        config_hash: str,
        every: int | None = None,
        keep: int = 2,
        branch_steps: Sequence[int] = (),
    ) -> None:
        if keep < 1 or (every is not None and every < 0):
            raise ValueError(f"callbacks.checkpoints: keep={keep} must be at least 1, every={every} at least 0 or null")
        self.folder, self.config_hash, self.every, self.keep = folder, config_hash, every, keep
        self.branch_steps = frozenset(branch_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every is None:
            self.every = max(1, min(1000, trainer.max_steps // 10))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.due(trainer):
            self.save(trainer, pl_module)

    def due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is written after the step that has just been made."""
        step = trainer.global_step
        return step == trainer.max_steps or step in self.branch_steps or bool(self.every and step % self.every == 0)

    def save(self, trainer: Trainer, pl_module: Any) -> None:
        """Writes the state after the latest step: rank 0 writes, the others hand it what they hold and wait for it."""
        optimizer = checkpoint.optimizer_state(pl_module.optimizers(use_pl_optimizer=False))
        optimizer = gather_state(optimizer, keep=trainer.is_global_zero)
        with full_parameters(pl_module.model):
            if trainer.is_global_zero:
                self.write(trainer, pl_module, optimizer)
        if torch.distributed.is_initialized():
            trainer.strategy.barrier()

    def write(self, trainer: Trainer, pl_module: Any, optimizer: dict[str, Any]) -> None:
        state = {
            "optimizer": optimizer,
            "retention": {name_of(method): method.state_dict() for method in pl_module.retention},
            "micro_batch": pl_module.micro_batch,
            "callbacks": {c.state_key: s for c in trainer.callbacks if (s := c.state_dict())},  # type: ignore[attr-defined]
        }
        model = pl_module.model
        names = checkpoint.trained(model) if pl_module.partial else None
        checkpoint.save(self.folder, trainer.global_step, model, state, self.config_hash, names)
        checkpoint.tidy(self.folder, self.keep, [self.folder / checkpoint.name(s) for s in self.branch_steps])


def name_of(method: Any) -> str:
    """What a retention method is called in a config and in a checkpoint."""
    return type(method).__name__.lower()


def restore_callbacks(callbacks: list[Callback], state: dict[str, Any], own: bool = True) -> None:
    """Hands each callback the state that it saved; one that counts for a stage alone leaves out that of a parent."""
    for callback in callbacks:
        if callback.state_key in state and (own or not getattr(callback, "of_one_stage", False)):
            callback.load_state_dict(state[callback.state_key])


class Preempt(Watch):
    """Raises Preempted after the step in which any rank got a signal; comes after `checkpoints`, which it makes save.

    Steps are counted alike on all ranks, so all of them leave after the same one.
    """

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self.checkpoints = checkpoints
        self.asked = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        # Over Lightning's own handlers, which are there by now and would leave without a checkpoint; it puts back
        # what was there before the fit.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        self.asked = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        number = self._of_any_rank(trainer)
        if not number or step == trainer.max_steps:  # what is finished needs no interruption
            return
        saved = "no checkpoints are written, so it will begin anew"
        if self.checkpoints is not None:
            if not self.checkpoints.due(trainer):
                self.checkpoints.save(trainer, pl_module)
            saved = "a checkpoint is written"
        raise Preempted(f"{signal.Signals(number).name} at step {step:,}: {saved}")

    def _of_any_rank(self, trainer: Trainer) -> int:
        if trainer.world_size == 1:
            return self.asked
        number = torch.tensor(self.asked, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number)
