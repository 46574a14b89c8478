"""Ends a run early and in good order: SIGTERM or SIGUSR1 becomes a checkpoint after the current step and exit code 75.

A scheduler that reads 75 (or the status `preempted`) starts the same command again, which continues bit-identically.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from lightning.pytorch import Trainer

from kleiber.callbacks.checkpoints import Checkpoints
from kleiber.hooks import Watch
from kleiber.preemption import SIGNALS, Preempted


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
