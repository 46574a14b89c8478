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


def warmup_factor(step: int, total: int, warmup_steps: int) -> float:
    """Linear rise over `warmup_steps` steps, at most a fifth of the run; 1 afterwards.

    A number of steps and not a share of the run, so that runs of any length share their beginning (Porian et al. 2024,
    arXiv:2406.19146, section 3.2, on what a warm-up that is too long for a small model does to a law).
    """
    return min(1.0, (step + 1) / max(1, min(warmup_steps, total // 5)))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"schedule.{name}={value} is a share of the run: give a number between 0 and 1")


def _check_steps(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"schedule.warmup_steps={warmup_steps}: give a number of optimizer steps, at least 0")


@dataclass(frozen=True)
class Constant:
    """Warm-up, then a constant rate."""

    warmup_steps: int = 100

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)

    def __call__(self, step: int, total: int) -> float:
        return warmup_factor(step, total, self.warmup_steps)


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable, decay: linear to `final` over the last `decay` share of the run.

    Hu et al. 2024, arXiv:2404.06395; a linear fall in place of their exponential one: Hägele et al. 2024,
    arXiv:2405.18392, find it at least as good.
    """

    warmup_steps: int = 100
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)
        for name in ("decay", "final"):
            _check_share(name, getattr(self, name))

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        left = (total - step) / max(1.0, self.decay * total)
        return rise * (self.final + (1 - self.final) * min(1.0, left))

    def branch_step(self, total: int) -> int:
        """Steps whose rate does not depend on `total`: a longer run can be left there for a decay of its own."""
        return total - max(1, math.ceil(self.decay * total))


@dataclass(frozen=True)
class Cosine:
    """Warm-up, then half a cosine to `final` at the last step; honest only when `total` is the real horizon."""

    warmup_steps: int = 100
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_steps(self.warmup_steps)
        _check_share("final", self.final)

    def __call__(self, step: int, total: int) -> float:
        rise = warmup_factor(step, total, self.warmup_steps)
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / total)))
