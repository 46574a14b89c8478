"""The callback `EMA`: an exponential moving average of the weights, which are scored and saved in place of the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from kleiber.config.errors import ConfigError
from kleiber.nn.sharding import full_parameters, local
from kleiber.training import checkpoint
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Json, Natural


class EMA(LeanCallback):
    """An exponential moving average of the weights, which does not change the training.

    At step `start` the average equals the weights; each later step sets it to decay average + (1 - decay) weights.
    Whenever the weights are scored, the average is scored too, as val_ema/<task>/...; after the last step it is saved
    as the checkpoint `stages/<stage>/ema`. A `decay` of .999 averages over about the last thousand steps; choose a
    smaller one for a run of a few thousand steps. Polyak and Juditsky 1992.
    """

    def __init__(
        self,
        folder: Path,
        config_hash: str,
        evaluate: Evaluate,
        decay: Annotated[float, Gt(0), Lt(1)] = 0.999,
        start: Natural = 0,
    ) -> None:
        self.folder, self.config_hash, self.evaluate = folder.parent / "ema", config_hash, evaluate
        self.decay, self.start = decay, start
        self.average: dict[str, Tensor] = {}

    def state_dict(self) -> Json:
        return {"average": self.average}

    def load_state_dict(self, state_dict: Json) -> None:
        self.average = state_dict["average"]

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Raises ConfigError where the run is past the first step of an average that it has not begun."""
        step = trainer.global_step
        if step and step >= self.start and not self.average:
            raise ConfigError(
                f"callbacks.ema.start={self.start}: the run is at step {step:,}, and trained so far without "
                f"callbacks=ema: set callbacks.ema.start={step + 1}, or resume=never to train it again"
            )
        self.average = {name: tensor.to(pl_module.device) for name, tensor in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        """Updates the average; scores it where the weights were scored, and saves it after the last step."""
        step, model = trainer.global_step, pl_module.model
        if step < self.start:
            return
        weights = averaged_tensors(model)
        if self.average:
            averages, latest = ([local(values[n]) for n in self.average] for values in (self.average, weights))
            torch._foreach_lerp_(averages, latest, 1 - self.decay)
        else:
            self.average = {name: tensor.detach().clone() for name, tensor in weights.items()}
        evaluate = self.evaluate
        if evaluate.record.scores_of(step):
            with self.in_place(model):
                averaged = evaluate.scores(model, evaluate.stage_tasks, evaluate.tokens, "val_ema")
            evaluate.add(trainer, averaged)
        if step == trainer.max_steps:
            with self.in_place(model), full_parameters(model):
                if trainer.is_global_zero:
                    checkpoint.save(self.folder, step, model, {}, self.config_hash)
                    checkpoint.tidy(self.folder, keep=1)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Replaces the weights of the model by the average, within the context."""
        weights = averaged_tensors(model)
        kept = {name: weights[name].detach().clone() for name in self.average}
        try:
            copy_tensors(weights, self.average)
            yield
        finally:
            copy_tensors(weights, kept)


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors to average: parameters (tied ones once), and saved floating-point buffers."""
    saved = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in saved and b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


@torch.no_grad()
def copy_tensors(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copies values into the tensors of the same name, in place."""
    for name, value in values.items():
        tensors[name].copy_(value)
