"""Loss of a model on held-out data: by domain, by task of a run, and by position in the row.

Loss is in nats per target token, and in bits per byte where the objective is the likelihood of a text. `score_tasks`
adds the metrics of the objective's scorer. Loss by position is the next-token loss of a causal model, whatever
objective it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kleiber.data.batches import evaluation_batches
from kleiber.evals.evaluation import Evaluation, Results, Score, Scores, Subject
from kleiber.nn.loss import log_probs, target_weights
from kleiber.records.progress import activity
from kleiber.types.batch import Batch, Loss, Sums
from kleiber.types.contracts import HeldOut, Objective, Task
from kleiber.types.model import Model


@torch.compiler.set_stance("force_eager")  # only training is compiled: each odd batch size would need its own graph
@torch.no_grad()
def held_out_loss(
    model: Model, objective: Callable[[Model, Batch], Loss], batches: Iterable[Batch], device: torch.device | str
) -> Sums:
    """Sums of the objective over `batches` on this rank, without dropout; the caller reduces over ranks."""
    was_training = model.training
    model.eval()
    sums = Sums()
    try:
        for batch in batches:
            sums.add(objective(model, batch.to(device)))
    finally:
        model.train(was_training)
    return sums


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss in bits per byte of text, which can be compared across tokenizers."""
    return nats_per_token / (math.log(2) * bytes_per_token)


def bytes_per_target(objective: Objective, held_out: HeldOut) -> float | None:
    """Mean bytes of text per target token; None where a loss per byte has no meaning.

    It has none for objectives that are not likelihoods of a text, nor for padded samples, whose first tokens or prompts
    are not targets.
    """
    if not objective.likelihood or held_out.padded:
        return None
    return held_out.num_bytes / held_out.num_tokens


class Perplexity(Evaluation):
    """Loss in nats per target token and, for likelihoods of text, bits per byte.

    data  names or paths of data sets; null: those of the command or of the run
    """

    def __init__(self, data: Sequence[str] | None = None) -> None:
        self.data = data

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each data set: "loss" and, where it has a meaning, "bits_per_byte"."""
        scores: dict[str, Scores] = {}
        for domain in subject.domains:
            held_out, objective = subject.samples(domain, subject.tokens), subject.objective_of(domain)
            batches = subject.batches(domain, subject.tokens)
            with activity(f"scoring {domain}", len(held_out), "samples") as work:
                sums = held_out_loss(subject.model, objective, work.track(batches, len), subject.device)
            loss = sums.means()["ce"].item()
            scores[domain] = {"loss": Score(loss, n=held_out.num_tokens)}
            size = bytes_per_target(objective, held_out)
            if size is not None:
                scores[domain]["bits_per_byte"] = Score(bits_per_byte(loss, size), n=held_out.num_tokens)
        return Results(scores)


@dataclass(frozen=True)
class Runtime:
    """The ranks that score a model together, and their precision.

    rank        of this process, from 0
    world_size  number of ranks
    autocast    whether matrix products are computed in bf16
    """

    rank: int = 0
    world_size: int = 1
    autocast: bool = False

    def precision(self, device: torch.device) -> torch.autocast | nullcontext[None]:
        """Returns the context of forward passes: bf16 autocast if training uses it, else one without effect."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()

    def share(self, held_out: HeldOut) -> tuple[int, int]:
        """Rank and number of ranks among which held-out samples are divided.

        Ranks that add up a sum need at least one sample each. Of fewer samples, every rank scores all.
        """
        return (self.rank, self.world_size) if len(held_out) >= self.world_size else (0, 1)


def score_tasks(
    model: Model, tasks: Sequence[Task], tokens: int | None, rows: int, runtime: Runtime, prefix: str = "val"
) -> dict[str, float]:
    """Metrics of every task, by `<prefix>/<task>/<metric>`; the same numbers on every rank.

    tokens  target tokens to score per task, always the same ones; None for all
    rows    samples per forward pass
    """
    metrics: dict[str, float] = {}
    for task in tasks:
        scores = score_task(model, task, tokens, rows, runtime)
        metrics |= {f"{prefix}/{task.name}/{name}": value for name, value in scores.items()}
    return metrics


def score_task(model: Model, task: Task, tokens: int | None, rows: int, runtime: Runtime) -> dict[str, float]:
    """Metrics of one task: "loss" in nats per target, "bits_per_byte" of a likelihood of text, and the scorer's."""
    held_out = task.held_out.first(tokens)
    rank, world_size = runtime.share(held_out)
    device = next(model.parameters()).device
    scorer = task.objective.scorer()
    samples = -(-len(held_out) // world_size)
    with runtime.precision(device), activity(f"scoring {task.name}", samples, "samples") as work:
        batches = evaluation_batches(held_out, rows, None, rank, world_size)
        sums = held_out_loss(model, scorer.add, work.track(batches, len), device)
    if world_size > 1:
        sums.reduce()
    metrics = {"loss": sums.means()["ce"].item()}
    size = bytes_per_target(task.objective, held_out)
    if size is not None:
        metrics["bits_per_byte"] = bits_per_byte(metrics["loss"], size)
    return metrics | scorer.compute()


@torch.no_grad()
def loss_by_position(model: Model, batches: Iterable[Batch], device: torch.device) -> tuple[list[float], list[float]]:
    """Sums over all batches of -log p(x_t | x_<t) in nats, and of weights, by position t = 1, 2, ...

    A target at position t has t tokens before it in its row.
    """
    was_training = model.training
    model.eval()
    losses, counts = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    try:
        for batch in batches:
            batch = batch.to(device)
            inputs = batch.map(lambda tensor: tensor[:, :-1] if tensor.dim() == 2 else tensor)
            batch_losses = -log_probs(model(inputs).hidden, model.head, batch.tokens[:, 1:]).double().cpu()
            weights = target_weights(batch)
            weights = torch.ones_like(batch_losses) if weights is None else weights.double().cpu()
            new_positions = max(0, batch_losses.shape[1] - len(losses))
            losses, counts = (F.pad(sums, (0, new_positions)) for sums in (losses, counts))
            losses += (batch_losses * weights).sum(0)
            counts += weights.sum(0)
    finally:
        model.train(was_training)
    return losses.tolist(), counts.tolist()


def bin_by_position(losses: list[float], counts: list[float]) -> dict[int, float]:
    """Mean loss over positions 1, 2, 3-4, 5-8, ... by the last position of each bin; empty bins are left out."""
    means, start, end = {}, 0, 1
    while start < len(losses):
        weight = sum(counts[start:end])
        if weight > 0:
            means[min(end, len(losses))] = sum(losses[start:end]) / weight
        start, end = end, 2 * end
    return means
