"""How much hangs on the exact weights of the router: choices that flip, and what the loss makes of it.

A perturbed router changes which experts a token meets and how they are weighed. With the old choice forced, only the
second happens; so the loss change free less the one frozen is what the flips cost: the gating sensitivity.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kleiber.evals.routing.specialization import flipped
from kleiber.evals.routing.trace import Record, forced, loss_under, mixtures, read
from kleiber.evals.subject import Subject

NOISE = (1e-3, 3e-3, 1e-2, 3e-2)
DRAWS = 3

Perturb = Callable[[Tensor], Tensor]


def sensitivity(subject: Subject, record: Record, tokens: int) -> dict[str, Any] | None:
    """For relative noise W (1 + eps N(0, 1)) on the router's weights, and for their rounding to bf16 and int8:

    flips   share of tokens with another set of experts, per layer and on average; later layers inherit what earlier
            ones changed
    free, frozen   change of the loss in nats per token, with routing free and with the old choice forced
    gating  free - frozen

    Means over draws, each draw in "draws". None for a router that has no weights or no choice of its own per token.
    """
    if not all(hasattr(moe.router, "route") for moe in mixtures(subject.model).values()):
        return None
    frozen = loss_under(subject, subject.model, tokens, forced(record))
    assert abs(frozen - record.loss) < 1e-5 * max(1.0, record.loss), "forcing a model's own choice changes nothing"
    noise = {}
    for eps in NOISE:
        draws = [once(subject, record, tokens, relative(eps, seed)) for seed in range(DRAWS)]
        noise[f"{eps:g}"] = {**average(draws), "draws": draws}
    rounding = {
        name: once(subject, record, tokens, rounded) for name, rounded in (("bf16", to_bf16), ("int8", to_int8))
    }
    return {"noise": noise, "rounding": rounding}


def once(subject: Subject, record: Record, tokens: int, perturb: Perturb) -> dict[str, Any]:
    with perturbed(subject.model, perturb):
        free = read(subject, subject.model, tokens)
        frozen = loss_under(subject, subject.model, tokens, forced(record))
    layers = {layer: flipped(record.experts[layer], free.experts[layer]) for layer in record.experts}
    change = {"free": free.loss - record.loss, "frozen": frozen - record.loss}
    return {
        "flips": statistics.fmean(layers.values()),
        **change,
        "gating": change["free"] - change["frozen"],
        "flips_by_layer": layers,
    }


def average(draws: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.fmean(draw[name] for draw in draws) for name in ("flips", "free", "frozen", "gating")}


@contextmanager
def perturbed(model: Any, perturb: Perturb) -> Iterator[None]:
    """While it holds, every router has other weights."""
    weights = [moe.router.linear.weight for moe in mixtures(model).values()]
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(perturb(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def relative(eps: float, seed: int) -> Perturb:
    generator = torch.Generator().manual_seed(seed)

    def perturb(weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        return weight * (1 + eps * noise)

    return perturb


def to_bf16(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).to(weight.dtype)


def to_int8(weight: Tensor) -> Tensor:
    """Symmetric, one scale a row: an expert's weights on 255 levels."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale
