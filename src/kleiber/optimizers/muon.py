"""Muon for the matrices inside blocks, each expert's among them; fused AdamW for everything else, as one optimizer.

It refuses nothing that AdamW trains: a parameter that is no hidden matrix goes to AdamW. Matrices that are stored as
one (queries, keys and values; gate and up) are orthogonalised as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.optimizers.adamw import check_moments, check_settings, parameter_groups
from kleiber.types.batch import Role

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic, steepest at 0; torch.optim.Muon has the same
TINY = 1e-7


@dataclass(frozen=True)
class Muon:
    """Momentum, orthogonalised: w -= lr (.2 sqrt(max(rows, columns)) O + wd w), O = NewtonSchulz(momentum).

    lr        base learning rate of both parts: the .2 gives an entry the RMS step of AdamW (Liu et al. 2025,
              arXiv:2502.16982, eq. 4), so AdamW's rate serves
    momentum  of the matrices, with Nesterov's look ahead (Jordan et al. 2024, kellerjordan.github.io/posts/muon)
    steps     Newton-Schulz iterations, in bf16
    betas, eps  of the AdamW for embeddings, head, router, gains and biases
    clip      largest global gradient norm, or None

    muP: what must not grow with the width is the largest singular value of a step over sqrt(fan_out / fan_in) (Yang et
    al. 2023, arXiv:2310.17813). That of O is 1 and sqrt(max) grows as sqrt(width), so a matrix learns at the *square
    root* of Adam's scale, sqrt(base_width / fan_in), and lr x wd stays the same at every width.
    """

    lr: float = 0.02
    momentum: float = 0.95
    steps: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    eps: float = 1e-8
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_settings(self.lr, self.weight_decay, self.clip)
        check_moments(self.betas, self.eps)
        if not 0 <= self.momentum < 1 or not 1 <= self.steps < 100:
            raise ValueError(
                f"optimizer.momentum={self.momentum} must lie in [0, 1) and optimizer.steps={self.steps} in [1, 99]"
            )

    def build(
        self, model: nn.Module, roles: dict[str, Role], lr_scale: Callable[[Role], float]
    ) -> torch.optim.Optimizer:
        dims = {name: p.dim() for name, p in model.named_parameters()}
        kinds: dict[int, set[str]] = {0: set(), 2: set(), 3: set()}
        for name, dim in dims.items():
            kinds[dim if roles[name].kind == "hidden" and dim in (2, 3) else 0].add(name)
        matrices, stacks, rest = (
            parameter_groups(model, roles, scale, self.lr, self.weight_decay, only=kinds[kind])
            for kind, scale in ((2, root(lr_scale)), (3, root(lr_scale)), (0, lr_scale))
        )
        built: list[torch.optim.Optimizer] = []
        if matrices:
            options = {"momentum": self.momentum, "ns_steps": self.steps, "weight_decay": self.weight_decay}
            built.append(torch.optim.Muon(matrices, lr=self.lr, adjust_lr_fn="match_rms_adamw", **options))
        if stacks:
            built.append(StackedMuon(stacks, self.momentum, self.steps))
        if rest:
            built.append(torch.optim.AdamW(rest, lr=self.lr, betas=self.betas, eps=self.eps, fused=True))
        return Together(model, built)


def root(lr_scale: Callable[[Role], float]) -> Callable[[Role], float]:
    return lambda role: math.sqrt(lr_scale(role))


class Together(torch.optim.Optimizer):
    """Several optimizers as one: its groups are theirs, and its state, by parameter, is that of all of them."""

    def __init__(self, model: nn.Module, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state
        held = [id(p) for group in self.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad), "each in one group"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for part in self.parts:
            part.step()
        return result


class StackedMuon(torch.optim.Optimizer):
    """torch.optim.Muon for stacks of matrices (experts, in, out): every expert is orthogonalised by itself."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float, steps: int) -> None:
        super().__init__(groups, {"momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(momentum, group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * math.sqrt(max(p.shape[-2:]))
                p.add_(orthogonalised(ahead, group["steps"]), alpha=-group["lr"] * size)


def orthogonalised(stack: Float[Tensor, "experts rows columns"], steps: int) -> Float[Tensor, "experts rows columns"]:
    """About U V^T of every matrix U S V^T, by `steps` of x = a x + (b x x^T + c (x x^T)^2) x in bf16.

    Singular values end between .7 and 1.2, not at 1 (Jordan et al. 2024). A matrix of zeros stays zeros.
    """
    a, b, c = COEFFICIENTS
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
