"""Activations that the backward pass computes again: trainer.checkpoint_activations, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from kleiber.types.batch import Batch
from kleiber.types.model import Model, device_of

PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
Contexts = tuple[AbstractContextManager, AbstractContextManager]  # of the forward pass and of its repetition


def checkpoint_activations(model: Model, keep_products: bool = False) -> None:
    """Makes the backward pass recompute the activations inside every block.

    keep_products  keeps the results of matrix products and of attention, so that only the rest is recomputed
    """
    contexts = partial(create_selective_checkpoint_contexts, PRODUCTS) if keep_products else noop_context_fn
    for block in model.blocks:
        block.forward = partial(_recomputed, block.forward, contexts)


def _recomputed(
    forward: Callable[..., object], contexts: Callable[[], Contexts], *arguments: object, **named: Any
) -> object:
    if not torch.is_grad_enabled():  # there is no backward pass, and a key-value cache must not grow twice
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **named)


class Products(TorchDispatchMode):
    """Adds up the bytes of the results of matrix products and of attention."""

    bytes = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        if function in PRODUCTS:
            self.bytes += sum(value.nbytes for value in tree_leaves(result) if isinstance(value, Tensor))
        return result


@torch.no_grad()
def product_bytes(model: Model, context: int) -> int:
    """Bytes that trainer.checkpoint_activations=selective keeps of a row, besides the inputs of blocks."""
    with Products() as products:
        model(Batch(torch.zeros(1, context, dtype=torch.long, device=device_of(model))))
    return products.bytes
