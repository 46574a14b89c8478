"""Base class of retention methods, which preserve what a model learned in earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from kleiber.types import Json
from kleiber.types.batch import Batch, Penalty
from kleiber.types.contracts import Objective, Samples, Task
from kleiber.types.model import Model


class Retention(nn.Module):
    """A method that preserves earlier tasks while a stage trains on a new one. Every hook here does nothing.

    What it remembers (start weights, Fisher information, an old model) is in `memory`: dictionaries of tensors and
    numbers, which are its `state_dict` and part of every checkpoint. A new stage loads the memory with which its
    parent's method of the same name ended, if there is one, and calls `begin_stage`. A resumed stage loads its own
    memory and does not call `begin_stage`. Both then call `data`. Hooks are pure functions of the memory, their
    arguments and the seed.

    mixes_data           whether `data` may return other samples than those of the stage
    reads_earlier_tasks  whether it reads the tasks of earlier stages: their samples or their objectives
    averages_weights     whether it averages weights of the start and the end by their names
    shrinks_distance     whether a step shrinks the distance to the start by learning rate x `strength`
    """

    mixes_data: ClassVar[bool] = False
    reads_earlier_tasks: ClassVar[bool] = False
    averages_weights: ClassVar[bool] = False
    shrinks_distance: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.memory: Json = {}

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Called before the stage's first step, with the model as it is then and the tasks of all earlier stages."""

    def trained_objectives(self, tasks: Sequence[Task]) -> list[Objective]:
        """The objectives of earlier tasks whose losses are trained beside that of the stage, with their output layers.

        Called at every start of the stage, before all other hooks. Output layers that no objective reads are frozen.
        """
        return []

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The samples that the stage trains on under `objective`; called at every start of the stage."""
        return train

    def penalty_counts(self, model: Model, batch: Batch, step: int) -> list[float | Tensor]:
        """Counts of a micro-batch that `penalty` divides by, in a fixed number; none for a method without a penalty."""
        return []

    def penalty(self, model: Model, batch: Batch, step: int, counts: Tensor) -> Penalty:
        """The part of a micro-batch in a penalty, such as a sum over its samples divided by a count of the whole step.

        The sum of the parts is added to the mean loss. A penalty on weights alone belongs in `gradients`.

        counts  those of `penalty_counts`, summed over all micro-batches and ranks of the step
        """
        raise NotImplementedError

    def gradients(self, model: Model, step: int) -> dict[str, Tensor]:
        """Changes the gradients of the mean loss in place, before they are clipped; returns values to log.

        The gradients are those of the whole step: the same on every rank, before and after.
        """
        return {}

    def extra_passes(self, rows: int) -> tuple[float, float]:
        """Extra forward passes, and forward and backward passes, of a step, in multiples of a pass over its `rows`."""
        return 0.0, 0.0

    def after_step(self, model: Model, step: int, lr: float) -> None:
        """Changes the weights after the optimizer's step, for changes that Adam must not rescale."""

    def end_stage(self, model: Model, save: Callable[[str], Path]) -> dict[str, Path]:
        """Further checkpoints of the stage, by the prefix of their metrics, such as `wise/0.5`.

        save  writes the present weights of the model to a checkpoint of this name, and returns its path
        """
        return {}

    def get_extra_state(self) -> Json:
        """The memory, as the method's `state_dict`."""
        return self.memory

    def set_extra_state(self, state: Json) -> None:
        """Replaces the memory by that of a `state_dict`."""
        self.memory = state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Retention:
        """Converts the tensors in `memory` as well, when the module is moved to another device or precision."""
        self.memory = _map_tensors(self.memory, fn)
        return super()._apply(fn, recurse)


def _map_tensors(values: Json, fn: Callable[[Tensor], Tensor]) -> Json:
    """The dictionary with `fn` applied to every tensor in it and in its dictionaries."""
    nested = {name: _map_tensors(value, fn) for name, value in values.items() if isinstance(value, dict)}
    return values | nested | {name: fn(value) for name, value in values.items() if isinstance(value, Tensor)}
