"""Attention weights of every head, computed explicitly beside the fused kernel, and what they are summarized by.

Hooks read the inputs of each layer during an ordinary forward pass, so training and its kernels are untouched. The
explicit output of each layer is compared with that of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.evals import hooked
from kleiber.nn import FullAttention
from kleiber.types import Batch, Model

MATRIX_ENTRIES = 1 << 24  # attention weights in memory at once
TOLERANCE = 1e-3  # difference of the explicit output from the kernel's, relative to the largest entry


class HeadWeights(NamedTuple):
    """Attention of one layer on some rows.

    logits   scale q.k: what the softmax is taken of; in fp32
    weights  softmax of the logits over the allowed keys
    allowed  whether a query may attend to a key
    """

    logits: Float[Tensor, "batch heads time keys"]
    weights: Float[Tensor, "batch heads time keys"]
    allowed: Bool[Tensor, "#batch 1 time keys"]


Reader = Callable[[int, slice, HeadWeights], None]  # layer, rows of the batch, their attention


def explicit_attention(
    attention: FullAttention,
    x: Float[Tensor, "batch time dim"],
    mask: Bool[Tensor, "#batch 1 time keys"] | None = None,
    first_values: list[Tensor] | None = None,
) -> tuple[HeadWeights, Float[Tensor, "batch time dim"]]:
    """Logits and weights of every head in fp32, and the output of the layer computed from them.

    x, mask, first_values  arguments of `attention.forward`
    """
    batch, time, _ = x.shape
    q, k, v = (z.float() for z in attention.project(x, 0, first_values))
    logits = attention.logits(q, k, torch.arange(time, device=x.device))
    v = v.repeat_interleave(attention.num_heads // attention.num_kv_heads, 1)
    if mask is None:
        mask = torch.ones(1, 1, time, time, dtype=torch.bool, device=x.device)
        mask = mask.tril() if attention.causal else mask
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    mixed = (weights @ v).to(x.dtype).transpose(1, 2).reshape(batch, time, -1)
    return HeadWeights(logits, weights, mask), attention.out(mixed)


def attention_layers(model: Model) -> dict[int, FullAttention]:
    """The attention of each block that has queries and keys, by the number of the block."""
    return {
        number: part
        for number, block in enumerate(model.blocks)
        for part in block.children()
        if isinstance(part, FullAttention)
    }


@torch.compiler.set_stance("force_eager")  # the hooks are not part of a compiled graph
@torch.no_grad()
def read_attention(model: Model, batch: Batch, reader: Reader) -> None:
    """Runs the model on `batch` and passes the attention of every layer to `reader`, a few rows at a time.

    Raises ValueError where the explicit output of a layer is not that of its forward pass, as it may be for a class
    derived from FullAttention.
    """

    def read(layer: int, module: nn.Module, inputs: Sequence[Tensor | list[Tensor] | None], output: Tensor) -> None:
        """Passes the explicit attention of a layer to `reader`, once it agrees with the output of its forward pass."""
        assert isinstance(module, FullAttention)
        x, mask = inputs[:2]
        assert isinstance(x, Tensor) and (mask is None or isinstance(mask, Tensor))
        stored = inputs[3] if len(inputs) > 3 else None
        step = max(1, MATRIX_ENTRIES // (module.num_heads * x.shape[1] ** 2))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            first_values = [values[rows] for values in stored] if isinstance(stored, list) else None
            heads, explicit = explicit_attention(module, x[rows], _rows(mask, rows), first_values)
            error = float((explicit - output[rows]).abs().max() / output.abs().max().clamp(min=1e-12))
            if error > (TOLERANCE if x.dtype == torch.float32 else 0.05):
                raise ValueError(
                    f"the attention of layer {layer}, {type(module).__name__}, does not compute softmax(scale q.k) v: "
                    f"its output differs by {error:.2g} of the largest entry, so its weights cannot be read"
                )
            reader(layer, rows, heads)

    handles = [module.register_forward_hook(partial(read, layer)) for layer, module in attention_layers(model).items()]
    with hooked(handles):
        model(batch)


def _rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask[rows] if mask is not None and len(mask) > 1 else mask


def first_tokens(batch: Batch) -> Int[Tensor, "batch time"]:
    """For each token, the position of the first real token of its segment."""
    time = batch.tokens.shape[1]
    same = torch.ones(len(batch), time, time, dtype=torch.bool, device=batch.tokens.device)
    if batch.segments is not None:
        same = batch.segments[:, :, None] == batch.segments[:, None, :]
    if batch.real is not None:
        same = same & batch.real[:, None, :]
    return same.int().argmax(2)


def head_metrics(
    heads: HeadWeights, first: Int[Tensor, "batch time"], real: Bool[Tensor, "batch time"] | None = None
) -> dict[str, Float[Tensor, "batch heads"]]:
    """Summaries of the attention of each row and head, means over its real queries; NaN where there is no such query.

    entropy             of the weights, in nats
    normalized_entropy  entropy / log n, where n keys are allowed, over queries with n >= 2; 0 is attention to one token
    max_logit           largest |scale q.k| of an allowed pair: a maximum, not a mean. Above 50, training may diverge
                        (Dehghani et al. 2023, arXiv:2302.05442)
    sink                weight of the first token of the segment, over the later queries that may attend to it; large
                        for attention sinks (Xiao et al. 2023, arXiv:2309.17453)
    distance            mean number of tokens between query and key
    previous_token      weight of the token before the query

    first  see `first_tokens`
    real   False for queries that are padding
    """
    logits, weights, allowed = heads
    time = weights.shape[2]
    position = torch.arange(time, device=weights.device)
    real = torch.ones_like(first, dtype=torch.bool) if real is None else real
    allowed = allowed.expand(len(weights), -1, -1, -1)[:, 0] & real[:, :, None]
    keys = allowed.sum(2)
    entropy = torch.special.entr(weights).sum(3)
    distance = (weights * (position[:, None] - position).abs()).sum(3)
    on_first = weights.gather(3, first[:, None, :, None].expand(-1, weights.shape[1], -1, -1))[..., 0]
    reads_first = allowed.gather(2, first[:, :, None])[..., 0] & (position != first)
    previous = weights.diagonal(-1, 2, 3)
    reads_previous = allowed.diagonal(-1, 1, 2)
    return {
        "entropy": _mean(entropy, real),
        "normalized_entropy": _mean(entropy / keys.clamp(min=2).log()[:, None], keys >= 2),
        "max_logit": logits.abs().masked_fill(~allowed[:, None], 0.0).amax((2, 3)),
        "sink": _mean(on_first, reads_first),
        "distance": _mean(distance, real),
        "previous_token": _mean(previous, reads_previous),
    }


def _mean(
    values: Float[Tensor, "batch heads queries"], counted: Bool[Tensor, "batch queries"]
) -> Float[Tensor, "batch heads"]:
    """Means over the counted queries; NaN where none is."""
    weights = counted[:, None].to(values.dtype)
    return (values.nan_to_num() * weights).sum(2) / weights.sum(2)


def induction_scores(weights: Float[Tensor, "batch heads time keys"], period: int) -> Float[Tensor, "batch heads"]:
    """Mean weight that a token of the repetition gives to the token after its first occurrence.

    The rows are `period` random tokens, twice. This is the prefix-matching score of Olsson et al. 2022,
    arXiv:2209.11895. Heads that copy what followed last time have a score near 1; uniform attention has one of about
    1 / time.
    """
    return weights[:, :, period:].diagonal(1, 2, 3)[..., :period].mean(2)
