"""Learning without forgetting: a penalty on the divergence from the start model's predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch

from kleiber.nn.loss import kl_divergence
from kleiber.retention.memory import Text, alike, partners
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Objective, Retention, Samples, Task, Tokenizer
from kleiber.types.model import Model


class LwF(Retention):
    """strength T^2 KL(p_old || p_new) per target: 0 at the first step. Li & Hoiem 2016, arXiv:1606.09282.

    A second forward pass by the old model, and one more forward and backward by the new one. Under every earlier kind
    of objective, so an old task's own output layer is held too.

    strength          of the penalty
    temperature       T
    source            which text it is asked on: "new" (the batch, as in the paper), "real" (as many samples of each
                      earlier task) or "generated" (as many of what the start model writes)
    generated_tokens  how much it writes
    """

    def __init__(
        self,
        strength: float = 1.0,
        temperature: float = 1.0,
        source: Literal["new", "real", "generated"] = "new",
        generated_tokens: int | float | str = "64K",
        vocabulary: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        if strength <= 0 or temperature <= 0:
            raise ValueError(f"retention.lwf: strength={strength} and temperature={temperature} must be positive")
        self.strength, self.temperature = strength, temperature
        self.text = Text("lwf", source, generated_tokens, 1.0, vocabulary)
        self.tasks: list[Task] = []
        self._old: list[Model] = []  # in a list, so that it is no part of this module's own state

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        self._old.clear()
        old = copy.deepcopy(model).state_dict()
        self.memory = {"seed": seed, "old": dict(old), **self.text.written(model, seed)}

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        self.tasks = one_of_a_kind(tasks) if self.text.source == "new" else self.text.tasks(tasks, self.memory)
        for task in self.tasks:
            if not task.objective.has_predictions:
                kind = type(task.objective).__name__
                raise ValueError(f"retention.lwf: {task.name} was trained by {kind}, which predicts no distribution")
        if not self.tasks:
            raise ValueError("retention.lwf: there is no earlier task whose predictions could be kept: remove lwf")
        return train

    def penalty(self, model: Model, batch: Batch, step: int) -> Loss | None:
        old = self.old(model)
        total = torch.zeros((), device=batch.tokens.device)
        for stream, task in enumerate(self.tasks):
            asked = batch if self.text.source == "new" else partners(task, batch, self.memory["seed"], step, stream)
            assert asked is not None, "one reference sample for each of the batch"
            with torch.no_grad():
                before = task.objective.predictions(old, asked)
            after = task.objective.predictions(model, asked)
            apart = kl_divergence(before.hidden, before.head, after.hidden, after.head, after.weights, self.temperature)
            total = total + apart / after.weights.sum().clamp_min(1.0)
        return Loss(self.strength * total, torch.ones_like(total), {"lwf": total.detach()})

    def old(self, model: Model) -> Model:
        """The model of the stage's beginning, made again from what is remembered of it."""
        if not self._old:
            teacher = copy.deepcopy(model)
            teacher.load_state_dict(self.memory["old"])
            self._old.append(teacher.requires_grad_(False).eval())
            self.memory["old"] = dict(teacher.state_dict())
        return self._old[0]


def one_of_a_kind(tasks: Sequence[Task]) -> list[Task]:
    """One task of each kind of objective: all of a kind ask the same of a text."""
    distinct: list[Task] = []
    for task in tasks:
        if not any(alike(task.objective, other.objective) for other in distinct):
            distinct.append(task)
    return distinct
