"""Parameter groups of all optimizers, and the optimizers AdamW and Lion.

The learning rate of a parameter is the base rate times the scale that the parametrization gives to its role. Weight
decay is decoupled and divided by that scale, so that learning rate x decay is the same at every width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kleiber.types.batch import Role

ParameterGroup = dict[str, Any]  # of a torch optimizer: parameters, their names, and settings
Closure = Callable[[], Tensor | float]  # computes the loss again


class Optimizer(Protocol):
    """The settings of a config's `optimizer`, which build a torch optimizer for a model.

    lr    base learning rate: that of parameters whose scale is 1
    clip  largest global gradient norm, or None
    """

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
) -> list[ParameterGroup]:
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
    """Raises ValueError for rates, decays and norms that are negative, infinite or not a number."""
    # Written so that nan, for which every comparison is false, raises too.
    valid = 0 < lr < math.inf and 0 <= weight_decay < math.inf and (clip is None or clip > 0)
    if not valid:
        raise ValueError(
            f"optimizer.lr={lr} and optimizer.clip={clip} must be > 0, and optimizer.weight_decay={weight_decay} >= 0"
        )


def check_moments(betas: tuple[float, float], eps: float = 0.0) -> None:
    """Raises ValueError for decay rates of moments outside of [0, 1), and for an eps that is no number >= 0."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optimizer.betas={list(betas)} must each be >= 0 and < 1")
    if not 0 <= eps < math.inf:
        raise ValueError(f"optimizer.eps={eps} must be a number >= 0")


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
        """The optimizer over the parameter groups of a model."""
        groups = parameter_groups(model, roles, lr_scale, self.lr, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class Lion:
    """w -= lr (sign(b1 m + (1 - b1) g) + wd w); m = b2 m + (1 - b2) g. Chen et al. 2023, arXiv:2302.06675, alg. 2.

    lr    base learning rate; the paper uses a third to a tenth of AdamW's, and 3 to 10 times its decay
    clip  largest global gradient norm, or None

    The step does not depend on the scale of the gradient, as in Adam, so muP scales the rates as for Adam.
    """

    lr: float = 0.004
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_settings(self.lr, self.weight_decay, self.clip)
        check_moments(self.betas)

    def build(
        self, model: nn.Module, roles: dict[str, Role], lr_scale: Callable[[Role], float]
    ) -> torch.optim.Optimizer:
        """The optimizer over the parameter groups of a model."""
        return SignDescent(parameter_groups(model, roles, lr_scale, self.lr, self.weight_decay), self.betas)


class SignDescent(torch.optim.Optimizer):
    """The update rule of Lion as a torch optimizer; its state is a momentum per parameter."""

    def __init__(self, groups: list[ParameterGroup], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters; returns the loss of `closure`, where there is one."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if not with_gradient:
                continue
            gradients = [p.grad for p in with_gradient]
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in with_gradient]
            steps = torch._foreach_lerp(momenta, gradients, 1 - b1)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(with_gradient, 1 - lr * group["weight_decay"])
            torch._foreach_add_(with_gradient, steps, alpha=-lr)
            torch._foreach_lerp_(momenta, gradients, 1 - b2)
        return result
