"""When routing settled: the choices of earlier checkpoints against those of the last one, and of their neighbours.

Saturation: Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, section 5.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kleiber.evals.routing.record import Record, read
from kleiber.evals.subject import Subject


def settled(subject: Subject, last: Record, tokens: int) -> dict[str, Any]:
    """For each earlier checkpoint and layer: overlap with the last one, and churn towards the next checkpoint.

    Churn is 1 less the overlap. There is nothing to say of a run that kept one checkpoint (callbacks.checkpoints.keep).
    """
    steps, records = [], []
    for step, model in subject.earlier():
        steps.append(step)
        records.append(read(subject, model.to(subject.device), tokens))
    following = [*records[1:], last] if records else []
    return {
        "steps": steps,
        "saturation": {layer: [overlap(r.experts[layer], x) for r in records] for layer, x in last.experts.items()},
        "churn": {
            layer: [1 - overlap(r.experts[layer], n.experts[layer]) for r, n in zip(records, following, strict=True)]
            for layer in last.experts
        },
        "loss": [r.loss for r in records],
    }


def overlap(one: Tensor, two: Tensor) -> float:
    """|one n two| / k, averaged over tokens; of experts that choose, over the pairs that either took."""
    same = (one.unsqueeze(-1) == two.unsqueeze(-2)) & (one >= 0).unsqueeze(-1)
    shared = same.any(-1).sum().item()
    return 2 * shared / max(1, int((one >= 0).sum() + (two >= 0).sum()))


def flipped(one: Tensor, two: Tensor) -> float:
    """Share of tokens whose set of experts is another."""
    return (one.sort(-1).values != two.sort(-1).values).any(-1).to(torch.float64).mean().item()
