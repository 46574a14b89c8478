"""Few changed weights: a lasso penalty on the distance to the weights of the beginning."""

from collections.abc import Sequence

from kleiber.retention.memory import remembered, snapshot
from kleiber.types import Positive
from kleiber.types.contracts import Task
from kleiber.types.model import Model
from kleiber.types.retention import Retention


class Sparse(Retention):
    """After each step, every weight moves towards its value at the start by lr * strength, and at most onto it.

    A proximal step of the penalty strength |theta - theta*|_1: weights that training hardly needs do not change.
    """

    def __init__(self, strength: Positive = 0.01) -> None:
        super().__init__()
        self.strength = strength

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        self.memory = {"start": snapshot(model)}

    def after_step(self, model: Model, step: int, lr: float) -> None:
        for _, weight, start in remembered(model, self.memory["start"]):
            distance = weight.data - start
            weight.data.copy_(start + distance.sign() * (distance.abs() - lr * self.strength).clamp(min=0))
