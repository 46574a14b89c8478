"""Output layers: logits over tokens, and the scores of a task; the names of task layers."""

from __future__ import annotations

import hashlib
import json

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.types.batch import Role
from kleiber.types.model import Head, Layer


class LMHead(Layer, Head):
    """logits = cap(multiplier hidden @ weight.T), cap(x) = soft_cap tanh(x / soft_cap); Gemma 2, arXiv:2408.00118.

    predicted  number of tokens that are predicted at each position, each by a product with the matrix
    """

    def __init__(
        self, weight: nn.Parameter, multiplier: float = 1.0, soft_cap: float | None = None, predicted: int = 1
    ) -> None:
        super().__init__()
        self.weight, self.multiplier, self.soft_cap, self.predicted = weight, multiplier, soft_cap, predicted

    def forward(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        logits = F.linear(hidden, self.weight) * self.multiplier
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1])}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel() * self.predicted


class TaskHead(Layer):
    """scores = multiplier pooled @ weight.T + bias, from pooled hidden states; weight and bias start at 0."""

    def __init__(self, width: int, outputs: int, multiplier: float = 1.0) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"a task's output layer needs >= 1 outputs, not {outputs}")
        self.multiplier = multiplier
        self.weight = nn.Parameter(torch.zeros(outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, pooled: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes outputs"]:
        return F.linear(pooled, self.weight) * self.multiplier + self.bias

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1]), "bias": Role("vector", 1)}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel() / time


def head_name(task: str, *meaning: object) -> str:
    """The name of a task's output layer in a model: the task's name and a hash of what its outputs stand for.

    Tasks that have the same name and different outputs get different layers.
    """
    return f"{task.replace('.', '_')}-{hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:8]}"
