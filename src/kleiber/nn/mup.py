"""How a model is scaled: initial standard deviations, multipliers in the forward pass, learning-rate factors by role.

It decides numbers only. It builds no optimizer, and it refuses to look at a model: a factory is told its `Site`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from kleiber.types.batch import Role
from kleiber.types.model import Parametrization, Scale


@dataclass(frozen=True)
class MuP:
    """Maximal-update parametrisation for Adam: the best learning rate does not move with width or depth.

    Hidden matrices start at std 1/sqrt(fan_in) and learn at base_width/fan_in; attention logits are q.k 4/head_dim,
    which is 1/sqrt(head_dim) at the base model's head of 16; each residual branch counts sqrt(base_depth/depth);
    output logits are multiplied by base_width/width. The stream starts at RMS 1. Differs from the paper's table 8 in
    what is measured: multipliers and factors are all 1 at (base_width, base_depth), so one learning rate reads the
    same at the base in both parametrisations. Heads of one size are meant at every width: at width 128, two of 64 were
    .05 nats worse than eight of 16, and a scale of 1/8 in place of 4/64 won back .02 of it (400 steps, two seeds), so
    fewer heads cost more than their scale does. Yang et al. 2022, arXiv:2203.03466; for depth 2023, arXiv:2310.02244.
    """

    base_width: int = 32
    base_depth: int = 2

    def __post_init__(self) -> None:
        if self.base_width < 1 or self.base_depth < 1:
            raise ValueError(f"base_width={self.base_width} and base_depth={self.base_depth} must be at least 1")

    def embedding(self, tied: bool) -> Scale:
        """A tied table is also the output matrix, which wants the small std; its multiplier restores the stream."""
        return Scale(1 / math.sqrt(self.base_width), math.sqrt(self.base_width)) if tied else Scale(1.0, 1.0)

    def hidden_std(self, fan_in: int) -> float:
        return 1 / math.sqrt(fan_in)

    def projection_std(self, fan_in: int, depth: int) -> float:
        """Projections back into the stream are plain hidden matrices: `residual` carries the depth."""
        return self.hidden_std(fan_in)

    def attention(self, head_dim: int) -> float:
        return 4 / head_dim

    def residual(self, depth: int) -> float:
        return math.sqrt(self.base_depth / depth)

    def output(self, width: int) -> Scale:
        """An untied head starts at 0, so that the first loss is exactly log(vocab)."""
        return Scale(0.0, self.base_width / width)

    def router(self, width: int) -> Scale:
        """Few outputs from many inputs: an output layer, but not zero, since equal scores would choose no expert."""
        return Scale(1 / math.sqrt(self.base_width), self.base_width / width)

    def lr_scale(self, role: Role) -> float:
        return self.base_width / role.fan_in if role.kind == "hidden" else 1.0


@dataclass(frozen=True)
class StandardParametrization:
    """Standard parametrisation: std .02, projections into the stream .02/sqrt(2 depth), every multiplier and factor 1.

    Radford et al. 2019 (GPT-2), section 2.3. The best learning rate falls as the width grows.
    """

    std: float = 0.02

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be positive; GPT-2 uses 0.02")

    def embedding(self, tied: bool) -> Scale:
        return Scale(self.std, 1.0)

    def hidden_std(self, fan_in: int) -> float:
        return self.std

    def projection_std(self, fan_in: int, depth: int) -> float:
        return self.std / math.sqrt(2 * depth)

    def attention(self, head_dim: int) -> float:
        return 1 / math.sqrt(head_dim)

    def residual(self, depth: int) -> float:
        return 1.0

    def output(self, width: int) -> Scale:
        return Scale(self.std, 1.0)

    def router(self, width: int) -> Scale:
        return Scale(self.std, 1.0)

    def lr_scale(self, role: Role) -> float:
        return 1.0


@dataclass(frozen=True)
class Site:
    """Where in a Transformer a layer stands: all that a factory needs to know to size and initialise its module."""

    width: int
    depth: int = 1
    layer: int = 0
    parametrization: Parametrization = field(default_factory=MuP)
    context: int = 256
    causal: bool = True
    norm_eps: float = 1e-5

    def hidden(self, fan_in: int, fan_out: int) -> nn.Linear:
        """A bias-free matrix inside a block."""
        return _linear(fan_in, fan_out, self.parametrization.hidden_std(fan_in))

    def projection(self, fan_in: int) -> nn.Linear:
        """A bias-free matrix back into the residual stream."""
        return _linear(fan_in, self.width, self.parametrization.projection_std(fan_in, self.depth))


def _linear(fan_in: int, fan_out: int, std: float) -> nn.Linear:
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=False))
    nn.init.normal_(layer.weight, std=std)
    return layer


Factory = Callable[..., Any]
