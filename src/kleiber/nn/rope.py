"""Rotary position embedding: positions as rotations of pairs of channels. It knows angles, not attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Rope(nn.Module):
    """Rotates channel pairs (i, i + head_dim/2) by position * theta^(-2i/head_dim), so that q.k depends on distance.

    The halves are paired, as in Hugging Face's Llama, not the neighbours of the paper. Su et al. 2021,
    arXiv:2104.09864, eq. 34. The tables are not saved: they follow from (head_dim, context, theta).
    """

    cos: Float[Tensor, "context head_dim"]
    sin: Float[Tensor, "context head_dim"]

    def __init__(self, head_dim: int, context: int, theta: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"heads of {head_dim} channels cannot be rotated in pairs: choose an even width/num_heads")
        self.theta = theta
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        # The first half of sin carries the minus of the rotation, so that applying it is one roll and two products.
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], 1).float(), persistent=False)
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], 1).float(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch time heads head_dim"], start: int = 0
    ) -> Float[Tensor, "batch time heads head_dim"]:
        """x, whose first position is `start`, rotated; in the precision of x."""
        stop, half = start + x.shape[1], x.shape[-1] // 2
        cos, sin = (table[start:stop, None].to(x.dtype) for table in (self.cos, self.sin))
        return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin
