"""The divergence between two output distributions over the whole vocabulary, a chunk of rows at a time.

Chunks are computed again in the backward pass, so two sets of logits are never held at once for more rows than a
chunk has. Gradients flow into the new distribution alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LogitsOf = Callable[[Tensor], Tensor]


def kl_divergence(
    old_hidden: Float[Tensor, "*axes old"],
    old_head: LogitsOf,
    hidden: Float[Tensor, "*axes dim"],
    head: LogitsOf,
    weights: Float[Tensor, "*axes"],
    temperature: float = 1.0,
    chunk: int = 256,
) -> Float[Tensor, ""]:
    """sum_t w_t T^2 KL(softmax(old_t / T) || softmax(new_t / T)) in nats, exactly 0 where both give the same logits.

    T^2 keeps the gradient's size as T grows: Hinton et al. 2015, arXiv:1503.02531, section 2. Rows of weight 0 are left
    out before any product.
    """
    kept = weights.flatten().nonzero().squeeze(1)
    old, new, scale = old_hidden.flatten(0, -2)[kept].detach(), hidden.flatten(0, -2)[kept], weights.flatten()[kept]

    def part(old_rows: Tensor, new_rows: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            before = (old_head(old_rows).float() / temperature).log_softmax(-1)
        after = (head(new_rows).float() / temperature).log_softmax(-1)
        return (w * (before.exp() * (before - after)).sum(-1)).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for pieces in zip(old.split(chunk), new.split(chunk), scale.split(chunk), strict=True):
        total = total + (checkpoint(part, *pieces, use_reentrant=False) if torch.is_grad_enabled() else part(*pieces))
    return total * temperature**2
