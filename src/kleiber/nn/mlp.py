"""Layers that act on each position separately: RMSNorm, the dense MLPs, and the experts of a mixture.

Experts are stored as two stacks of matrices. Three backends send tokens through them:

    grouped  sorts tokens by expert and calls one grouped matrix product; falls back to `loop` for unsupported shapes
    loop     sorts tokens by expert and calls one matrix product per expert
    dense    computes every expert on every token: the slow reference

The backends give the same results at different speeds. Tokens are not padded to equal counts per expert, and
assignments that are not kept are not computed by the first two. Every rank holds all experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kleiber.nn.mup import Site
from kleiber.types import Width
from kleiber.types.batch import Batch, Role, Routing
from kleiber.types.model import MLP, Layer

Aux = dict[str, Tensor]
Backend = Literal["grouped", "loop", "dense"]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def gated_hidden(width: int) -> int:
    """8/3 width, rounded up to a multiple of 16: three matrices of this size cost as much as two of size 4 width."""
    return -(-8 * width // 48) * 16


class RMSNorm(Layer):
    """x / sqrt(mean(x^2) + eps) * gain. Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("vector", 1)}


class Experts(Layer):
    """SwiGLU experts of one size: `gate_up` (experts, dim, 2 hidden) and `down` (experts, hidden, dim).

    k  mean number of experts that a token visits, which determines the FLOPs per token
    """

    def __init__(self, site: Site, num_experts: int, hidden: int, k: int, backend: Backend = "grouped") -> None:
        super().__init__()
        self.backend: Backend = backend
        p = site.parametrization
        self.k = k
        self.gate_up = nn.Parameter(torch.randn(num_experts, site.width, 2 * hidden) * p.hidden_std(site.width))
        self.down = nn.Parameter(torch.randn(num_experts, hidden, site.width) * p.projection_std(hidden, site.depth))

    def forward(self, x: Float[Tensor, "tokens dim"], routing: Routing) -> Float[Tensor, "tokens dim"]:
        return dispatch(self.backend, x, self.gate_up, self.down, routing)

    def roles(self) -> dict[str, Role]:
        return {
            "gate_up": Role("hidden", self.gate_up.shape[1]),
            "down": Role("hidden", self.down.shape[1]),
        }

    def flops(self, time: int) -> float:
        return 2.0 * self.k * (self.gate_up[0].numel() + self.down[0].numel())


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


def dispatch(
    backend: Backend,
    x: Float[Tensor, "tokens dim"],
    gate_up: Float[Tensor, "experts dim twice"],
    down: Float[Tensor, "experts hidden dim"],
    routing: Routing,
) -> Float[Tensor, "tokens dim"]:
    """sum_i w_i expert_i(x) over the assignments that are kept, in the precision of autocast."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    if backend == "dense":
        return every_expert(x, gate_up, down, routing)
    product = grouped_mm if backend == "grouped" else looped_mm
    if routing.kept is None:
        return dispatch_all(product, x, gate_up, down, routing)
    # A GPU would have to wait for the number of rows that are kept.
    return dispatch_kept(product, x, gate_up, down, routing, cut=x.device.type == "cpu")


def dispatch_all(product: Product, x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """Computes all assignments. Every token has k rows, so rows are permuted and back, without atomic additions."""
    flat, k = routing.experts.flatten(), routing.experts.shape[1]
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = count_assignments(flat, len(down))
    hidden = gated(product(GatherRows.apply(x, order, inverse, k), gate_up, counts))
    y = GatherRows.apply(product(hidden, down, counts), inverse, order, 1).unflatten(0, (-1, k))
    return (y * routing.weights.to(x.dtype).unsqueeze(-1)).sum(1)


def dispatch_kept(
    product: Product, x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing, cut: bool = True
) -> Tensor:
    """Computes the assignments that are kept. The others are sorted behind the last expert's rows.

    cut  drops the rows of the others, for which the device reports their number; otherwise they are computed as zeros
    """
    assert routing.kept is not None
    experts, k = len(down), routing.experts.shape[1]
    flat = routing.experts.flatten().masked_fill(~routing.kept.flatten(), experts)
    order, counts = flat.argsort(stable=True), count_assignments(flat, experts + 1)[:-1]
    order = order[: int(counts.sum())] if cut else order
    unserved = None if cut else (torch.arange(len(order), device=x.device) >= counts.sum()).unsqueeze(-1)
    rows = zero_rows(x.index_select(0, order // k), unserved)
    y = zero_rows(product(gated(product(rows, gate_up, counts)), down, counts), unserved)
    weights = routing.weights.flatten().index_select(0, order).to(x.dtype)
    return torch.zeros_like(x).index_add(0, order // k, y * weights.unsqueeze(-1))


def zero_rows(rows: Tensor, where: Tensor | None) -> Tensor:
    """The rows with zeros where the mask is True; unchanged without a mask."""
    return rows if where is None else rows.masked_fill(where, 0)


def every_expert(x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """Computes all experts on all tokens, weighted by 0 where an expert was not chosen."""
    weights = routing.weights if routing.kept is None else routing.weights * routing.kept
    full = weights.new_zeros(len(x), len(down)).scatter_add(1, routing.experts, weights)
    y = torch.matmul(gated(torch.matmul(x, gate_up)), down)
    return torch.einsum("te,etd->td", full.to(x.dtype), y)


def count_assignments(flat: Int[Tensor, "assignments"], experts: int) -> Int[Tensor, "experts"]:
    """The number of assignments per expert, as a vector."""
    counts = torch.zeros(experts, dtype=torch.int32, device=flat.device)
    return counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32))


class GatherRows(torch.autograd.Function):
    """rows[i] = x[order[i] // k]; the gradient gathers by the inverse permutation, without atomic additions."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order if k == 1 else order // k)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = grad.index_select(0, inverse)
        return rows if ctx.k == 1 else rows.unflatten(0, (-1, ctx.k)).sum(1), None, None, None


def grouped_mm(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "experts in out"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "rows out"]:
    """Multiplies rows, sorted by expert, by the matrix of their expert; an expert without rows gets a gradient of 0."""
    if _grouped_is_legal(rows, weight):
        return F.grouped_mm(rows, weight, offs=counts.cumsum(0, dtype=torch.int32))
    return looped_mm(rows, weight, counts)


def looped_mm(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "experts in out"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "rows out"]:
    """As `grouped_mm`, with one product per expert. Rows after those of the last expert become zeros."""
    expert_sizes = counts.tolist()
    *parts, rest = rows.split([*expert_sizes, len(rows) - sum(expert_sizes)])
    done = [part @ matrix for part, matrix in zip(parts, weight.unbind(0), strict=True)]
    return torch.cat([*done, rest.new_zeros(len(rest), weight.shape[2])])


def _grouped_is_legal(rows: Tensor, weight: Tensor) -> bool:
    """Rows of either operand must be multiples of 16 bytes; fp64 has no kernel, and fp32 none under torch.compile."""
    if rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    aligned = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])
    return aligned and (rows.dtype == torch.bfloat16 or not torch.compiler.is_compiling())
