"""Speed of a causal model in prefill and decoding, and the memory it holds.

Decodes random tokens greedily and times each step: no tokenizer and no sampling take part. A result holds for the
machine that it was measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kleiber.evals import Subject
from kleiber.types.batch import Batch
from kleiber.types.model import DecodingCache, Model

Step = Callable[[Tensor], Tensor]  # token ids (batch, time) -> logits of the last position (batch, vocab)


def evaluate(subject: Subject) -> dict[str, float]:
    """Latency of the model at half of its context: see `lengths`."""
    prompt, new = lengths(subject.model)
    return latency(subject.model, prompt=prompt, new=new)


def lengths(model: Model) -> tuple[int, int]:
    """Tokens of a prompt and new ones that fit a model: half of the context each, at most 128 and 64.

    Raises ValueError for a context that leaves no two new tokens.
    """
    half = model.context // 2
    if half < 2:
        raise ValueError(f"model.context={model.context} is too short for a prompt and a step of decoding: at least 4")
    return min(128, half), min(64, half)


@torch.compiler.set_stance("force_eager")  # a compiled model would be compiled again for every length
def latency(
    model: Model, batches: Sequence[int] = (1, 8, 64), prompt: int = 128, new: int = 64, repeats: int = 3
) -> dict[str, float]:
    """Speed at each batch size, by `<what>/<batch>`.

    prefill_tokens_per_s  tokens of prompts of `prompt` tokens, the median of `repeats`
    decode_tokens_per_s   tokens over the time of all decode steps
    decode_p50_ms, decode_p95_ms  of one step, which gives each row one token
    memory_bytes          weights and a full cache

    Raises ValueError where prompt and new tokens exceed the context, and for a bidirectional model.
    """
    if not model.causal:
        raise ValueError("a bidirectional model has no next token: latency is of causal models")
    if prompt + new > model.context:
        raise ValueError(f"prompt={prompt} and new={new} tokens exceed model.context={model.context}")
    was_training = model.training
    model.eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    device, told = next(model.parameters()).device, {}
    for rows in batches:
        made: list[Any] = []

        def start(made: list[Any] = made) -> Step:
            caches = model.new_caches(prompt + new)
            made[:] = [caches]  # no more than one at a time is held
            return lambda ids: model.head(model(Batch(ids), caches).hidden[:, -1])

        found = measure(start, model.vocab_size, rows, prompt, new, repeats, device)
        told |= {f"{name}/{rows}": value for name, value in found.items()}
        told[f"memory_bytes/{rows}"] = float(weights + cache_bytes(made[0]))
    model.train(was_training)
    return told


@torch.inference_mode()
def measure(
    start: Callable[[], Step], vocab_size: int, rows: int, prompt: int, new: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Times of any model: `start` gives a decoder with an empty cache. The first of `repeats` + 1 rounds warms up."""
    prefills, steps = [], []
    generator = torch.Generator().manual_seed(0)
    for repeat in range(repeats + 1):
        step = start()
        ids = torch.randint(vocab_size, (rows, prompt), generator=generator).to(device)
        taken = []
        for _ in range(new):
            began = time.perf_counter()
            ids = step(ids).argmax(-1, keepdim=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
        if repeat:
            prefills.append(taken[0])
            steps += taken[1:]
    prefill, ordered = sorted(prefills)[len(prefills) // 2], sorted(steps)
    return {
        "prefill_tokens_per_s": rows * prompt / prefill,
        "decode_tokens_per_s": rows * len(steps) / sum(steps),
        "decode_p50_ms": 1e3 * ordered[len(ordered) // 2],
        "decode_p95_ms": 1e3 * ordered[int(0.95 * (len(ordered) - 1))],
    }


def cache_bytes(caches: DecodingCache) -> int:
    """Bytes of the keys and values of all layers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in caches.tensors())
