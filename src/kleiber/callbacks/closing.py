"""Scores that are taken once, when a stage has made its last step, and stand beside those of `Evaluate`.

They cost no training, and training cannot tell whether they were taken.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

from kleiber.callbacks.evaluate import Evaluate
from kleiber.hooks import Watch
from kleiber.sharding import whole


class Closing(Watch):
    """After the last step, `score` of the model just trained: into the stage's metrics, its checkpoint and the loggers.

    Of several ranks the first scores alone, with all weights in its hands; random numbers go on as if it had not. It
    asks about the next token, so it refuses models that see it.
    """

    def score(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        """Metrics by name, none of a stage that has nothing to tell. The model is left as it was, its mode included."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not getattr(pl_module.model, "causal", True):
            name = type(self).__name__.lower()
            raise ValueError(f"callbacks.{name} asks about the next token: remove it for model=bert")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        with whole(pl_module.model):
            if trainer.is_global_zero:
                self.put(trainer, pl_module)

    def put(self, trainer: Trainer, pl_module: Any) -> None:
        drawing = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(drawing):
            found = self.score(trainer, pl_module)
        if not found:
            return
        evaluate = next(c for c in trainer.callbacks if isinstance(c, Evaluate))  # pyright: ignore[reportAttributeAccessIssue]
        evaluate.latest = {**evaluate.latest, **found}
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)
