"""The score of a model on a task: its objective's loss on a fixed set of samples, and what its scorer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from kleiber.data.sampler import evaluation_batches
from kleiber.evals.perplexity import bits_per_byte, bytes_per_target, held_out_loss
from kleiber.types import Task


@dataclass(frozen=True)
class Place:
    """Where a model is scored: this rank of how many, and whether its products are in bf16."""

    rank: int = 0
    world_size: int = 1
    autocast: bool = False

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which a model is asked: that of training."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()


def scores(
    model: Any, tasks: Sequence[Task], tokens: int | None, rows: int, place: Place, prefix: str = "val"
) -> dict[str, float]:
    """Metrics of the model as it is, by `prefix/task/name`, the same on every rank.

    tokens  targets per task, always the same ones; None for all
    rows    samples per forward pass
    """
    found: dict[str, float] = {}
    for task in tasks:
        found |= {
            f"{prefix}/{task.name}/{name}": value for name, value in score(model, task, tokens, rows, place).items()
        }
    return found


def score(model: Any, task: Task, tokens: int | None, rows: int, place: Place) -> dict[str, float]:
    """Metrics of one task: "loss" (nats per target), "bits_per_byte" of a likelihood of text, and the scorer's."""
    chosen = task.held_out.first(tokens)
    # Ranks that share a sum need a sample each; of fewer samples every rank scores all.
    rank, world = (place.rank, place.world_size) if len(chosen) >= place.world_size else (0, 1)
    device = next(model.parameters()).device
    make = getattr(task.objective, "scorer", None)
    scorer = None if make is None else make()
    with place.precision(device):
        batches = evaluation_batches(chosen, rows, None, rank, world)
        sums = held_out_loss(model, task.objective if scorer is None else scorer.add, batches, device)
    if world > 1:
        sums.reduce()
    found = {"loss": sums.means()["ce"].item()}
    size = bytes_per_target(task.objective, chosen)
    if size is not None:
        found["bits_per_byte"] = bits_per_byte(found["loss"], size)
    return found | (scorer.compute() if scorer is not None else {})


def main_metric(task: Task) -> tuple[str, bool]:
    """The name of the metric that stands for the task, and whether more of it is better."""
    return getattr(task.objective, "metric", ("loss", False))
