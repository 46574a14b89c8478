"""Lion: every entry of a weight moves by the learning rate, in the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kleiber.optimizers.adamw import check_moments, check_settings, parameter_groups
from kleiber.types.batch import Role


@dataclass(frozen=True)
class Lion:
    """w -= lr (sign(b1 m + (1 - b1) g) + wd w); m = b2 m + (1 - b2) g. Chen et al. 2023, arXiv:2302.06675, alg. 2.

    lr    base learning rate; the paper takes a third to a tenth of AdamW's, and 3 to 10 times its decay
    clip  largest global gradient norm, or None

    An entry's step has the same size whatever its gradient's scale, as Adam's: so muP scales it as it scales Adam.
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
        return Signs(parameter_groups(model, roles, lr_scale, self.lr, self.weight_decay), self.betas)


class Signs(torch.optim.Optimizer):
    """The update rule of Lion as a torch optimizer; its state is one momentum a parameter."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
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
