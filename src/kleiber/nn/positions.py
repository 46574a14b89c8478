"""How attention sees positions: rotations of queries and keys, or a penalty on the distance of a key."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.nn.mup import Site

Positions = Literal["rotary", "alibi", "none"]


class Rope(nn.Module):
    """Rotates channel pairs (i, i + head_dim/2) by position * theta^(-2i/head_dim), so that q.k depends on distance.

    The halves are paired, as in Hugging Face's Llama; the paper pairs neighbors. Su et al. 2021, arXiv:2104.09864,
    eq. 34. The tables are not saved, because they follow from (head_dim, context, theta).
    """

    cos: Float[Tensor, "context head_dim"]
    sin: Float[Tensor, "context head_dim"]

    def __init__(self, head_dim: int, context: int, theta: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(
                f"rotary positions need an even number of channels per head, not {head_dim}: change model.num_heads"
            )
        self.theta = theta
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        # The first half of sin carries the minus of the rotation, so that applying it is one roll and two products.
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], 1).float(), persistent=False)
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], 1).float(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch time heads head_dim"], start: int = 0
    ) -> Float[Tensor, "batch time heads head_dim"]:
        """Rotates x, whose first position is `start`, in the precision of x."""
        stop, half = start + x.shape[1], x.shape[-1] // 2
        cos, sin = (table[start:stop, None].to(x.dtype) for table in (self.cos, self.sin))
        return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin


def rope(site: Site, head_dim: int, theta: float | None, positions: str) -> Rope | None:
    """Returns the rotation of a layer with these positions, with a theta of 10,000 by default; None unless they rotate.

    Layers of a model with equal rotations share one. Raises ValueError for a theta without rotary positions.
    """
    if positions == "rotary":
        key = (head_dim, 10000.0 if theta is None else theta)
        if key not in site.rotations:
            site.rotations[key] = Rope(head_dim, site.context, key[1])
        return cast(Rope, site.rotations[key])
    if theta is not None:
        raise ValueError(f"model.rope_theta={theta:g} needs model.positions=rotary, not {positions}: remove it")
    return None


class Alibi(nn.Module):
    """Adds -slope * |distance| to the logits of each head, with slopes from 2^(-8/heads) to 2^-8, geometric.

    A number of heads that is no power of 2 has the slopes of the power below it, and every second one of the power
    above. Press et al. 2021, arXiv:2108.12409, section 3 and footnote; not causal: the same penalty on either side.
    """

    slopes: Float[Tensor, "heads 1 1"]

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        below = 2 ** int(math.log2(num_heads))
        slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
        slopes += [2 ** (-4 * (2 * i + 1) / below) for i in range(num_heads - below)]
        self.register_buffer("slopes", torch.tensor(slopes)[:, None, None], persistent=False)

    def forward(self, queries: Int[Tensor, "_"], keys: int) -> Float[Tensor, "heads queries keys"]:
        """The bias of queries at these positions for the keys at positions 0, 1, ..."""
        distance = queries[:, None] - torch.arange(keys, device=queries.device)
        return -self.slopes * distance.abs()


def last_positions(queries: int, keys: int, device: torch.device) -> Int[Tensor, "_"]:
    """The positions of `queries` that are the last ones of `keys`."""
    return torch.arange(keys - queries, keys, device=device)
