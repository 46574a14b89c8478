"""Scores of a model on the tasks of a run: the loss, and the metrics of the objective's scorer.

Loss is in nats per target token, and in bits per byte where the objective is the likelihood of a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from kleiber.config.labels import data_label
from kleiber.data.batches import evaluation_batches
from kleiber.nn.sharding import full_parameters, joint_passes, waits_for_ranks
from kleiber.records.progress import activity
from kleiber.types.batch import Batch, Loss, Sums
from kleiber.types.contracts import HeldOut, Objective, Task
from kleiber.types.model import Model, device_of, evaluation_mode
from kleiber.types.score import Metric, Score, Scores, described


@torch.compiler.set_stance("force_eager")  # only training is compiled: each odd batch size would need its own graph
@torch.no_grad()
def held_out_loss(
    model: Model, objective: Callable[[Model, Batch], Loss], batches: Iterable[Batch], device: torch.device | str
) -> Sums:
    """Sums of the objective over `batches` on this rank, without dropout; the caller reduces over ranks."""
    sums = Sums()
    with evaluation_mode(model):
        for batch in batches:
            sums.add(objective(model, batch.to(device)))
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


BITS_PER_BYTE = {"bits_per_byte": Metric("bits per byte", "lower", "bits per byte")}


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
) -> Scores:
    """Scores of every task, by `<prefix>/<task>/<metric>`; the same numbers on every rank.

    tokens  target tokens to score per task, always the same ones; None for all
    rows    samples per forward pass
    prefix  which weights are scored: "val" for the latest ones, or such as "wise/0.5", which labels name
    """
    weights = "" if prefix == "val" else f", {data_label(prefix)}"
    scores: Scores = {}
    for task in tasks:
        place = f"on {task_label(task)}{weights}"
        metrics = {**BITS_PER_BYTE, **task.objective.metrics}
        for name, score in score_task(model, task, tokens, rows, runtime).items():
            scores[f"{prefix}/{task.name}/{name}"] = described(score, metrics, name, place)
    return scores


def task_label(task: Task) -> str:
    """What figures call the samples of a task."""
    return task.held_out.label or data_label(task.name)


def score_task(model: Model, task: Task, tokens: int | None, rows: int, runtime: Runtime) -> Scores:
    """Scores of one task: "loss" in nats per target, "bits_per_byte" of a likelihood of text, and the scorer's."""
    held_out = task.held_out.first(tokens)
    rank, world_size = runtime.share(held_out)
    device = device_of(model)
    scorer = task.objective.scorer()
    samples = -(-len(held_out) // world_size)
    equal = waits_for_ranks(model)
    with (
        full_parameters(model) if rows == 1 else joint_passes(model),
        runtime.precision(device),
        activity(f"scoring {task.name}", samples, "samples") as work,
    ):
        batches = evaluation_batches(held_out, rows, None, rank, world_size, equal and rows > 1)
        sums = held_out_loss(model, scorer.add, work.track(batches, len), device)
    if world_size > 1:
        sums.reduce()
    loss, targets = sums.means()["ce"].item(), round(float(sums.values["tokens"]))
    scores = {"loss": Score(loss, n=targets)}
    size = bytes_per_target(task.objective, held_out)
    if size is not None:
        scores["bits_per_byte"] = Score(bits_per_byte(loss, size), n=targets)
    return scores | {name: Score(value, n=len(held_out)) for name, value in scorer.compute().items()}
