"""Layers that act on each position separately: norms, the dense MLPs, and the sizes of experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kleiber.config.model_size import gated_hidden
from kleiber.nn.mup import Site
from kleiber.types import Width
from kleiber.types.batch import Batch, Role
from kleiber.types.model import MLP, Layer

Aux = dict[str, Tensor]


class SwiGLU(MLP):
    """down(silu(gate x) * up x). Shazeer 2020, arXiv:2002.05202, eq. 6. Gate and up are one matrix, for one product.

    hidden  hidden units; null: 8/3 width, which costs what a GELU MLP of 4 width does
    """

    def __init__(self, site: Site, hidden: Width | None = None) -> None:
        super().__init__()
        self.hidden = gated_hidden(site.width) if hidden is None else hidden
        self.gate_up = site.hidden(site.width, 2 * self.hidden)
        self.down = site.projection(self.hidden)

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        return self.down(gated(self.gate_up(x))), {}

    def last_matrix(self) -> nn.Linear:
        return self.down


class GELU(MLP):
    """down(gelu(up x)). Hendrycks and Gimpel 2016, arXiv:1606.08415.

    hidden  hidden units; null: 4 width
    """

    def __init__(self, site: Site, hidden: Width | None = None) -> None:
        super().__init__()
        self.hidden = 4 * site.width if hidden is None else hidden
        self.up = site.hidden(site.width, self.hidden)
        self.down = site.projection(self.hidden)

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        return self.down(self.activation(self.up(x))), {}

    def activation(self, x: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes hidden"]:
        return F.gelu(x)

    def last_matrix(self) -> nn.Linear:
        return self.down


class ReLU2(GELU):
    """down(max(0, up x)^2). So et al. 2021 (Primer), arXiv:2109.08668. Many hidden units are exactly 0."""

    def activation(self, x: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes hidden"]:
        return F.relu(x).square()


def gated(gate_up: Float[Tensor, "*axes twice"]) -> Float[Tensor, "*axes hidden"]:
    """silu(gate) * up, where gate and up are the two halves of the last axis."""
    if torch.compiler.is_compiling():  # inductor fuses the plain form, and would break the graph at the other
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    return Gated.apply(gate_up)


class Gated(torch.autograd.Function):
    """`gated` with a backward pass that writes into the two halves of one tensor, which avoids autograd's copies."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        """Gradient of the loss with respect to `gate_up`; `grad` is that with respect to the output."""
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        gradient = torch.empty_like(gate_up)
        to_gate, to_up = gradient.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        return gradient


class RMSNorm(Layer):
    """x / sqrt(mean(x^2) + eps) * gain. Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Returns x over its root mean square along the last axis, times the gain."""
        gain = self.weight.to(x.dtype)
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and x.dtype in (torch.float32, torch.float64):  # elsewhere PyTorch has one kernel for it
            return Normalized.apply(x, gain, self.eps)
        return F.rms_norm(x, self.weight.shape, gain, self.eps)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("vector", 1)}


class LayerNorm(Layer):
    """(x - mean(x)) / sqrt(var(x) + eps) * gain + bias. Ba et al. 2016, arXiv:1607.06450, eq. 4."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = eps, nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Returns x with mean 0 and variance 1 along the last axis, times the gain, plus the bias."""
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("vector", 1), "bias": Role("vector", 1)}


class Normalized(torch.autograd.Function):
    """RMSNorm whose backward pass is written out: on a CPU, autograd differentiates each of its operations."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()
        normalized = x * inverse
        ctx.save_for_backward(normalized, gain, inverse)
        return normalized * gain

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of the loss with respect to x and the gain; `grad` is that with respect to the output."""
        normalized, gain, inverse = ctx.saved_tensors
        to_gain = (grad * normalized).sum_to_size(gain.shape)
        to_normalized = grad * gain
        along = (to_normalized * normalized).mean(-1, keepdim=True)  # the part that the norm takes out of x
        return to_normalized.addcmul_(normalized, along, value=-1).mul_(inverse), to_gain, None


def expert_hidden(width: int, active: int) -> int:
    """Hidden units of each of `active` experts that together cost one dense SwiGLU, rounded up to a multiple of 8."""
    return -(-gated_hidden(width) // (8 * active)) * 8


def expert_sizes(width: int, k: int, num_shared: int, granularity: int, hidden: int | None) -> int:
    """Hidden units of one expert: `hidden` / `granularity`.

    Where `hidden` is None, the active experts together cost as many FLOPs as one dense SwiGLU. Raises ValueError where
    `granularity` does not divide `hidden`.
    """
    if hidden is None:
        return expert_hidden(width, (k + num_shared) * granularity)
    if hidden % granularity:
        raise ValueError(
            f"model.mlp.hidden={hidden} must be a multiple of model.mlp.granularity={granularity}; "
            "null makes the active experts cost what a dense MLP does"
        )
    return hidden // granularity
