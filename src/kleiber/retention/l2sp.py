"""L2-SP: pulls the weights towards those that the stage began with, after every optimizer step.

The pull is decoupled from the optimizer, as weight decay is in AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence

from kleiber.retention.memory import beside, snapshot
from kleiber.types.contracts import Retention, Task
from kleiber.types.model import Model


class L2SP(Retention):
    """theta <- theta - lr strength (theta - theta*) after every step, theta* the weights when the stage began.

    The gradient step of strength/2 |theta - theta*|^2, decoupled from Adam as weight decay is in AdamW: through Adam
    the penalty would be divided by the gradient's size. Differs from Li et al. 2018, arXiv:1802.01483, in that; the new
    output layer is left alone, as there.
    """

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__()
        if strength <= 0:
            raise ValueError(f"retention.l2sp.strength={strength} must be positive; leave l2sp out for no pull")
        self.strength = strength

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        self.memory = {"start": snapshot(model)}

    def after_step(self, model: Model, step: int, lr: float) -> None:
        pull = lr * self.strength
        if pull > 1:
            raise ValueError(
                f"retention.l2sp.strength={self.strength} at a learning rate of {lr:g} would leap over the start: give "
                f"at most {1 / lr:g}"
            )
        for _, parameter, start in beside(model, self.memory["start"]):
            parameter.data.lerp_(start, pull)
