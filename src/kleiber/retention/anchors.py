"""Weights by name, as they are and as they were: what the methods that hold a model near its start have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def beside(model: nn.Module, memory: dict[str, Tensor]) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Name, parameter and remembered value of what was there when it was remembered; a new head was not."""
    for name, parameter in trainable(model).items():
        if name in memory:
            yield name, parameter, memory[name]


def ranks() -> tuple[int, int]:
    """This rank, and how many there are."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def summed(values: list[Tensor]) -> list[Tensor]:
    """The sums over all ranks, in one collective."""
    if ranks()[1] == 1:
        return values
    flat = torch.cat([value.reshape(-1) for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device
