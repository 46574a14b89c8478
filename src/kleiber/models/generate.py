"""Sampling from a causal model with a key-value cache. It refuses bidirectional models, and knows no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.nn.kv_cache import Remembered
from kleiber.types.batch import Batch


@torch.compiler.set_stance("force_eager")  # a compiled model would be compiled again for every length
def generate(
    model: Any,
    prompt_ids: Int[Tensor, "batch time"],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    real: Bool[Tensor, "batch time"] | None = None,
    eos: int | None = None,
) -> Int[Tensor, "batch longer"]:
    """The prompts followed by `max_new_tokens` sampled tokens each; temperature 0 is greedy.

    The model sees its last `context` tokens. When the context is full, it starts over from the last half of it: cached
    keys carry what was dropped, so a window that slid by one would have to be read anew for every token.
    top_p keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2019, arXiv:1904.09751).

    model  one of ours, or one of Hugging Face's (`HFModel`)
    real   False on the padding of shorter prompts, which stands on their left: see `left_padded`
    eos    a row that has sampled this token repeats it from there on, and all end when the last one has
    """
    _check(model, prompt_ids, max_new_tokens, temperature, top_k, top_p)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            ids = _decode(model, prompt_ids, max_new_tokens, (temperature, top_k, top_p, generator), real, eos)
    finally:
        model.train(was_training)
    return ids.clone()  # a tensor of inference mode could enter no gradient


def _decode(
    model: Any, ids: Tensor, max_new_tokens: int, how: tuple[Any, ...], real: Tensor | None, eos: int | None
) -> Tensor:
    context, start, total = model.context, ids.shape[1], ids.shape[1] + max_new_tokens
    made = torch.cat([ids, ids.new_zeros(len(ids), max_new_tokens)], 1)
    if real is not None:
        real = torch.cat([real, real.new_ones(len(ids), max_new_tokens)], 1)
    first = max(0, start - context)
    caches, unread = model.new_caches(min(context, total - first)), slice(first, start)
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for at in range(start, total):
        if len(caches if isinstance(caches, Remembered) else caches[0]) + unread.stop - unread.start > context:
            caches, unread = model.new_caches(context), slice(at - max(1, context // 2), at)
        # What lies behind the prompt is real, and a cache knows what was not.
        padding = None if real is None or unread.start >= start else real[:, unread]
        hidden = model(Batch(made[:, unread], real=padding), caches).hidden
        token = sample(model.head(hidden[:, -1]).float(), *how)
        if eos is not None:
            token = torch.where(done, eos, token)
            done |= token == eos
        made[:, at], unread = token, slice(at, at + 1)
        if eos is not None and bool(done.all()):
            return made[:, : at + 1]
    return made


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int = 0
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Prompts of unequal length as one tensor, and which of its positions are real."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    real = torch.tensor([[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    return torch.tensor(ids), real


def sample(
    logits: Float[Tensor, "batch vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch"]:
    """One token a row, from the softmax of logits / temperature cut to the top_k largest and the top_p likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        # A token goes when those before it already reach top_p; the first one never does.
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def _check(
    model: Any, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if not model.causal:
        raise ValueError("a bidirectional model has no next token: generate with model=gpt or model=moe")
    if ids.shape[1] < 1:
        raise ValueError("the prompt is empty: give at least one token, such as the tokenizer's eos")
    if max_new_tokens < 0 or temperature < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} and temperature={temperature} cannot be negative")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1, or null for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1], or be null for all")
