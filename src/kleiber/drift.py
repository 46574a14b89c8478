"""How far a finished stage has moved its model from where it began: in its weights, and in what it predicts of earlier
text. It needs the start's weights again, and so is asked once, when the stage is over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kleiber.data.sampler import evaluation_batches
from kleiber.evals.distance import distance, divergence
from kleiber.score import Place
from kleiber.types import Task


def drift(start: Any, model: Any, tasks: Sequence[Task], tokens: int, rows: int, place: Place) -> dict[str, float]:
    """drift/weights, |theta - theta_start| / |theta_start|, and drift/<task>/kl of the earlier tasks that are
    likelihoods of outcomes: KL(start || model) in nats per target, on the first `tokens` targets."""
    found = {"drift/weights": distance(start, model)["relative"]}
    device = next(model.parameters()).device
    for task in tasks:
        if not hasattr(task.objective, "predictions"):
            continue
        chosen = task.held_out.first(tokens)
        rank, world = (place.rank, place.world_size) if len(chosen) >= place.world_size else (0, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=place.autocast):
            batches = evaluation_batches(chosen, rows, None, rank, world)
            sums = divergence(start, model, task.objective, batches, device)
        if world > 1:
            sums.reduce()
        found[f"drift/{task.name}/kl"] = sums.means()["kl"].item()
    return found


def merged(model: Any, merge: Callable[[Any], None] | None) -> Any:
    """The model itself, or a copy whose adapter is merged into the weights, which then have their plain names."""
    if merge is None:
        return model
    plain = copy.deepcopy(model)
    merge(plain)
    return plain
