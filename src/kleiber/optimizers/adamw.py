"""Optimizers over parameter groups that add up, and learning-rate schedules that are pure functions of the step.

A parameter's learning rate is the base rate times the scale that its parametrisation gives to its role; decay is
decoupled and divided by that scale, so that lr x wd is the same at every width. No scheduler object: nothing to resume.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from kleiber.types.batch import Role


class Optimizer(Protocol):
    """What a config's `optimizer` builds: settings, and from a model the torch optimizer over its groups."""

    @property
    def lr(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    def build(
        self, model: nn.Module, roles: dict[str, Role], lr_scale: Callable[[Role], float]
    ) -> torch.optim.Optimizer: ...


def parameter_groups(
    model: nn.Module,
    roles: dict[str, Role],
    lr_scale: Callable[[Role], float],
    lr: float,
    weight_decay: float,
    only: Container[str] | None = None,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters that share a learning rate and a decay; every one is in exactly one group.

    `only` narrows them to some names, for an optimizer that treats others in another way.

    Embeddings, gains and biases are not decayed. Each group carries "lr_scale", and "names" in the order of its
    parameters, by which a checkpoint finds its optimizer state again.
    """
    groups: dict[tuple[float, float], list[str]] = defaultdict(list)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if only is not None:
        parameters = {name: p for name, p in parameters.items() if name in only}
    for name in parameters:
        role = roles[name]
        scale = lr_scale(role)
        groups[scale, weight_decay / scale if role.kind in ("hidden", "output") else 0.0].append(name)
    assert sorted(n for names in groups.values() for n in names) == sorted(parameters), "every parameter in one group"
    return [
        {
            "params": [parameters[n] for n in names],
            "names": names,
            "lr": lr * scale,
            "lr_scale": scale,
            "weight_decay": wd,
        }
        for (scale, wd), names in groups.items()
    ]


def check_settings(lr: float, weight_decay: float, clip: float | None) -> None:
    """Raises ValueError for what no optimizer could mean."""
    # Written so that nan, which compares as false, is refused too.
    fine = 0 < lr < math.inf and 0 <= weight_decay < math.inf and (clip is None or clip > 0)
    if not fine:
        raise ValueError(f"optimizer: lr={lr}, clip={clip} must be positive, weight_decay={weight_decay} >= 0")


def check_moments(betas: tuple[float, float], eps: float = 0.0) -> None:
    """Raises ValueError for averages of gradients that do not forget, or that run away."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optimizer.betas={list(betas)}: each must be at least 0 and below 1")
    if not 0 <= eps < math.inf:
        raise ValueError(f"optimizer.eps={eps}: write a number of at least 0")


@dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled decay (Loshchilov & Hutter 2017, arXiv:1711.05101), fused.

    lr    base learning rate: that of parameters whose scale is 1
    clip  largest global gradient norm, or None
    """

    lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    eps: float = 1e-8
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_settings(self.lr, self.weight_decay, self.clip)
        check_moments(self.betas, self.eps)

    def build(
        self, model: nn.Module, roles: dict[str, Role], lr_scale: Callable[[Role], float]
    ) -> torch.optim.Optimizer:
        groups = parameter_groups(model, roles, lr_scale, self.lr, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
