"""How far a model has moved from where a stage began: in its predictions, and in its weights.

The divergence needs no labels: it is Kalajdzievski's measure of forgetting (arXiv:2401.05605, section 3) less the
entropy of the start model, which training does not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kleiber.nn.divergence import kl_divergence
from kleiber.sums import Sums
from kleiber.types import Batch, Loss


@torch.no_grad()
def divergence(start: Any, model: Any, objective: Any, batches: Iterable[Batch], device: torch.device) -> Sums:
    """Sums of KL(start || model) over the targets of `batches`, as "kl"; the caller reduces over ranks.

    Raises ValueError for an objective that predicts no distribution.
    """
    if not hasattr(objective, "predictions"):
        raise ValueError(f"{type(objective).__name__} predicts no distribution whose divergence could be taken")
    training, sums = model.training, Sums()
    model.eval()
    start.eval()
    try:
        for batch in batches:
            moved = batch.to(device)
            before, after = objective.predictions(start, moved), objective.predictions(model, moved)
            total = kl_divergence(before.hidden, before.head, after.hidden, after.head, after.weights)
            sums.add(Loss(total, after.weights.sum(), {"kl": total}))
    finally:
        model.train(training)
    return sums


@torch.no_grad()
def distance(start: nn.Module, model: nn.Module) -> dict[str, float]:
    """|theta - theta_start|, and the same over |theta_start|, of the parameters that both have."""
    before, moved, size = dict(start.named_parameters()), 0.0, 0.0
    for name, parameter in model.named_parameters():
        if name in before:
            moved += (parameter - before[name]).double().square().sum().item()
            size += before[name].double().square().sum().item()
    return {"l2": moved**0.5, "relative": (moved / size) ** 0.5 if size else float("nan")}
