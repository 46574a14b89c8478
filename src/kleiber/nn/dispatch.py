"""Three ways to send tokens through their experts and add up what comes back. They agree; they differ in speed.

    grouped  sort by expert, one grouped product; where its kernel does not take the shapes, `loop`
    loop     sort by expert, one product an expert
    dense    every expert on every token: the slow reference

No token is padded, and what an assignment that is not kept would have cost is not computed. Expert parallelism across
devices is not here: every rank holds all experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.nn.mlp import gated
from kleiber.types.batch import Routing

Backend = Literal["grouped", "loop", "dense"]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def dispatch(
    backend: Backend,
    x: Float[Tensor, "tokens dim"],
    gate_up: Float[Tensor, "experts dim twice"],
    down: Float[Tensor, "experts hidden dim"],
    routing: Routing,
) -> Float[Tensor, "tokens dim"]:
    """sum_i w_i expert_i(x) over the assignments that are kept, in the dtype of autocast."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    if backend == "dense":
        return every_expert(x, gate_up, down, routing)
    product = grouped_mm if backend == "grouped" else looped_mm
    if routing.kept is None:
        return all_kept(product, x, gate_up, down, routing)
    # A GPU would have to wait for the number of rows that are kept.
    return some_kept(product, x, gate_up, down, routing, cut=x.device.type == "cpu")


def all_kept(product: Product, x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """Every token has k rows: permutations there and back, without atomic or serial adds."""
    flat, k = routing.experts.flatten(), routing.experts.shape[1]
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = counted(flat, len(down))
    hidden = gated(product(Spread.apply(x, order, inverse, k), gate_up, counts))
    y = Spread.apply(product(hidden, down, counts), inverse, order, 1).unflatten(0, (-1, k))
    return (y * routing.weights.to(x.dtype).unsqueeze(-1)).sum(1)


def some_kept(product: Product, x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing, cut: bool = True) -> Tensor:
    """Assignments that are not kept are sorted behind the last expert, where no product reaches them.

    cut  leave their rows out, whose number then has to be known; else they stay, undefined, and zeros take their place
    """
    assert routing.kept is not None
    experts, k = len(down), routing.experts.shape[1]
    flat = routing.experts.flatten().masked_fill(~routing.kept.flatten(), experts)
    order, counts = flat.argsort(stable=True), counted(flat, experts + 1)[:-1]
    order = order[: int(counts.sum())] if cut else order
    unserved = None if cut else (torch.arange(len(order), device=x.device) >= counts.sum()).unsqueeze(-1)
    rows = blank(x.index_select(0, order // k), unserved)
    y = blank(product(gated(product(rows, gate_up, counts)), down, counts), unserved)
    weights = routing.weights.flatten().index_select(0, order).to(x.dtype)
    return torch.zeros_like(x).index_add(0, order // k, y * weights.unsqueeze(-1))


def blank(rows: Tensor, where: Tensor | None) -> Tensor:
    return rows if where is None else rows.masked_fill(where, 0)


def every_expert(x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing) -> Tensor:
    """All experts on all tokens, weighted by 0 where they were not chosen."""
    weights = routing.weights if routing.kept is None else routing.weights * routing.kept
    full = weights.new_zeros(len(x), len(down)).scatter_add(1, routing.experts, weights)
    y = torch.matmul(gated(torch.matmul(x, gate_up)), down)
    return torch.einsum("te,etd->td", full.to(x.dtype), y)


def counted(flat: Int[Tensor, "assignments"], experts: int) -> Int[Tensor, "experts"]:
    counts = torch.zeros(experts, dtype=torch.int32, device=flat.device)
    return counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32))


class Spread(torch.autograd.Function):
    """rows[i] = x[order[i] // k], its gradient by the inverse permutation: gathers only, no atomic or serial adds."""

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
    """Rows of expert e, one after another, times weight[e]. Without rows its gradient is 0, not None."""
    if _grouped_is_legal(rows, weight):
        return F.grouped_mm(rows, weight, offs=counts.cumsum(0, dtype=torch.int32))
    return looped_mm(rows, weight, counts)


def looped_mm(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "experts in out"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "rows out"]:
    """The same, one product an expert. Rows behind the last expert come back as zeros."""
    sizes = counts.tolist()
    *parts, rest = rows.split([*sizes, len(rows) - sum(sizes)])
    done = [part @ matrix for part, matrix in zip(parts, weight.unbind(0), strict=True)]
    return torch.cat([*done, rest.new_zeros(len(rest), weight.shape[2])])


def _grouped_is_legal(rows: Tensor, weight: Tensor) -> bool:
    """Rows of both operands must be multiples of 16 bytes; fp64 has no kernel, and fp32 none under torch.compile."""
    if rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    aligned = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])
    return aligned and (rows.dtype == torch.bfloat16 or not torch.compiler.is_compiling())
