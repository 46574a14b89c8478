"""Attention that skips the blocks of a mask in which nothing is allowed: PyTorch's FlexAttention.

A GPU trains packed, padded and prefix rows by it, because the other kernels take a mask of all pairs in memory, and
compute all of them. Dong et al. 2024, arXiv:2412.05496. The kernel is generated at the first step, which needs Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

F = TypeVar("F", bound=Callable[..., object])

# As torch.compile generates a function for each shape.
generated: Callable[[Callable[..., object]], Any] = cache(partial(torch.compile, dynamic=False))


def block_mask(
    causal: bool,
    time: int,
    device: torch.device,
    real: Tensor | None = None,
    segments: Tensor | None = None,
    prompt: Tensor | None = None,
) -> BlockMask:
    """Which blocks of queries and keys have an allowed pair; the arguments are those of `Attention.mask`."""

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query of a row reads a key."""
        reads = query >= key if causal else query >= 0
        if prompt is not None:
            reads = reads | (prompt[batch, query] & prompt[batch, key])
        if segments is not None:
            reads = reads & (segments[batch, query] == segments[batch, key])
        if real is not None:
            reads = reads & real[batch, key]
        return reads | (query == key)

    rows = next(len(part) for part in (real, segments, prompt) if part is not None)
    return compiled(create_block_mask)(allowed, rows, None, time, time, device=device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, shared: bool) -> Tensor:
    """softmax(scale q k^T) v over the allowed pairs, for (batch, heads, time, head_dim).

    shared  whether fewer heads have keys and values than queries
    """
    return compiled(flex_attention)(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask, scale=scale, enable_gqa=shared)


def compiled(function: F) -> F:
    """A function of FlexAttention as one kernel; within a model that is compiled, part of its graph."""
    return function if torch.compiler.is_compiling() else generated(function)
