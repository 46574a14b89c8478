"""The experts of a mixture, and the ways in which tokens get to them.

Experts are stored as two stacks of matrices. Three backends send tokens through them:

    grouped  sorts tokens by expert and calls one grouped matrix product; falls back to `loop` for unsupported shapes,
             and in bf16 on a CPU to one product per expert with rows of zeros
    loop     sorts tokens by expert and calls one matrix product per expert
    dense    computes every expert on every token: the slow reference

The backends give the same results at different speeds. Tokens are not padded to equal counts per expert, and
assignments that are not kept are not computed by the first two.

Where each rank holds a share of the experts (`kleiber.training.ExpertParallel`), tokens are sent to the
rank of their expert and back by two exchanges, and each rank computes its experts by one of the backends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kleiber.nn.loss import PLANNED
from kleiber.nn.mlp import gated
from kleiber.nn.mup import Site
from kleiber.nn.precision import to_autocast
from kleiber.nn.sharding import is_sharded
from kleiber.types.batch import Role, Routing
from kleiber.types.model import Layer

Backend = Literal["grouped", "loop", "dense"]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class Experts(Layer):
    """SwiGLU experts of one size: `gate_up` (experts, dim, 2 hidden) and `down` (experts, hidden, dim).

    k  mean number of experts that a token visits, which determines the FLOPs per token

    `gate_up` and `down` may be divided over ranks along their first axis (DTensor); all ranks then call the layer
    together, each with its own tokens.
    """

    def __init__(self, site: Site, num_experts: int, hidden: int, k: int, backend: Backend = "grouped") -> None:
        super().__init__()
        self.backend: Backend = backend
        p = site.parametrization
        self.k = k
        self.gate_up = nn.Parameter(torch.randn(num_experts, site.width, 2 * hidden) * p.hidden_std(site.width))
        self.down = nn.Parameter(torch.randn(num_experts, hidden, site.width) * p.projection_std(hidden, site.depth))

    def forward(self, x: Float[Tensor, "tokens dim"], routing: Routing) -> Float[Tensor, "tokens dim"]:
        if is_sharded(self.gate_up) and is_sharded(self.down):
            group, local = self.gate_up.device_mesh.get_group(), (self.gate_up.to_local(), self.down.to_local())
            return dispatch_over_ranks(self.backend, x, *local, routing, group)
        return dispatch(self.backend, x, self.gate_up, self.down, routing)

    def roles(self) -> dict[str, Role]:
        return {
            "gate_up": Role("hidden", self.gate_up.shape[1]),
            "down": Role("hidden", self.down.shape[1]),
        }

    def flops(self, time: int) -> float:
        return 2.0 * self.k * (self.gate_up[0].numel() + self.down[0].numel())

    def executed_flops(self, time: int) -> float:
        """All experts where the backend computes each of them for every token."""
        return self.flops(time) * (len(self.gate_up) / self.k if self.backend == "dense" else 1.0)

    def idle(self) -> int:
        """The matrices of the (num_experts - k) experts that a token does not visit, with their low-rank updates."""
        return sum((len(stack) - self.k) * stack[0].numel() for stack in self.parameters())


def dispatch_over_ranks(
    backend: Backend,
    x: Float[Tensor, "tokens dim"],
    gate_up: Float[Tensor, "share dim twice"],
    down: Float[Tensor, "share hidden dim"],
    routing: Routing,
    group: dist.ProcessGroup,
) -> Float[Tensor, "tokens dim"]:
    """`dispatch` where this rank holds a share of the experts: rows go to the rank of their expert and come back.

    gate_up, down  the experts rank * share, ..., (rank + 1) * share - 1
    routing        of this rank's tokens, over the experts of all ranks

    The gradients of this rank's experts are those of the tokens of all ranks. The host waits for the numbers of rows,
    which are exchanged first. As in GShard (Lepikhin et al. 2020, arXiv:2006.16668, section 3.2), but rows are neither
    padded nor dropped.
    """
    ranks, share, k = group.size(), len(down), routing.experts.shape[1]
    flat = routing.experts.flatten()
    if routing.kept is not None:  # the others are sorted behind the last expert's rows
        flat = flat.masked_fill(~routing.kept.flatten(), ranks * share)
    counts = count_assignments(flat, ranks * share + 1)[:-1].view(ranks, share)
    arriving = torch.empty_like(counts)  # by the rank that they come from, and expert
    dist.all_to_all_single(arriving, counts, group=group)
    sent, received = counts.sum(1).tolist(), arriving.sum(1).tolist()
    order = flat.argsort(stable=True)[: sum(sent)]
    rows = exchange(to_autocast(x).index_select(0, order // k), received, sent, group)
    expert = torch.arange(share, device=x.device).repeat(ranks).repeat_interleave(arriving.flatten()).unsqueeze(-1)
    weight = rows.new_ones(expert.shape)
    y = exchange(dispatch(backend, rows, gate_up, down, Routing(weight, expert, weight)), sent, received, group)
    weights = routing.weights.flatten().index_select(0, order).to(y.dtype)
    return y.new_zeros(x.shape).index_add(0, order // k, y * weights.unsqueeze(-1))


def exchange(
    rows: Float[Tensor, "outgoing dim"], received: list[int], sent: list[int], group: dist.ProcessGroup
) -> Float[Tensor, "incoming dim"]:
    """Sends the first sent[0] rows to rank 0, the next to rank 1, ...; returns those from rank 0, 1, ...

    The gradients travel back the same way.
    """
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    return all_to_all_single_autograd(rows, received, sent, group)


def dispatch(
    backend: Backend,
    x: Float[Tensor, "tokens dim"],
    gate_up: Float[Tensor, "experts dim twice"],
    down: Float[Tensor, "experts hidden dim"],
    routing: Routing,
) -> Float[Tensor, "tokens dim"]:
    """sum_i w_i expert_i(x) over the assignments that are kept, in the precision of autocast."""
    x = to_autocast(x)
    gate_up, down = gate_up.to(x.dtype), down.to(x.dtype)
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
    device = rows.device.type if torch.compiler.is_compiling() else PLANNED.get() or rows.device.type
    if rows.dtype == torch.bfloat16 and device == "cpu":
        return padded_mm(rows, weight, counts)
    if _grouped_is_legal(rows, weight):
        return F.grouped_mm(rows, weight, offs=counts.cumsum(0, dtype=torch.int32))
    return looped_mm(rows, weight, counts)


def looped_mm(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "experts in out"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "rows out"]:
    """As `grouped_mm`, with one product per expert. Rows after those of the last expert become zeros."""
    expert_sizes = counts.cpu().tolist()
    *parts, rest = rows.split([*expert_sizes, len(rows) - sum(expert_sizes)])
    done = [part @ matrix for part, matrix in zip(parts, weight.unbind(0), strict=True)]
    return torch.cat([*done, rest.new_zeros(len(rest), weight.shape[2])])


@torch.compiler.disable()  # a compiled graph would have oneDNN generate a kernel for each number of rows
def padded_mm(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "experts in out"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "rows out"]:
    """As `grouped_mm`, for bf16 on a CPU."""
    return PaddedProducts.apply(rows, weight, counts.tolist())


class PaddedProducts(torch.autograd.Function):
    """As `looped_mm`, for bf16 on a CPU: rows of zeros fill each expert's up to one of few numbers.

    The library of these products (oneDNN) generates a kernel for each number of rows, which takes up to 20 times as
    long as the product, and experts get other numbers in every step.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        """The products; `sizes` are the numbers of rows of the experts, and rows beyond them become 0."""
        ctx.save_for_backward(rows, weight)
        ctx.sizes = [*sizes, len(rows) - sum(sizes)]
        result = rows.new_zeros(len(rows), weight.shape[2])
        for part, matrix, out in zip(rows.split(ctx.sizes), weight, result.split(ctx.sizes), strict=False):
            out.copy_((fill_rows(part) @ matrix)[: len(out)])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of the rows and of the matrices."""
        rows, weight = ctx.saved_tensors
        of_rows, of_weight = torch.zeros_like(rows), torch.empty_like(weight)
        parts = zip(rows.split(ctx.sizes), grad.split(ctx.sizes), of_rows.split(ctx.sizes), strict=True)
        for matrix, out, (part, gradient, of_part) in zip(weight, of_weight, parts, strict=False):
            gradient = fill_rows(gradient)
            of_part.copy_((gradient @ matrix.T)[: len(of_part)])
            torch.mm(fill_rows(part).T, gradient, out=out)
        return of_rows, of_weight, None


def fill_rows(rows: Float[Tensor, "rows in"]) -> Float[Tensor, "filled in"]:
    """The rows, and rows of zeros up to a multiple of 32, or of about a thirtieth of a larger number."""
    return F.pad(rows, (0, 0, 0, -len(rows) % 2 ** max(5, len(rows).bit_length() - 5)))


def _grouped_is_legal(rows: Tensor, weight: Tensor) -> bool:
    """Rows of either operand must be multiples of 16 bytes; fp64 has no kernel, and fp32 none under torch.compile.

    A GPU has a kernel for bf16 alone, from Hopper on: PyTorch's substitute waits for the device six times a layer, and
    the loop twice.
    """
    if rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    if rows.is_cuda and (rows.dtype != torch.bfloat16 or torch.cuda.get_device_capability(rows.device) < (9, 0)):
        return False
    aligned = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])
    return aligned and (rows.dtype == torch.bfloat16 or not torch.compiler.is_compiling())
