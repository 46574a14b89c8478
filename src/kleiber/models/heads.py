"""Output layers: a language model's, whose matrix may be the embedding's, and those of tasks with their own outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.types import Role


class LMHead(nn.Module):
    """logits = cap(multiplier hidden @ weight.T), cap(x) = soft_cap tanh(x / soft_cap); Gemma 2, arXiv:2408.00118."""

    def __init__(self, weight: nn.Parameter, multiplier: float = 1.0, soft_cap: float | None = None) -> None:
        super().__init__()
        if soft_cap is not None and soft_cap <= 0:
            raise ValueError(f"soft_cap={soft_cap} must be positive, or null for none; Gemma 2 uses 30")
        self.weight, self.multiplier, self.soft_cap = weight, multiplier, soft_cap

    def forward(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        logits = F.linear(hidden, self.weight) * self.multiplier
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1])}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel()


class TaskHead(nn.Module):
    """scores = multiplier hidden @ weight.T + bias, from pooled hidden states; it starts at 0, so at no preference."""

    def __init__(self, width: int, outputs: int, multiplier: float = 1.0) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"a head of {outputs} outputs predicts nothing: give at least one class")
        self.multiplier = multiplier
        self.weight = nn.Parameter(torch.zeros(outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, pooled: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes outputs"]:
        return F.linear(pooled, self.weight) * self.multiplier + self.bias

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1]), "bias": Role("vector", 1)}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel() / time
