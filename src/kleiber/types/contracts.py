"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.types.batch import Batch, Loss


@dataclass
class Predictions:
    """The distributions that an objective scores, softmax of head(hidden) at each row, and the weight of each row.

    `head` is a Head or any other output layer that gives logits over outcomes.
    """

    hidden: Float[Tensor, "*axes dim"]
    head: Callable[[Tensor], Tensor]
    weights: Float[Tensor, "*axes"]


@runtime_checkable
class Objective(Protocol):
    """One loss. It receives the model; it never imports one. `likelihood`: whether its mean is that of a text.

    One that needs an output layer of its own says so in `outputs` (name: number of outputs); the model has it in
    `heads`. One whose score is more than a mean loss has `scorer()`, a new `Scorer` for a pass over held-out samples;
    one whose loss is a likelihood of discrete outcomes `predictions(model, batch)`, for divergences and Fisher
    information; one whose loss of a sample depends on the whole step `prepared(model, micro_batches)`, what to learn.
    """

    likelihood: bool

    def __call__(self, model: Any, batch: Batch) -> Loss: ...


@runtime_checkable
class Scorer(Protocol):
    """Collects what a metric needs over one pass: `add` returns the loss of a batch, `compute` the named metrics.

    `compute` adds up over ranks itself, and gives the same numbers on each.
    """

    def add(self, model: Any, batch: Batch) -> Loss: ...
    def compute(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Task:
    """What a model is scored on, and trained on earlier: held-out samples under an objective. R has a column a task.

    train  the samples that a retention method may read again; None where only scores are to be had
    """

    name: str
    objective: Objective
    held_out: HeldOut
    train: Samples | None = None


class Retention(nn.Module):
    """A way not to forget earlier tasks while a stage trains on a new one. Every hook does nothing until overridden.

    What it has to remember (anchors, Fisher information, an old model) stands in `memory`, plain containers of tensors
    and numbers, which is its `state_dict` and goes into every checkpoint. A stage that begins loads the memory that its
    parent's methods of the same name ended with, if there is one, and calls `begin_stage`; a resumed stage loads its
    own and does not. Then both call `data`. Hooks are pure functions of the memory, their arguments and the seed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Any] = {}

    def begin_stage(self, model: Any, tasks: Sequence[Task], seed: int) -> None:
        """Sees the model as it is before the stage's first step, and the tasks of all stages before."""

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The samples that the stage trains on under `objective`; called at every start of it, resumed or not."""
        return train

    def penalty(self, model: Any, batch: Batch, step: int) -> Loss | None:
        """Its mean over its own tokens is added to the mean loss of a micro-batch; all ranks name the same metrics."""
        return None

    def gradients(self, model: Any, step: int) -> dict[str, Tensor]:
        """Changes the gradients of the mean loss in place, after all micro-batches and ranks, before clipping.

        Returns what is worth logging. The gradients are the same on every rank, and must stay so.
        """
        return {}

    def after_step(self, model: Any, step: int, lr: float) -> None:
        """Changes the weights after the optimizer's step, for what Adam must not rescale."""

    def end_stage(self, model: Any, save: Callable[[str], Path]) -> dict[str, Path]:
        """Further checkpoints of the stage, by the prefix of their metrics (`wise/0.5`).

        `save(name)` writes the weights that the model has now and returns where they lie.
        """
        return {}

    def get_extra_state(self) -> dict[str, Any]:
        return self.memory

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.memory = state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Retention:
        """A move to a device or precision moves what is remembered too."""
        self.memory = _mapped(self.memory, fn)
        return super()._apply(fn, recurse)


def _mapped(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    return {name: _mapped(item, fn) for name, item in value.items()} if isinstance(value, dict) else value


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. `token_bytes[i]` is how many bytes of text token i stands for (0 for specials)."""

    name: str
    vocab_size: int
    eos: int
    mask: int
    hash: str
    token_bytes: Int[np.ndarray, "vocab"]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@runtime_checkable
class Samples(Protocol):
    """A finite, indexable set of samples; `num_bytes` is the text behind `num_tokens` targets, for bits per byte."""

    num_tokens: int
    num_bytes: int

    def __len__(self) -> int: ...
    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch: ...


@runtime_checkable
class HeldOut(Samples, Protocol):
    """Samples that are scored, in a fixed order: `first(tokens)` is always the same set and knows its bytes."""

    def first(self, tokens: int | None) -> HeldOut: ...


@runtime_checkable
class Corpus(Protocol):
    """Prepared data of one stage: training samples, and validation samples by domain."""

    name: str
    config: str
    hash: str
    tokenizer: Tokenizer
    train: Samples
    validation: dict[str, HeldOut]
