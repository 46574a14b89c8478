"""Ends training when the validation loss is good enough: budget.stop_at_loss."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from kleiber.callbacks.evaluate import Evaluate
from kleiber.hooks import Watch


class StopAtLoss(Watch):
    """After `evaluate`: the step whose scores reach `loss` becomes the last one, with all that is done after it."""

    def __init__(self, loss: float, evaluate: Evaluate) -> None:
        self.loss, self.evaluate = loss, evaluate

    def reached(self, step: int) -> bool:
        """Whether every own task was scored at `step`, and at `loss` or below."""
        scored = self.evaluate.curve[-1] if self.evaluate.curve else {}
        names = [f"val/{task.name}/loss" for task in self.evaluate.own]
        return scored.get("step") == step and all(scored.get(name, float("inf")) <= self.loss for name in names)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step < trainer.max_steps and self.reached(trainer.global_step):
            self.evaluate.finish(trainer, pl_module.model)
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step
