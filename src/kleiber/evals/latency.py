"""Speed of a causal model in prefill and decoding, and the memory that it needs.

Random prompts are continued greedily, and every step is timed: no tokenizer and no sampling take part. Results hold for
the machine on which they were measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from kleiber.evals.evaluation import Evaluation, Results, Score, Subject
from kleiber.types import Count
from kleiber.types.batch import Batch
from kleiber.types.model import DecodingCache, Model, device_of, evaluation_mode
from kleiber.types.score import Metric

Step = Callable[[Tensor], Tensor]  # token ids (batch, time) -> logits of the last position (batch, vocab)

METRICS = {
    "prefill_tokens_per_s/{rows}": Metric("speed of prefill, batch size {rows},", "higher", "tokens per second"),
    "decode_tokens_per_s/{rows}": Metric("speed of decoding, batch size {rows},", "higher", "tokens per second"),
    "decode_p50_ms/{rows}": Metric("median time of a decoding step, batch size {rows},", "lower", "ms"),
    "decode_p95_ms/{rows}": Metric("95th percentile of the time of a decoding step, batch size {rows},", "lower", "ms"),
    "memory_bytes/{rows}": Metric("memory of weights and cache, batch size {rows},", "lower", "bytes"),
}


class Latency(Evaluation):
    """Speed of generation, with prompts and continuations of the `lengths` for the model's context.

    batches  numbers of rows; each is measured separately
    """

    causal = True
    metrics = METRICS
    data_labels: ClassVar[Mapping[str, str]] = {"random": "random tokens"}
    reads_data = False

    def __init__(self, batches: Annotated[Sequence[Count], MinLen(1)] = (1, 8, 64)) -> None:
        self.batches = batches

    def check(self, model: Model) -> None:
        """Raises ValueError for a context that is too short."""
        lengths(model)

    def evaluate(self, subject: Subject) -> Results:
        """Tokens per second, milliseconds per decode step and memory in bytes, by the names of `latency`."""
        prompt, new = lengths(subject.model)
        measured = latency(subject.model, self.batches, prompt, new)
        return Results({"random": {name: Score(value) for name, value in measured.items()}})


def lengths(model: Model) -> tuple[int, int]:
    """Tokens of the prompt and of the continuation: half of the context each, at most 128 and 64.

    Raises ValueError for a context of fewer than 4 tokens.
    """
    half = model.context // 2
    if half < 2:
        raise ValueError(f"model.context={model.context} must be >= 4 to measure latency")
    return min(128, half), min(64, half)


@torch.compiler.set_stance("force_eager")  # a compiled model would be compiled again for every length
def latency(
    model: Model, batches: Sequence[int] = (1, 8, 64), prompt: int = 128, new: int = 64, repeats: int = 3
) -> dict[str, float]:
    """Speed and memory at each number of rows in `batches`, by `<name>/<rows>`.

    prefill_tokens_per_s          prompt tokens per second, the median of `repeats`
    decode_tokens_per_s           generated tokens per second over all decode steps
    decode_p50_ms, decode_p95_ms  percentiles of the time of a step, which adds one token to each row
    memory_bytes                  bytes of the weights and of a full cache

    Raises ValueError where prompt and new tokens exceed the context, and for a bidirectional model.
    """
    if not model.causal:
        raise ValueError("the latency of decoding needs a causal model, such as model=gpt; this model is bidirectional")
    if prompt + new > model.context:
        raise ValueError(f"prompt={prompt} and new={new} tokens must fit in model.context={model.context}")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    device = device_of(model)
    cache: list[DecodingCache] = []  # the cache in use; a list, because each start of a decoder replaces it

    def start() -> Step:
        cache[:] = [model.new_caches(prompt + new)]
        return lambda ids: model.head(model(Batch(ids), cache[0]).hidden[:, -1])

    results: dict[str, float] = {}
    with evaluation_mode(model):
        for rows in batches:
            times = measure(start, model.vocab_size, rows, prompt, new, repeats, device)
            results |= {f"{name}/{rows}": value for name, value in times.items()}
            results[f"memory_bytes/{rows}"] = float(weights + cache_bytes(cache[0]))
    return results


@torch.inference_mode()
def measure(
    start: Callable[[], Step], vocab_size: int, rows: int, prompt: int, new: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Speed of any decoder, by the names in `latency`. The first of `repeats` + 1 rounds is a warm-up.

    start  returns a decoder with an empty cache, which reads the tokens that it has not read yet
    """
    prefills, steps = [], []
    generator = torch.Generator().manual_seed(0)
    for repeat in range(repeats + 1):
        step = start()
        ids = torch.randint(vocab_size, (rows, prompt), generator=generator).to(device)
        times = []
        for _ in range(new):
            began = time.perf_counter()
            ids = step(ids).argmax(-1, keepdim=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        if repeat:
            prefills.append(times[0])
            steps += times[1:]
    prefill, ordered = sorted(prefills)[len(prefills) // 2], sorted(steps)
    return {
        "prefill_tokens_per_s": rows * prompt / prefill,
        "decode_tokens_per_s": rows * len(steps) / sum(steps),
        "decode_p50_ms": 1e3 * ordered[len(ordered) // 2],
        "decode_p95_ms": 1e3 * ordered[int(0.95 * (len(ordered) - 1))],
    }


def cache_bytes(cache: DecodingCache) -> int:
    """Size in bytes of the cached keys and values of all layers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in cache.tensors())
