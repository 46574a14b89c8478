"""WiSE-FT: interpolates between the weights before and after a stage, and saves each point for scoring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn

from kleiber.nn.sharding import full_tensor
from kleiber.retention.memory import new_heads
from kleiber.types.contracts import Task
from kleiber.types.model import Model
from kleiber.types.ranks import world_size
from kleiber.types.retention import Retention

Alpha = Annotated[int | float, Ge(0), Le(1)]


class WiSE(Retention):
    """theta = (1 - a) theta_start + a theta_end for each a of `alphas`; 0 is exactly the start, and 1 exactly the end.

    A new output layer has no start: at every point it is that of the end.

    Wortsman et al. 2021, arXiv:2109.01903, section 3. Training does not change. When the stage ends, each point is
    saved as the checkpoint `wise-<a>`, and its scores are in the stage's metrics as `wise/<a>/...`. Buffers of floating
    point, such as a router's balancing bias, are interpolated too; integer buffers are those of the end.
    """

    averages_weights = True

    def __init__(
        self, alphas: Annotated[Sequence[Alpha], MinLen(1)] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ) -> None:
        super().__init__()
        if len(set(alphas)) < len(alphas):
            raise ValueError(f"retention.wise.alphas={list(alphas)} must be distinct: remove one of two equal numbers")
        self.alphas = [float(alpha) for alpha in alphas]

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Keeps a copy of the floating-point weights and buffers from which `end_stage` interpolates."""
        new = new_heads(model)
        tensors = {name: tensor for name, tensor in float_tensors(model).items() if name not in new}
        self.memory = {"start": {name: tensor.detach().clone() for name, tensor in tensors.items()}}

    def end_stage(self, model: Model, save: Callable[[str], Path]) -> dict[str, Path]:
        """Saves a checkpoint for each alpha, and restores the weights of the end."""
        end = {name: tensor.detach().clone() for name, tensor in float_tensors(model).items()}
        checkpoints = {}
        try:
            for alpha in self.alphas:
                interpolate(model, self.memory["start"], end, alpha)
                checkpoints[f"wise/{alpha:g}"] = save(f"wise-{alpha:g}")
        finally:
            interpolate(model, end, end, 1.0)
        if world_size() > 1:
            torch.distributed.barrier()
        return checkpoints


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of floating point, by name; a tied one once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


@torch.no_grad()
def interpolate(model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> None:
    """Sets the model's tensors to (1 - alpha) start + alpha end; those without a start (a new output layer) to end."""
    for name, tensor in float_tensors(model).items():
        tensor.copy_(torch.lerp(full_tensor(start[name]), end[name], alpha) if name in start else end[name])
