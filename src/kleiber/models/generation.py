"""Sampling of token ids from a causal model with a key-value cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.models.cache import next_logits
from kleiber.records.progress import activity
from kleiber.types.batch import Batch
from kleiber.types.model import Adjust, Model, Stop, device_of, evaluation_mode, out_of_memory

log = logging.getLogger(__name__)

ROWS = 64  # continued together
Settings = tuple[float, int | None, float | None, torch.Generator | None]  # arguments of `sample`
Draws = Float[Tensor, "batch new"]  # numbers in [0, 1), which decide the tokens in place of a generator


def generate(
    model: Model,
    prompt_ids: Int[Tensor, "batch time"],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    real: Bool[Tensor, "batch time"] | None = None,
    eos: int | None = None,
    draws: Draws | None = None,
    stop: Stop | None = None,
) -> Int[Tensor, "batch longer"]:
    """The prompts, each followed by `max_new_tokens` sampled tokens. Raises ValueError for a model that is not causal.

    When the context is full, the model continues with the last half of it as its prompt. A window that moved by one
    token would have to be computed again for every token, because cached keys depend on the tokens that leave it.
    Padding fills no context, so a greedy continuation does not depend on the other prompts.

    temperature  0 takes the most probable token
    top_k  keeps the k most probable tokens; None keeps all
    top_p  keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2019, arXiv:1904.09751)
    real   False on padding, which is on the left of shorter prompts (see `left_padded`)
    eos    a row that has sampled this token repeats it; generation ends when all rows have sampled it
    draws  a number in [0, 1) for each new token, which decides it in place of `generator`; a row then does not depend
           on the other rows of its batch
    stop   whether a row ends with its new tokens so far, which `eos` then follows; it needs `eos`
    """
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    tokens = list(stream(model, prompt_ids, max_new_tokens, **options, real=real, eos=eos, draws=draws, stop=stop))
    return torch.cat([prompt_ids, *(column[:, None] for column in tokens)], 1)


def stream(
    model: Model,
    prompt_ids: Int[Tensor, "batch time"],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    real: Bool[Tensor, "batch time"] | None = None,
    eos: int | None = None,
    draws: Draws | None = None,
    adjust: Adjust | None = None,
    stop: Stop | None = None,
) -> Iterator[Int[Tensor, "batch"]]:
    """Returns the next token of each row as soon as it is sampled; other arguments and errors are those of `generate`.

    adjust  returns other logits from the last hidden states and logits of the rows, before a token is sampled
    """
    _check(model, prompt_ids, max_new_tokens, temperature, top_k, top_p)
    settings = (temperature, top_k, top_p, generator)
    return _decode(model, prompt_ids, max_new_tokens, settings, real, eos, draws, adjust, stop)


def continuations(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos: int,
    temperature: float = 0.0,
    top_p: float | None = None,
    draws: Float[np.ndarray, "batch time"] | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    stop: Stop | None = None,
    rows: int = ROWS,
    label: str = "generating text",
) -> list[list[int]]:
    """The token ids that follow each prompt, without the end-of-text token `eos` and what is behind it.

    Prompts of similar length are continued together, padded on the left, so the ids do not depend on the other prompts.
    When memory runs out, half as many are continued together. Other arguments are those of `generate`.

    beams, length_penalty  see `beam_search`, which replaces sampling if there are more beams than one
    rows   most prompts, times beams, that are continued together
    label  what the progress line shows

    Raises ValueError for beams together with sampling, and as `generate` and `beam_search` do.
    """
    if beams < 1 or (beams > 1 and temperature):
        raise ValueError(
            f"beams={beams} must be >= 1, and needs temperature=0 if it is larger; temperature={temperature}"
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    written: list[list[int]] = [[] for _ in prompts]
    together, start = max(1, rows // beams), 0
    with activity(label, len(prompts), "prompts") as work:
        while start < len(order):
            batch = order[start : start + together]
            chosen = [prompts[i] for i in batch]
            try:
                if beams > 1:
                    from kleiber.models.beam_search import beam_search

                    tails = beam_search(
                        model, *_padded_on(model, chosen), max_new_tokens, eos, beams, length_penalty, stop
                    )
                else:
                    of_batch = None if draws is None else draws[batch]
                    tails = _sampled(model, chosen, max_new_tokens, eos, temperature, top_p, of_batch, stop)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or together == 1:
                    raise
                together = max(1, min(together, len(batch)) // 2)
                log.warning("out of memory with %d prompts: generating text for %d at a time", len(batch), together)
                continue
            for i, tail in zip(batch, tails, strict=True):
                written[i] = tail
            start += len(batch)
            work.done = start
    return written


def _padded_on(
    model: Model, prompts: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"] | None]:
    """The tensors of `left_padded` on the device of the model; None in place of the second without padding."""
    device = device_of(model)
    ids, real = left_padded(prompts)
    return ids.to(device), None if bool(real.all()) else real.to(device)


def _sampled(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos: int,
    temperature: float,
    top_p: float | None,
    draws: Float[np.ndarray, "batch time"] | None,
    stop: Stop | None,
) -> list[list[int]]:
    """`continuations` of prompts that are continued together."""
    ids, real = _padded_on(model, prompts)
    chosen = None if draws is None else torch.from_numpy(draws).to(ids.device)
    rows = generate(model, ids, max_new_tokens, temperature, top_p=top_p, real=real, eos=eos, draws=chosen, stop=stop)
    tails = rows[:, ids.shape[1] :].tolist()
    return [tail[: tail.index(eos)] if eos in tail else tail for tail in tails]


def _decode(
    model: Model,
    prompt_ids: Tensor,
    max_new_tokens: int,
    settings: Settings,
    real: Tensor | None,
    eos: int | None,
    draws: Tensor | None,
    adjust: Adjust | None,
    stop: Stop | None,
) -> Iterator[Tensor]:
    context, start = model.context, prompt_ids.shape[1]
    total, rows = start + max_new_tokens, len(prompt_ids)
    tokens = torch.cat([prompt_ids, prompt_ids.new_zeros(rows, max_new_tokens)], 1)
    padding = [0] * rows if real is None else (~real).sum(1).tolist()
    windows = [max(before, start - context) for before in padding]  # column at which the window of each row begins
    caches, unread = model.new_caches(min(context, total - min(windows))), slice(min(windows), start)
    done = torch.zeros(rows, dtype=torch.bool, device=prompt_ids.device)
    with evaluation_mode(model):
        for at in range(start, total):
            if at - min(windows) > context:
                # Rows whose context is not full are read again too, as they are: all share the columns of a cache.
                windows = [at - max(1, context // 2) if at - begin > context else begin for begin in windows]
                caches, unread = model.new_caches(context), slice(min(windows), at)
            batch = Batch(tokens[:, unread], real=_in_windows(windows, unread, tokens.device))
            if model.prefix and unread.start < start:
                of_prompt = torch.arange(unread.start, unread.stop, device=tokens.device) < start
                batch.prefix = batch.is_real & of_prompt
            logits = next_logits(model, batch, caches, adjust)
            token = sample(logits, *settings, draws=None if draws is None else draws[:, at - start])
            if eos is not None:
                token = torch.where(done, eos, token)
                done |= token == eos
            tokens[:, at], unread = token, slice(at, at + 1)
            if stop is not None:
                for row in (~done).nonzero().flatten().tolist():
                    done[row] = stop(tokens[row, start : at + 1].tolist())
            yield token
            if eos is not None and bool(done.all()):
                return


def _in_windows(windows: Sequence[int], columns: slice, device: torch.device) -> Bool[Tensor, "batch time"] | None:
    """Whether each column is in the window of each row; None where all are. The cache remembers those before it."""
    if columns.start >= max(windows):
        return None
    begin = torch.tensor(windows, device=device)
    return torch.arange(columns.start, columns.stop, device=device) >= begin[:, None]


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int = 0
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Prompts of unequal length as a tensor padded on the left, and which of its positions are real."""
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
    draws: Float[Tensor, "batch"] | None = None,
) -> Int[Tensor, "batch"]:
    """Samples a token per row from softmax(logits / temperature), cut to the top_k and top_p most probable tokens.

    With `draws` u in [0, 1), the token of a row is the first whose cumulative probability exceeds u.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        # A token is dropped when those before it already reach top_p; the first token never is.
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -torch.inf)
    if draws is not None:
        cumulative = logits.double().softmax(-1).cumsum(-1)
        threshold = draws.to(cumulative)[:, None] * cumulative[:, -1:]  # the sum is 1 up to rounding
        return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def _check(
    model: Model, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if not model.causal:
        raise ValueError("this model is not causal, so it cannot generate: use model=gpt or model=moe")
    if ids.shape[1] < 1:
        raise ValueError("the prompt is empty: it needs at least one token, such as the tokenizer's eos")
    for name, value in (("max_new_tokens", max_new_tokens), ("temperature", temperature)):
        if not value >= 0:
            raise ValueError(f"{name}={value} must be >= 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be >= 1, or null for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1], or be null for all")
