"""Held-out loss of a model: of one domain, of all tasks of a run, and by position in the row.

Loss is in nats per token, and in bits per byte where the objective is the likelihood of a text. `scores` adds what an
objective's scorer computes. Loss by position is the next-token loss of a causal model, whatever it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from kleiber.data.batches import evaluation_batches
from kleiber.evals import Subject
from kleiber.nn.loss import log_probs, target_weights
from kleiber.types import Json
from kleiber.types.batch import Batch, Loss, Sums
from kleiber.types.contracts import HeldOut, Objective, Task
from kleiber.types.model import Model


@torch.compiler.set_stance("force_eager")  # only training is compiled: a graph for each odd batch would cost more
@torch.no_grad()
def held_out_loss(
    model: Model, objective: Callable[[Any, Batch], Loss], batches: Iterable[Batch], device: torch.device | str
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


def bytes_per_target(objective: Objective, chosen: HeldOut) -> float | None:
    """Bytes of text behind each target of held-out samples; None where loss over bytes has no meaning: for what is no
    likelihood of text, and for padded rows, of which begin tokens or prompts are no targets."""
    if not objective.likelihood or chosen.padded:
        return None
    return chosen.num_bytes / chosen.num_tokens


def evaluate(subject: Subject) -> Json:
    """For each domain: tokens, loss in nats per token and, for likelihoods of text, bits per byte."""
    found: dict[str, Any] = {}
    for domain in subject.domains:
        chosen = subject.corpus.validation[domain].first(subject.tokens)
        batches = subject.batches(domain, subject.tokens)
        sums = held_out_loss(subject.model, subject.objective, batches, subject.device)
        nats = sums.means()["ce"].item()
        found[domain] = {"tokens": chosen.num_tokens, "loss": nats}
        size = bytes_per_target(subject.objective, chosen)
        if size is not None:
            found[domain]["bits_per_byte"] = bits_per_byte(nats, size)
    return found


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
    model: Model, tasks: Sequence[Task], tokens: int | None, rows: int, place: Place, prefix: str = "val"
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


def score(model: Model, task: Task, tokens: int | None, rows: int, place: Place) -> dict[str, float]:
    """Metrics of one task: "loss" (nats per target), "bits_per_byte" of a likelihood of text, and the scorer's."""
    chosen = task.held_out.first(tokens)
    # Ranks that share a sum need a sample each; of fewer samples every rank scores all.
    rank, world = (place.rank, place.world_size) if len(chosen) >= place.world_size else (0, 1)
    device = next(model.parameters()).device
    scorer = task.objective.scorer()
    with place.precision(device):
        batches = evaluation_batches(chosen, rows, None, rank, world)
        sums = held_out_loss(model, scorer.add, batches, device)
    if world > 1:
        sums.reduce()
    found = {"loss": sums.means()["ce"].item()}
    size = bytes_per_target(task.objective, chosen)
    if size is not None:
        found["bits_per_byte"] = bits_per_byte(found["loss"], size)
    return found | scorer.compute()


@torch.no_grad()
def loss_by_position(model: Model, batches: Iterable[Batch], device: torch.device) -> tuple[list[float], list[float]]:
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
