"""Sampling from a causal model with a key-value cache. It refuses bidirectional models, and knows no tokenizer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import Cache
from kleiber.types import Batch


@torch.compiler.set_stance("force_eager")  # a compiled model would be compiled again for every length
@torch.no_grad()
def generate(
    model: Transformer,
    prompt_ids: Int[Tensor, "batch time"],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch longer"]:
    """The prompts (of one length) followed by `max_new_tokens` sampled tokens each; temperature 0 is greedy.

    The model sees its last `context` tokens. When the context is full, it starts over from the last half of it: cached
    keys carry what was dropped, so a window that slid by one would have to be read anew for every token.
    top_p keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2019, arXiv:1904.09751).
    """
    _check(model, prompt_ids, max_new_tokens, temperature, top_k, top_p)
    was_training, ids = model.training, prompt_ids
    model.eval()
    caches, unread = _caches(model), prompt_ids[:, -model.context :]
    for _ in range(max_new_tokens):
        if len(caches[0]) + unread.shape[1] > model.context:
            caches, unread = _caches(model), ids[:, -max(1, model.context // 2) :]
        hidden = model(Batch(unread), caches).hidden
        logits = model.head(hidden[:, -1]).float()
        unread = sample(logits, temperature, top_k, top_p, generator)[:, None]
        ids = torch.cat([ids, unread], 1)
    model.train(was_training)
    return ids


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


def _caches(model: Transformer) -> list[Cache]:
    return [Cache() for _ in model.blocks]


def _check(
    model: Transformer, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
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
