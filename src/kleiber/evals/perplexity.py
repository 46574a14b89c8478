"""Held-out loss in nats per token, and in bits per byte where the objective is a likelihood of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from kleiber.sums import Sums
from kleiber.types import Batch, Loss


@torch.compiler.set_stance("force_eager")  # only training is compiled: a graph for each odd batch would cost more
@torch.no_grad()
def held_out_loss(
    model: Any, objective: Callable[[Any, Batch], Loss], batches: Iterable[Batch], device: torch.device
) -> Sums:
    """Sums of the objective over `batches` on this rank, without dropout; the caller reduces over ranks."""
    training = model.training
    model.eval()
    sums = Sums()
    try:
        for batch in batches:
            sums.add(objective(model, batch.to(device)))
    finally:
        model.train(training)
    return sums


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """nats / token over (ln 2 bytes / token): comparable across tokenizers."""
    return nats_per_token / (math.log(2) * bytes_per_token)
