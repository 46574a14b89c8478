"""L2-SP: pulls the weights towards those at the beginning of the stage, after every optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

from kleiber.retention.memory import remembered, snapshot
from kleiber.types import Positive
from kleiber.types.contracts import Task
from kleiber.types.model import Model
from kleiber.types.retention import Retention


class L2SP(Retention):
    """theta <- theta - lr strength (theta - theta*) after every step, with theta* the weights when the stage began.

    This is a gradient step of the penalty strength/2 |theta - theta*|^2, decoupled from the optimizer like the weight
    decay of AdamW, because Adam would divide the penalty by the size of the gradient. Li et al. 2018, arXiv:1802.01483,
    add the penalty to the loss. New output layers are not pulled, as in the paper.
    """

    shrinks_distance = True

    def __init__(self, strength: Positive = 0.1) -> None:
        super().__init__()
        self.strength = strength

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Keeps a copy of the trainable weights, but new output layers, towards which `after_step` moves the model."""
        self.memory = {"start": snapshot(model)}

    def after_step(self, model: Model, step: int, lr: float) -> None:
        """Moves the trainable weights by the share lr * strength of their distance to the weights of the start.

        lr  learning rate of this step

        Raises ValueError where the share exceeds 1, so that the weights would move past the start.
        """
        share = lr * self.strength
        if share > 1:
            raise ValueError(
                f"retention.l2sp.strength={self.strength} at the learning rate {lr:g} would move the weights past "
                f"their start: set at most {1 / lr:g}"
            )
        for _, parameter, start in remembered(model, self.memory["start"]):
            parameter.data.lerp_(start, share)
