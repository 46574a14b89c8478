"""An exponential moving average of the weights beside them: scored when they are, and written when training ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from kleiber.training import checkpoint
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.lightning import Watch


class EMA(Watch):
    """average = decay average + (1 - decay) weights after every step from `start` on, where it begins as the weights.

    Training is left alone. Whenever the weights are scored so is the average, as val_ema/<task>/...; after the last
    step it is written as the checkpoint `stages/<stage>/ema`. Polyak and Juditsky 1992; `decay` .999 averages over the
    last thousand steps, so a run of a few thousand wants no more.
    """

    def __init__(self, folder: Path, config_hash: str, decay: float = 0.999, start: int = 0) -> None:
        if not 0 < decay < 1 or start < 0:
            raise ValueError(f"callbacks.ema: decay={decay} must lie between 0 and 1, start={start} be a step from 0")
        self.folder, self.config_hash = folder.parent / "ema", config_hash
        self.decay, self.start = decay, start
        self.average: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.average = {name: tensor.to(pl_module.device) for name, tensor in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        step, model = trainer.global_step, pl_module.model
        if step < self.start:
            return
        weights = averaged(model)
        if self.average:
            torch._foreach_lerp_(list(self.average.values()), [weights[n] for n in self.average], 1 - self.decay)
        else:
            self.average = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.score(trainer, model, step)
        if step == trainer.max_steps:
            self.write(trainer, model, step)

    def score(self, trainer: Trainer, model: Any, step: int) -> None:
        """Scores the average on what the weights were just scored on, and puts it beside their scores."""
        evaluate = next(c for c in trainer.callbacks if isinstance(c, Evaluate))  # type: ignore[attr-defined]
        row = evaluate.curve[-1] if evaluate.curve else {}
        if row.get("step") != step or not any(name.startswith("val/") for name in row):
            return
        with self.in_place(model):
            found = evaluate.scores(model, evaluate.own, evaluate.tokens, "val_ema")
        row |= found
        evaluate.latest |= found
        for logger in trainer.loggers:
            logger.log_metrics(found, step)

    def write(self, trainer: Trainer, model: Any, step: int) -> None:
        if trainer.is_global_zero:
            with self.in_place(model):
                checkpoint.save(self.folder, step, model, {}, self.config_hash)
            checkpoint.tidy(self.folder, keep=1)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The average in the place of the weights."""
        weights = averaged(model)
        kept = {name: weights[name].detach().clone() for name in self.average}
        try:
            put(weights, self.average)
            yield
        finally:
            put(weights, kept)


def averaged(model: nn.Module) -> dict[str, Tensor]:
    """What is averaged: parameters, a tied one once, and saved buffers of floating point."""
    saved = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


@torch.no_grad()
def put(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        weights[name].copy_(value)
