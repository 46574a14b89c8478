"""Parametrizations: initial standard deviations, multipliers of the forward pass, and learning-rate factors by role.

A `Site` describes the place of a layer in the model, from which the layer is sized and initialized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from kleiber.types import Depth, Positive, Width
from kleiber.types.batch import Role
from kleiber.types.model import Parametrization, Scale, UpdateRule


@dataclass(frozen=True)
class MuP:
    """Maximal-update parametrization for Adam: the best learning rate does not depend on width or depth.

    Hidden matrices start at std 1/sqrt(fan_in) and have the learning-rate factor base_width/fan_in; attention logits
    are q.k 4/head_dim, which is 1/sqrt(head_dim) at the base model's head of 16; each residual branch is multiplied by
    sqrt(base_depth/depth), and so are the learning rates of all parameters inside blocks (Depth-muP for Adam); output
    logits are multiplied by base_width/width. The residual stream starts at RMS 1. Unlike in the
    paper's table 8, at (base_width, base_depth) these multipliers are 1, and so are the factors of the matrices that
    read the residual stream. A matrix with another fan-in (`down` of an MLP reads about 8/3 width) has the factor
    base_width/fan_in there too, and a tied embedding, whose std is small because it is also the output matrix, is
    multiplied by sqrt(base_width). Use heads of the same size at every width: at width 128, two heads of
    64 were .05 nats worse than eight of 16, of which a scale of 1/8 in place of 4/64 recovered .02 (400 steps, two
    seeds). Yang et al. 2022, arXiv:2203.03466; depth: Yang et al. 2023, arXiv:2310.02244.
    """

    base_width: Width = 32
    base_depth: Depth = 2

    def embedding(self, tied: bool) -> Scale:
        """Scale of the embedding; a tied one is also the output matrix, whose small std the multiplier undoes."""
        return Scale(1 / math.sqrt(self.base_width), math.sqrt(self.base_width)) if tied else Scale(1.0, 1.0)

    def hidden_std(self, fan_in: int) -> float:
        return 1 / math.sqrt(fan_in)

    def projection_std(self, fan_in: int, depth: int) -> float:
        """Std of the initial weights of a projection into the residual stream: that of any hidden matrix.

        The depth enters through `residual` instead.
        """
        return self.hidden_std(fan_in)

    def attention(self, head_dim: int) -> float:
        return 4 / head_dim

    def residual(self, depth: int) -> float:
        return math.sqrt(self.base_depth / depth)

    def output(self, width: int) -> Scale:
        """Scale of an untied output layer: weights start at 0, so that the first loss is exactly log(vocab)."""
        return Scale(0.0, self.base_width / width)

    def router(self, width: int) -> Scale:
        """Scale of a router: the multiplier of an output layer, but std > 0, because equal scores choose no experts."""
        return Scale(1 / math.sqrt(self.base_width), self.base_width / width)

    def lr_scale(self, role: Role, rule: UpdateRule = "adam") -> float:
        """The factors of width and depth of a parameter; see `Muon` and `SGD` for those of other rules than Adam's."""
        width = self.base_width / role.fan_in
        if rule == "sgd":
            return {"hidden": 1.0, "vector": max(1.0, 1 / width)}.get(role.kind, 1 / width)
        depth = 1.0 if role.depth is None else math.sqrt(self.base_depth / role.depth)
        if role.kind != "hidden":
            return depth
        return depth * (math.sqrt(width) if rule == "muon" and not role.fixed_outputs else width)


@dataclass(frozen=True)
class StandardParametrization:
    """Standard parametrization: std .02, projections into the stream .02/sqrt(2 depth), every multiplier and factor 1.

    Radford et al. 2019 (GPT-2), section 2.3. The best learning rate decreases with the width.
    """

    std: Positive = 0.02

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

    def lr_scale(self, role: Role, rule: UpdateRule = "adam") -> float:
        return 1.0


@dataclass(frozen=True)
class Site:
    """Position and sizes of a layer in a Transformer, from which a factory sizes and initializes its module.

    rotations  those of the model's layers so far, by what they depend on: layers with equal ones share their tables
    """

    width: int
    depth: int = 1
    layer: int = 0
    parametrization: Parametrization = field(default_factory=MuP)
    context: int = 256
    causal: bool = True
    norm_eps: float = 1e-5
    rotations: dict[object, nn.Module] = field(default_factory=dict, compare=False, repr=False)

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


def heads(width: int, num_heads: int | None, num_kv_heads: int | None) -> tuple[int, int, int]:
    """Number of query heads, number of key heads, and channels per head.

    Raises ValueError unless `num_heads` divides the width and `num_kv_heads` divides `num_heads`.

    num_heads  None: heads of 64 channels, or two heads below width 128
    """
    if num_heads is None:
        num_heads = 2 if width < 128 else width // 64
        if width % num_heads or (width >= 128 and width % 64):
            raise ValueError(
                f"model.width={width} must be a multiple of 64, or set model.num_heads to a divisor of the width"
            )
    if width % num_heads:
        raise ValueError(f"model.num_heads={num_heads} must divide model.width={width}")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads % num_kv_heads:
        raise ValueError(f"model.num_kv_heads={num_kv_heads} must divide model.num_heads={num_heads}")
    return num_heads, num_kv_heads, width // num_heads
