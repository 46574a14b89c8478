"""Learning without forgetting: a penalty on the divergence from the predictions of the stage's start model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kleiber.config.stages import Quantity
from kleiber.nn.loss import kl_divergence
from kleiber.nn.sharded_model import copy_model, shard
from kleiber.nn.sharding import is_sharded
from kleiber.retention.memory import EarlierText, reference_samples, same_loss
from kleiber.types import Positive
from kleiber.types.batch import Batch, Penalty
from kleiber.types.contracts import Objective, Samples, Task
from kleiber.types.model import Model
from kleiber.types.retention import Retention
from kleiber.types.tokenizer import Tokenizer


class LwF(Retention):
    """strength T^2 KL(p_old || p_new) per target, which is 0 at the first step. Li & Hoiem 2016, arXiv:1606.09282.

    Each step costs a forward pass of the old model, and one more forward and backward pass of the new one. The penalty
    is taken under every earlier kind of objective, so the output layers of earlier tasks are preserved too.

    strength          coefficient of the penalty of each earlier task (with the source "new", of each kind of objective)
    temperature       T, by which the logits of both models are divided
    source            text on which the models are compared: "new" (the batch, as in the paper), "real" (as many samples
                      of each earlier task) or "generated" (as many samples that the start model generated)
    generated_tokens  number of tokens that the start model generates
    """

    reads_earlier_tasks = True

    def __init__(
        self,
        strength: Positive = 1.0,
        temperature: Positive = 1.0,
        source: Literal["new", "real", "generated"] = "new",
        generated_tokens: Quantity = "64K",
        vocabulary: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.strength, self.temperature = strength, temperature
        self.text = EarlierText("lwf", source, generated_tokens, 1.0, vocabulary)
        self.tasks: list[Task] = []
        self._old: list[Model] = []  # a list, so the old model is not a child of this module

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Remembers the weights and, where the text is generated, the text."""
        self._old.clear()
        old = copy_model(model).state_dict()
        self.memory = {"seed": seed, "old": dict(old), **self.text.generate(model, seed)}

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """Returns `train` unchanged, and sets `self.tasks`, the earlier tasks whose predictions `penalty` preserves.

        tasks  tasks of the stages before this one

        Raises ValueError without an earlier task, and for an earlier task whose objective predicts no distribution.
        """
        new = self.text.source == "new"
        self.tasks = distinct_losses(tasks) if new else self.text.tasks(tasks, self.memory)
        for task in self.tasks:
            if not task.objective.has_predictions:
                raise ValueError(
                    f"retention.lwf needs distributions over outcomes, which objective={type(task.objective).__name__} "
                    f"of the earlier task {task.name} does not predict: remove lwf, or start from another run"
                )
        if not self.tasks:
            raise ValueError("retention.lwf needs an earlier task, and this stage has none: remove lwf")
        return train

    def penalty_counts(self, model: Model, batch: Batch, step: int) -> list[float | Tensor]:
        """Number of targets of each task."""
        return [task.objective.targets(model, text) for task, text in self.texts(batch, step)]

    def penalty(self, model: Model, batch: Batch, step: int, counts: Tensor) -> Penalty:
        """The divergence of the new model's predictions from the old model's; logs it without `strength` as "lwf"."""
        old = self.old_model(model)
        total = torch.zeros((), device=batch.tokens.device)
        for (task, text), count in zip(self.texts(batch, step), counts, strict=True):
            with torch.no_grad():
                before = task.objective.predictions(old, text)
            after = task.objective.predictions(model, text)
            divergence = kl_divergence(
                before.hidden, before.head, after.hidden, after.head, after.weights, self.temperature
            )
            total = total + divergence / count.clamp_min(1.0)
        return Penalty(self.strength * total, {"lwf": total.detach()})

    def texts(self, batch: Batch, step: int) -> Iterator[tuple[Task, Batch]]:
        """Each task, with the samples on which the models are compared under its objective."""
        for stream, task in enumerate(self.tasks):
            text: Batch | None = batch
            if self.text.source != "new":
                text = reference_samples(task, batch, self.memory["seed"], step, stream)
            assert text is not None, "at a rate of 1 every sample of the batch has a reference sample"
            yield task, text

    def extra_passes(self, rows: int) -> tuple[float, float]:
        """A pass of the old model and one of the new model for each earlier task."""
        return float(len(self.tasks)), float(len(self.tasks))

    def old_model(self, model: Model) -> Model:
        """The model at the beginning of the stage, a copy of `model` with the remembered weights."""
        if not self._old:
            old = copy_model(model).requires_grad_(False)
            shards = [value for value in self.memory["old"].values() if is_sharded(value)]
            if shards:
                shard(old, shards[0].device_mesh)
            old.load_state_dict(self.memory["old"])
            self._old.append(old.eval())
            self.memory["old"] = dict(old.state_dict())
        return self._old[0]


def distinct_losses(tasks: Sequence[Task]) -> list[Task]:
    """The first task of each kind of objective; on the same text, those of a kind have the same loss."""
    distinct: list[Task] = []
    for task in tasks:
        if not any(same_loss(task.objective, other.objective) for other in distinct):
            distinct.append(task)
    return distinct
