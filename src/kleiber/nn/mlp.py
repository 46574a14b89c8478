"""Dense feed-forward layers. Each returns its output and an empty dict, where a mixture returns its auxiliary sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kleiber.nn.mup import Site
from kleiber.types.batch import Batch

Aux = dict[str, Tensor]


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), of 8/3 width hidden units unless told: it costs what a GELU MLP of 4 width does.

    Shazeer 2020, arXiv:2002.05202, eq. 6. Gate and up are one matrix: one product, half the launches.
    """

    def __init__(self, site: Site, hidden: int | None = None) -> None:
        super().__init__()
        self.hidden = gated_hidden(site.width) if hidden is None else hidden
        _check(self.hidden)
        self.gate_up = site.hidden(site.width, 2 * self.hidden)
        self.down = site.projection(self.hidden)

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        return self.down(gated(self.gate_up(x))), {}


class GELU(nn.Module):
    """down(gelu(up x)), of 4 width hidden units unless told. Hendrycks and Gimpel 2016, arXiv:1606.08415."""

    def __init__(self, site: Site, hidden: int | None = None) -> None:
        super().__init__()
        self.hidden = 4 * site.width if hidden is None else hidden
        _check(self.hidden)
        self.up = site.hidden(site.width, self.hidden)
        self.down = site.projection(self.hidden)

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        return self.down(F.gelu(self.up(x))), {}


def gated(gate_up: Float[Tensor, "*axes twice"]) -> Float[Tensor, "*axes hidden"]:
    """silu(gate) * up, of the two halves of the last axis."""
    if torch.compiler.is_compiling():  # inductor fuses the plain form, and would break the graph at the other
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    return Gated.apply(gate_up)


class Gated(torch.autograd.Function):
    """Its gradient is written into both halves of one tensor: autograd would make each and join copies of them."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        both = torch.empty_like(gate_up)
        to_gate, to_up = both.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        return both


def gated_hidden(width: int) -> int:
    """8/3 width, rounded up to a multiple of 16: where three matrices cost what two of 4 width do."""
    return -(-8 * width // 48) * 16


def _check(hidden: int) -> None:
    if hidden < 1:
        raise ValueError(f"hidden={hidden} must be at least 1; leave it null for the usual multiple of the width")
