"""Whether experts are redundant: how alike their outputs are on the same tokens, and what each one's removal costs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kleiber.evals.routing.record import Record, loss_under, mixtures, without
from kleiber.evals.subject import Subject
from kleiber.nn.mlp import gated

SAMPLE = 512  # tokens whose every expert is computed


def redundancy(subject: Subject, record: Record, tokens: int) -> dict[str, Any]:
    """Per layer:

    similarity  cosine between the outputs of experts i and j on the same tokens, all chosen or not, averaged
    alike       the mean of it over pairs
    removal     loss change in nats per token when an expert is out of the question, and its tokens go to the next best;
                null where a token needs all experts, or where experts are not chosen by score
    """
    inputs = read_inputs(subject, tokens)
    similar = {layer: similarity(moe, inputs[layer]) for layer, moe in mixtures(subject.model).items()}
    return {
        "similarity": {layer: matrix.tolist() for layer, matrix in similar.items()},
        "alike": {layer: off_diagonal(matrix) for layer, matrix in similar.items()},
        "removal": {layer: removal(subject, record, tokens, layer) for layer in record.experts},
    }


@torch.no_grad()
def read_inputs(subject: Subject, tokens: int) -> dict[int, Tensor]:
    """What the experts of each layer read at the first tokens of every domain."""
    share = max(1, SAMPLE // len(subject.domains))
    seen: dict[int, list[Tensor]] = {layer: [] for layer in mixtures(subject.model)}
    handles = [
        moe.experts.register_forward_pre_hook(lambda _, args, layer=layer: seen[layer].append(args[0][:share]))
        for layer, moe in mixtures(subject.model).items()
    ]
    try:
        for domain in subject.domains:
            subject.objective(subject.model, next(iter(subject.batches(domain, tokens))))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(parts) for layer, parts in seen.items()}


@torch.no_grad()
def similarity(moe: Any, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "experts experts"]:
    y = torch.matmul(gated(torch.matmul(x, moe.experts.gate_up)), moe.experts.down)
    y = torch.nn.functional.normalize(y, dim=-1)
    return torch.einsum("itd,jtd->ij", y, y).cpu() / len(x)


def off_diagonal(matrix: Tensor) -> float:
    n = len(matrix)
    return float((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)))


def removal(subject: Subject, record: Record, tokens: int, layer: int) -> list[float] | None:
    moe = mixtures(subject.model)[layer]
    if not hasattr(moe.router, "route") or moe.k == moe.num_experts:
        return None
    return [
        loss_under(subject, subject.model, tokens, without(layer, expert)) - record.loss
        for expert in range(moe.num_experts)
    ]
