"""The score of a model on a task: its objective's loss on a fixed set of samples, and what its scorer makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from kleiber.evals.perplexity import bits_per_byte, held_out_loss
from kleiber.types import Batch, HeldOut, Task


def score(
    task: Task,
    chosen: HeldOut,
    model: Any,
    batches: Iterable[Batch],
    device: torch.device,
    precision: AbstractContextManager,
    shared: bool = False,
) -> dict[str, float]:
    """Metrics of a task by name: "loss" (nats per target), "bits_per_byte" of a likelihood of text, and the scorer's.

    batches  this rank's share of `chosen`; `shared`: whether other ranks have the rest
    """
    make = getattr(task.objective, "scorer", None)
    scorer = make() if make is not None else None
    with precision:
        sums = held_out_loss(model, task.objective if scorer is None else scorer.add, batches, device)
    if shared:
        sums.reduce()
    found = {"loss": sums.means()["ce"].item()}
    if task.objective.likelihood:
        found["bits_per_byte"] = bits_per_byte(found["loss"], chosen.num_bytes / chosen.num_tokens)
    return found | (scorer.compute() if scorer is not None else {})


def main_metric(task: Task) -> tuple[str, bool]:
    """The name of the metric that stands for the task, and whether more of it is better."""
    return getattr(task.objective, "metric", ("loss", False))
