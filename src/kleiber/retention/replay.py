"""Replay: a fraction of the tokens of every batch is text of earlier tasks.

Samples of the same objective and length are mixed into the stage's own, exactly in every block of samples. A task of
another objective is replayed beside the batch under its own objective, at the same rate in samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from kleiber.data.mixture import LARGEST_BLOCK, Mixture, fractions_of
from kleiber.retention.memory import Source, Text, alike, memory_tokens, partners
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Objective, Retention, Samples, Task, Tokenizer
from kleiber.types.model import Model


class Replay(Retention):
    """p of the tokens of every block are of earlier tasks, shared equally by them: Robins 1995, Connection Science 7.

    At a fixed budget the new text gets (1 - p) of the tokens; equal target tokens cost 1 / (1 - p) of the compute.
    Self-generated replay (Shin et al. 2017, arXiv:1705.08690) needs no earlier data.

    fraction          p
    source            "real": the earlier tasks' own training samples; "generated": text that the start model writes
    generated_tokens  how much it writes, once, when the stage begins
    temperature       at which it writes
    memory            at most that many tokens of each earlier task are kept to be replayed, spread evenly over its
                      training text; null: all of it, whether the model has read it or not
    """

    def __init__(
        self,
        fraction: float = 0.05,
        source: Source = "real",
        generated_tokens: int | float | str = "64K",
        temperature: float = 1.0,
        memory: int | float | str | None = None,
        vocabulary: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        if not 1 / LARGEST_BLOCK <= fraction < 1:
            raise ValueError(
                f"retention.replay.fraction={fraction}: give a share of the tokens from {1 / LARGEST_BLOCK:g} to "
                "below 1, or leave replay out"
            )
        if memory is not None and source == "generated":
            raise ValueError(
                f"retention.replay.memory={memory} is of real text: with source=generated set generated_tokens"
            )
        self.fraction, self.kept = fraction, memory_tokens("replay", memory)
        self.text = Text("replay", source, generated_tokens, temperature, vocabulary)
        self.apart: list[tuple[Task, float]] = []

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        self.memory = {"seed": seed, **self.text.written(model, seed)}

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        replayed = self.text.tasks(tasks, self.memory, self.kept)
        share = self.fraction / len(replayed)
        mixed = [task for task in replayed if alike(task.objective, objective) and same_form(task.train, train)]
        self.apart = [(task, share / (1 - self.fraction)) for task in replayed if task not in mixed]
        return blend(train, [task.train for task in mixed if task.train is not None], share) if mixed else train

    def penalty(self, model: Model, batch: Batch, step: int) -> Loss | None:
        """Each drawn sample of another objective counts as one sample of the batch."""
        if not self.apart:
            return None
        total: Tensor | float = 0.0
        for stream, (task, rate) in enumerate(self.apart):
            drawn = partners(task, batch, self.memory["seed"], step, stream, rate)
            if drawn is not None:
                loss = task.objective(model, drawn)
                total = total + loss.total / loss.tokens * (len(drawn) / len(batch))
        unit = torch.ones((), device=batch.tokens.device)
        total = total * unit
        return Loss(total, unit, {"replay": total.detach()})


def same_form(one: Samples | None, other: Samples) -> bool:
    """Whether two sets of samples can stand in one batch: the same fields, rows of the same length."""
    assert one is not None
    first, second = (samples.gather(np.array([0])) for samples in (one, other))
    filled = [[getattr(batch, field.name) is None for field in fields(Batch)] for batch in (first, second)]
    return filled[0] == filled[1] and first.tokens.shape == second.tokens.shape


def blend(train: Samples, replayed: Sequence[Samples], share: float) -> Mixture:
    """A mixture of `share` of each earlier task and the rest of the stage's samples; what is a mixture itself, stage or
    earlier task, keeps its own fractions."""
    count = len(replayed)
    again = [(part, share * fraction) for samples in replayed for part, fraction in fractions_of(samples)]
    least = min(fraction for _, fraction in again)
    if least < 1 / LARGEST_BLOCK:
        raise ValueError(
            f"retention.replay.fraction={share * count:g} leaves some of {count} earlier tasks less than one sample in "
            f"{LARGEST_BLOCK}: give at least {share * count / (least * LARGEST_BLOCK):g}"
        )
    new_parts = [(part, (1 - share * count) * fraction) for part, fraction in fractions_of(train)]
    parts, fractions = zip(*new_parts, *again, strict=True)
    return Mixture(parts, fractions)
