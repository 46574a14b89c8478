"""WiSE-FT: interpolates between the weights before and after a stage, and scores each point on the line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kleiber.retention.memory import ranks
from kleiber.types.contracts import Retention, Task
from kleiber.types.model import Model


class WiSE(Retention):
    """theta = (1 - a) theta_start + a theta_end for each a of `alphas`; 0 and 1 are the start and the end exactly.

    Wortsman et al. 2021, arXiv:2109.01903, section 3. Training is left alone. When the stage ends, each point is
    written as a checkpoint `wise-<a>`, and its scores stand in the stage's metrics as `wise/<a>/...`. What is no weight
    (a router's balancing bias) moves along the line too; integers are those of the end.
    """

    def __init__(self, alphas: Sequence[int | float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)) -> None:
        super().__init__()
        if not alphas or min(alphas) < 0 or max(alphas) > 1 or len(set(alphas)) < len(alphas):
            raise ValueError(f"retention.wise.alphas={list(alphas)}: give different numbers from 0 to 1, such as [.5]")
        self.alphas = [float(alpha) for alpha in alphas]

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        self.memory = {"start": {name: tensor.detach().clone() for name, tensor in moving(model).items()}}

    def end_stage(self, model: Model, save: Callable[[str], Path]) -> dict[str, Path]:
        end = {name: tensor.detach().clone() for name, tensor in moving(model).items()}
        checkpoints = {}
        try:
            for alpha in self.alphas:
                interpolate(model, self.memory["start"], end, alpha)
                checkpoints[f"wise/{alpha:g}"] = save(f"wise-{alpha:g}")
        finally:
            interpolate(model, end, end, 1.0)
        if ranks()[1] > 1:
            torch.distributed.barrier()
        return checkpoints


def moving(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of floating point, a tied one once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


@torch.no_grad()
def interpolate(model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> None:
    """Puts (1 - alpha) start + alpha end into the model; what has no start (a new output layer) is that of the end."""
    for name, tensor in moving(model).items():
        tensor.copy_(torch.lerp(start[name], end[name], alpha) if name in start else end[name])
