"""Replay: a fraction of the tokens of every batch is text of earlier tasks.

Samples of an earlier task with the objective and layout of the stage's samples are mixed with them, in exact
proportions in every block of samples. A task with another objective or layout is replayed as a penalty: its loss on as
many of its samples as a mixture of this fraction would hold is added to the loss of the stage, and its output layer is
trained too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from kleiber.types.batch import Batch, Penalty
from kleiber.types.contracts import Objective, Samples, Task
from kleiber.types.model import Model
from kleiber.types.retention import Retention
from kleiber.types.tokenizer import Tokenizer


class Replay(Retention):
    """A share p of the tokens of every block is of earlier tasks, divided equally among them. Robins 1995, Connection
    Science 7. Where samples differ in length, it is the share in a block of samples of mean lengths; the tokens of the
    stage are then counted as if all were samples of the new text.

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
        # Tasks that cannot be mixed in, with the number of their samples per sample of a batch.
        self.separate: list[tuple[Task, float]] = []
        self.outputs: Mapping[str, int] = {}  # those of the stage's objective

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Remembers the seed and, where the text is generated, the text."""
        self.memory = {"seed": seed, **self.text.generate(model, seed)}

    def trained_objectives(self, tasks: Sequence[Task]) -> list[Objective]:
        """Those of the tasks that are replayed."""
        return self.text.objectives(tasks)

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The stage's samples mixed with those of earlier tasks that have the same objective and layout.

        Raises ValueError for another task whose loss depends on all samples of a step.
        """
        replayed = self.text.tasks(tasks, self.memory, self.kept_tokens)
        mixed = [task for task in replayed if same_loss(task.objective, objective) and same_layout(task.train, train)]
        separate = [task for task in replayed if task not in mixed]
        for task in separate:
            check_independent(task)
        share = share_of_batch(self.fraction, len(replayed), len(separate))
        self.separate, self.outputs = [(task, share) for task in separate], objective.outputs
        samples = [task.train for task in mixed if task.train is not None]
        return mix_earlier(train, samples, self.fraction, len(separate)) if mixed else train

    def extra_passes(self, rows: int) -> tuple[float, float]:
        """Passes over the samples of earlier tasks that are not mixed in, on average."""
        return 0.0, sum(rate for _, rate in self.separate)

    def penalty_counts(self, model: Model, batch: Batch, step: int) -> list[float | Tensor]:
        """Number of samples; of each task beside them number of samples, of targets and of tokens that are read."""
        counts: list[float | Tensor] = [len(batch)] if self.separate else []
        for task, samples, number in self.drawn(model, batch, step):
            if samples is None:
                counts += [0, 0, 0]
            else:
                targets = task.objective.targets(model, samples)
                _, read = task.objective.auxiliary_counts(model, samples) or (targets, targets)
                counts += [number, *((targets, read) if number else (0, 0))]
        return counts

    def penalty(self, model: Model, batch: Batch, step: int, counts: Tensor) -> Penalty:
        """The loss of earlier tasks that cannot be mixed in; their samples weigh as much as those of the batch."""
        total = torch.zeros((), device=batch.tokens.device)
        tasks = zip(self.drawn(model, batch, step), counts[1:].split(3), strict=True)
        for (task, samples, number), (of_step, targets, read) in tasks:
            if samples is not None:
                ratio = (targets / read.clamp_min(1.0)).expand(len(samples))
                loss = task.objective(model, replace(samples, auxiliary_ratio=ratio))
                divisor = targets.masked_fill(targets == 0, math.inf)  # a small sample may have no masked token
                total = total + loss.total / divisor * (of_step / counts[0] if number else 0.0)
        return Penalty(total, {"replay": total.detach()})

    def drawn(self, model: Model, batch: Batch, step: int) -> Iterator[tuple[Task, Batch | None, int]]:
        """Each task that cannot be mixed in, with its samples for a batch and their number.

        Where there are none, other ranks may have drawn some, and wait for the weights or counts that this rank holds.
        An output layer that only this task reads needs a gradient in every step too, whatever the ranks have drawn. In
        both cases it passes over a sample that does not count.
        """
        waits = sharded_modules(model) or counts_over_ranks(model)
        for stream, (task, rate) in enumerate(self.separate):
            samples = reference_samples(task, batch, self.memory["seed"], step, stream, rate)
            number = 0 if samples is None else len(samples)
            reads_other_layers = task.objective.outputs != self.outputs
            if samples is None and task.train is not None and (waits or reads_other_layers):
                samples = task.train.gather(np.array([0])).to(batch.tokens.device)
            yield task, samples, number


def same_layout(first: Samples | None, second: Samples) -> bool:
    """Whether samples of two sets can be rows of one batch: the same fields, and equally long rows or padded ones."""
    assert first is not None
    batches = [samples.gather(np.array([0])) for samples in (first, second)]
    fields = [{name for name, value in vars(batch).items() if value is not None} for batch in batches]
    return fields[0] == fields[1] and ("real" in fields[0] or batches[0].tokens.shape == batches[1].tokens.shape)


def check_independent(task: Task) -> None:
    """Raises ValueError for a task whose losses depend on all samples of a step, which are not drawn together."""
    if type(task.objective).prepare_step is not Objective.prepare_step:
        name = type(task.objective).__name__.lower()
        raise ValueError(
            f"retention.replay cannot replay the earlier task {task.name} beside the batches of this stage, because "
            f"the loss of objective={name} depends on all samples of a step: give both the same objective and kind of "
            "data, or use l2sp or wise"
        )


def share_of_batch(fraction: float, num_tasks: int, num_separate: int) -> float:
    """The share of each of `num_tasks` earlier tasks in a batch that does not hold the samples of the separate ones.

    fraction  share of all earlier tasks in the samples of a step, with those of the separate tasks
    """
    share = fraction / num_tasks
    return share / (1 - share * num_separate)


def mix_earlier(train: Samples, replayed: Sequence[Samples], fraction: float, num_separate: int = 0) -> Mixture:
    """A mixture with an equal share of the tokens of each earlier task, and the rest of the stage's samples.

    A set of samples that is a mixture keeps its fractions. Raises ValueError for a share that is too small for a block.

    fraction      share of all earlier tasks
    num_separate  number of earlier tasks that have their share beside the mixture
    """
    count, num_tasks = len(replayed), len(replayed) + num_separate
    share = share_of_batch(fraction, num_tasks, num_separate)
    tokens = [1 - share * count, *(share for _ in replayed)]
    fractions = sample_fractions(tokens, [mean_tokens(samples) for samples in (train, *replayed)])
    new_parts, *earlier = (
        [(part, fraction * inner) for part, inner in fractions_of(samples)]
        for samples, fraction in zip((train, *replayed), fractions, strict=True)
    )
    earlier_parts = [pair for pairs in earlier for pair in pairs]
    smallest = min(fraction for _, fraction in earlier_parts)
    if smallest < 1 / LARGEST_BLOCK:
        least = fraction / (smallest * LARGEST_BLOCK)
        digits = 1 - math.floor(math.log10(least))  # two significant digits, rounded up
        least = math.ceil(least * 10**digits * (1 - 1e-9)) / 10**digits
        raise ValueError(
            f"retention.replay.fraction={fraction:g} is too small for {num_tasks} earlier tasks: the smallest part "
            f"would get less than one sample in {LARGEST_BLOCK}; set at least {least:g}"
        )
    parts, part_fractions = zip(*new_parts, *earlier_parts, strict=True)
    return Mixture(parts, part_fractions)


def mean_tokens(samples: Samples) -> float:
    """Mean number of tokens of a sample; of a mixture, in its fractions."""
    return sum(fraction * part.num_tokens / len(part) for part, fraction in fractions_of(samples))


def sample_fractions(fractions: Sequence[float], means: Sequence[float]) -> list[float]:
    """Fractions of samples from fractions of tokens, for parts with these mean numbers of tokens of a sample."""
    if all(math.isclose(mean, means[0], rel_tol=1e-9) for mean in means):
        return list(fractions)
    samples = [fraction / mean for fraction, mean in zip(fractions, means, strict=True)]
    return [number / sum(samples) for number in samples]
