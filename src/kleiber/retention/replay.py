"""Replay: a fraction of the tokens of every batch is text of earlier tasks.

Samples of an earlier task with the objective and length of the stage's samples are mixed with them, in exact
proportions in every block of samples. A task with another objective or length is replayed as a penalty: its loss on as
many of its samples as a mixture of this fraction would hold is added to the loss of the stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Lt
from torch import Tensor

from kleiber.config.stages import Quantity, quantity
from kleiber.data.mixture import LARGEST_BLOCK, Mixture, fractions_of
from kleiber.nn.moe import counts_over_ranks
from kleiber.nn.sharding import sharded_modules
from kleiber.retention.memory import EarlierText, Source, reference_samples, same_loss
from kleiber.types import Positive
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Objective, Retention, Samples, Task
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer


class Replay(Retention):
    """A share p of the tokens of every block is of earlier tasks, divided equally among them. Robins 1995, Connection
    Science 7.

    At a fixed budget the new text gets (1 - p) of the tokens; to train on as much new text as without replay costs
    1 / (1 - p) of the compute. Replay of generated text (Shin et al. 2017, arXiv:1705.08690) needs no earlier data.

    fraction          p
    source            "real": training samples of the earlier tasks; "generated": text that the start model generates
    generated_tokens  number of tokens that the start model generates, once, when the stage begins
    temperature       at which it generates
    memory            number of tokens to keep of each earlier task, spread evenly over its training text; null keeps
                      all of it, whether or not the model was trained on it
    """

    mixes_data = True
    reads_earlier_tasks = True

    def __init__(
        self,
        fraction: Annotated[float, Ge(0.001), Lt(1)] = 0.05,
        source: Source = "real",
        generated_tokens: Quantity = "64K",
        temperature: Positive = 1.0,
        memory: Quantity | None = None,
        vocabulary: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        if memory is not None and source == "generated":
            raise ValueError(
                f"retention.replay.memory={memory} needs source=real: with source=generated set generated_tokens"
            )
        self.fraction, self.kept_tokens = fraction, None if memory is None else quantity(memory)
        self.text = EarlierText("replay", source, generated_tokens, temperature, vocabulary)
        self.separate: list[tuple[Task, float]] = []  # tasks that cannot be mixed in, and their samples per new sample

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Remembers the seed and, where the text is generated, the text."""
        self.memory = {"seed": seed, **self.text.generate(model, seed)}

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The stage's samples mixed with those of earlier tasks that have the same objective and layout."""
        replayed = self.text.tasks(tasks, self.memory, self.kept_tokens)
        share = self.fraction / len(replayed)
        mixed = [task for task in replayed if same_loss(task.objective, objective) and same_layout(task.train, train)]
        self.separate = [(task, share / (1 - self.fraction)) for task in replayed if task not in mixed]
        return mix_earlier(train, [task.train for task in mixed if task.train is not None], share) if mixed else train

    def extra_passes(self, rows: int) -> tuple[float, float]:
        """Passes over the samples of earlier tasks that are not mixed in, on average."""
        return 0.0, sum(rate for _, rate in self.separate)

    def penalty(self, model: Model, batch: Batch, step: int) -> Loss | None:
        """The loss of earlier tasks that cannot be mixed in; each of their samples has the weight of a new sample."""
        if not self.separate:
            return None
        total: Tensor | float = 0.0
        for stream, (task, rate) in enumerate(self.separate):
            samples = reference_samples(task, batch, self.memory["seed"], step, stream, rate)
            weight = 0.0 if samples is None else len(samples) / len(batch)
            if samples is None and task.train is not None and (sharded_modules(model) or counts_over_ranks(model)):
                # Other ranks may have drawn samples, and wait for the weights or counts that this rank holds.
                samples = task.train.gather(np.array([0])).to(batch.tokens.device)
            if samples is not None:
                loss = task.objective(model, samples)
                tokens = loss.tokens.masked_fill(loss.tokens == 0, math.inf)  # a small sample may have no masked token
                total = total + loss.total / tokens * weight
        unit = torch.ones((), device=batch.tokens.device)
        total = total * unit
        return Loss(total, unit, {"replay": total.detach()})


def same_layout(first: Samples | None, second: Samples) -> bool:
    """Whether samples of two sets can be rows of one batch: the same fields, and rows of the same length."""
    assert first is not None
    batches = [samples.gather(np.array([0])) for samples in (first, second)]
    fields = [{name for name, value in vars(batch).items() if value is not None} for batch in batches]
    return fields[0] == fields[1] and batches[0].tokens.shape == batches[1].tokens.shape


def mix_earlier(train: Samples, replayed: Sequence[Samples], share: float) -> Mixture:
    """A mixture with `share` of each earlier task, and the rest of the stage's samples.

    A set of samples that is a mixture keeps its fractions. Raises ValueError for a share that is too small for a block.
    """
    count = len(replayed)
    earlier_parts = [(part, share * fraction) for samples in replayed for part, fraction in fractions_of(samples)]
    smallest = min(fraction for _, fraction in earlier_parts)
    if smallest < 1 / LARGEST_BLOCK:
        least = share * count / (smallest * LARGEST_BLOCK)
        raise ValueError(
            f"retention.replay.fraction={share * count:g} is too small for {count} earlier tasks: the smallest part "
            f"would get less than one sample in {LARGEST_BLOCK}; set at least {least:g}"
        )
    new_parts = [(part, (1 - share * count) * fraction) for part, fraction in fractions_of(train)]
    parts, fractions = zip(*new_parts, *earlier_parts, strict=True)
    return Mixture(parts, fractions)
