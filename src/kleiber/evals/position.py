"""Held-out loss against the position of the target in its row: what context is worth, one number a distance.

It scores a causal model's next-token loss, whatever the model was trained on. Positions without a target have no
number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from kleiber.nn.loss import log_probs, target_weights
from kleiber.types import Batch


@torch.no_grad()
def loss_by_position(model: Any, batches: Iterable[Batch], device: torch.device) -> tuple[list[float], list[float]]:
    """Sums of -log p(x_t | x_<t) and of weights by t (target t has t tokens before it), over all batches, in nats."""
    training = model.training
    model.eval()
    losses, counts = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    try:
        for batch in batches:
            batch = batch.to(device)
            read = batch.map(lambda t: t[:, :-1] if t.dim() == 2 else t)
            targets = batch.tokens[:, 1:]
            found = -log_probs(model(read).hidden, model.head, targets).double().cpu()
            told = target_weights(batch)
            weights = torch.ones_like(found) if told is None else told.double().cpu()
            if len(losses) < found.shape[1]:
                more = torch.zeros(found.shape[1] - len(losses), dtype=torch.float64)
                losses, counts = torch.cat([losses, more]), torch.cat([counts, more])
            losses += (found * weights).sum(0)
            counts += weights.sum(0)
    finally:
        model.train(training)
    return losses.tolist(), counts.tolist()


def binned(losses: list[float], counts: list[float]) -> dict[int, float]:
    """Mean loss over positions 1, 2, 3-4, 5-8, ... by the last position of each bin; empty bins are left out."""
    found, start, end = {}, 0, 1
    while start < len(losses):
        weight = sum(counts[start:end])
        if weight > 0:
            found[min(end, len(losses))] = sum(losses[start:end]) / weight
        start, end = end, 2 * end
    return found
