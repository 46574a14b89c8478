"""Logs how far a stage has moved a model from where it began: divergence on earlier text, distance of the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kleiber.checkpoint import Checkpoint
from kleiber.data.sampler import evaluation_batches
from kleiber.evals.distance import distance, divergence
from kleiber.types import Task


class Drift(Callback):
    """Every `every` optimizer steps (0: never else) and after the last one: drift/l2 and drift/relative of the weights,
    and for each earlier task drift/<task>/kl, nats per token, on the first `tokens` targets of its held-out samples.

    start  the checkpoint that the stage began from; one more model in memory, two forward passes of `tokens` a look

    `latest` and `curve` (rows of step and metrics) hold the results; both are resumed.
    """

    of_one_stage = True

    def __init__(self, start: Checkpoint, tasks: Sequence[Task], every: int, tokens: int | None, rows: int) -> None:
        self.start, self.every, self.tokens, self.rows = start, every, tokens, rows
        self.tasks = [task for task in tasks if hasattr(task.objective, "predictions")]
        self.latest: dict[str, float] = {}
        self.curve: list[dict[str, float]] = []
        self._before: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest, self.curve = state_dict["latest"], state_dict["curve"]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._before = copy.deepcopy(pl_module.model).requires_grad_(False)
        self.start.load_model(self._before)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or (self.every and step % self.every == 0):
            self.latest = self.look(trainer, pl_module)
            self.curve.append({"step": step, **self.latest})
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step)

    def look(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        """The distances as they are now, the same on every rank."""
        found = {f"drift/{name}": value for name, value in distance(self._before, pl_module.model).items()}
        for task in self.tasks:
            chosen = task.held_out.first(self.tokens)
            share = (trainer.global_rank, trainer.world_size) if len(chosen) >= trainer.world_size else (0, 1)
            batches = evaluation_batches(chosen, self.rows, None, *share)
            with trainer.precision_plugin.val_step_context():
                sums = divergence(self._before, pl_module.model, task.objective, batches, pl_module.device)
            if share[1] > 1:
                sums.reduce()
            found[f"drift/{task.name}/kl"] = sums.means()["kl"].item()
        return found
