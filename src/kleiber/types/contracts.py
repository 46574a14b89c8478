"""Base classes of what a user can add: tokenizers, data, objectives, adapters and retention methods.

A method or an attribute that not every class needs has a default here that does nothing, so no caller asks whether it
is there. Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from kleiber.types import Json
from kleiber.types.batch import Batch, Loss
from kleiber.types.model import Model


class Tokenizer:
    """Text to ids and back.

    vocab_size   number of ids, padding of the vocabulary included
    eos, mask    ids of the end of a text and of a hidden token; -1 where the vocabulary has no mask
    bos, cls     ids of the beginning of a text (or None) and of the token that stands for a whole text (or -1)
    hash         changes with the ids of any text
    token_bytes  bytes of text that each token stands for; 0 for special tokens
    path         file that a run copies into its folder; None where `name` alone finds the tokenizer again
    """

    name: str
    vocab_size: int
    eos: int
    mask: int
    hash: str
    token_bytes: Int[np.ndarray, "vocab"]
    bos: int | None = None
    cls: int = -1
    path: Path | None = None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        raise NotImplementedError

    def encode_for_model(self, text: str) -> list[int]:
        """Ids of a text with the special tokens that the tokenizer's own files put around it."""
        return self.encode(text)

    def encode_many(self, texts: list[str]) -> list[Integer[np.ndarray, "_"]]:
        """Ids of several texts."""
        return [np.asarray(self.encode(text), np.int64) for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens and padding stand for nothing."""
        raise NotImplementedError


class Samples:
    """A finite, indexable set of samples.

    num_tokens, num_bytes  targets, and bytes of the text behind them, for bits per byte
    sides                  rows of the batch that a sample fills: 2 for a pair of answers
    padded                 whether samples differ in length: rows are padded, and what begins one is no target
    """

    num_tokens: int
    num_bytes: int
    sides: int = 1
    padded: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """The samples of these numbers, in that order, as they are in that epoch."""
        raise NotImplementedError

    def question(self, i: int) -> tuple[list[int], list[int]] | None:
        """Prompt and last answer of conversation i, as token ids; None where samples are no conversations."""
        return None


class HeldOut(Samples):
    """Samples that are scored, in a fixed order."""

    def first(self, tokens: int | None) -> HeldOut:
        """The first samples with about `tokens` targets, always the same ones; all for None."""
        raise NotImplementedError


@runtime_checkable
class Corpus(Protocol):
    """Prepared data of one stage: training samples, and validation samples by domain."""

    name: str
    config: str
    hash: str
    tokenizer: Tokenizer
    train: Samples
    validation: dict[str, HeldOut]


@dataclass
class Predictions:
    """The distributions that an objective scores, softmax of head(hidden) at each row, and the weight of each row.

    `head` is a Head or any other output layer that gives logits over outcomes.
    """

    hidden: Float[Tensor, "*axes dim"]
    head: Callable[[Tensor], Tensor]
    weights: Float[Tensor, "*axes"]


class Objective:
    """One loss. It receives the model and never imports one.

    likelihood            whether its mean is the negative log-likelihood of a text, which bits per byte are made of
    metric                name of the main score: "loss", or a metric of its scorer
    higher_is_better      direction of that score
    unit                  unit of the loss in reports
    learning_rate_factor  factor of the default learning rate
    outputs               outputs of each output layer of its own, by name; the model has them in `heads`
    has_predictions       whether `predictions` gives distributions over outcomes
    compares_answers      whether a sample is a pair of answers, so that the scorer has `pairs`
    class_names           names of the classes, where every sample has exactly one; its scorer has `confusion`
    """

    likelihood: bool = False
    metric: str = "loss"
    higher_is_better: bool = False
    unit: ClassVar[str] = "nats/token"
    learning_rate_factor: ClassVar[float] = 1.0
    outputs: Mapping[str, int] = MappingProxyType({})
    has_predictions: bool = False
    compares_answers: ClassVar[bool] = False
    class_names: Sequence[str] = ()

    def __call__(self, model: Model, batch: Batch) -> Loss:
        raise NotImplementedError

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Called when a stage begins or goes on, with the model that it began with; None where only results are read.

        folder  of the stage, where results that a resumed stage needs again are kept
        """

    def prepared(self, model: Model, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro-batches of an optimizer step, where the loss of a sample depends on the whole step."""
        return batches

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The distributions over outcomes, for divergences and Fisher information."""
        raise NotImplementedError(f"{type(self).__name__} predicts no distribution over outcomes")

    def scorer(self) -> Scorer:
        """A new scorer for one pass over held-out samples."""
        return Scorer(self)


class Scorer:
    """Collects what metrics need over one pass. The default has no metric beside the loss."""

    def __init__(self, objective: Objective) -> None:
        self.objective: Any = objective

    def add(self, model: Model, batch: Batch) -> Loss:
        """The loss of a batch; keeps what `compute` needs."""
        return self.objective(model, batch)

    def compute(self) -> dict[str, float]:
        """Metrics by name. Adds up over ranks itself, and gives the same numbers on each."""
        return {}

    def pairs(self) -> dict[str, Float[Tensor, "pairs"]]:
        """Values of each pair of answers, by the name of the metric that is their mean."""
        return {}

    def confusion(self) -> Int[Tensor, "classes classes"] | None:
        """Entry (i, j): samples of class i that were taken for class j; None without classes."""
        return None


@dataclass(frozen=True)
class Task:
    """What a model is scored on, and trained on earlier: held-out samples under an objective. R has a column a task.

    train  the samples that a retention method may read again; None where only scores are to be had
    """

    name: str
    objective: Objective
    held_out: HeldOut
    train: Samples | None = None


class Adapter:
    """Chooses which parameters of a loaded model a stage trains, and may add new ones.

    learning_rate_factor  factor of the default learning rate
    """

    learning_rate_factor: ClassVar[float] = 1.0

    def apply(self, model: Model, seed: int) -> None:
        """Changes the model in place; what is drawn is drawn from `seed` alone."""
        raise NotImplementedError

    def merge(self, model: Model) -> None:
        """Adds what was learned to the weights: plain modules and names, every parameter trained again."""
        model.requires_grad_(True)


class Retention(nn.Module):
    """A way not to forget earlier tasks while a stage trains on a new one. Every hook does nothing until overridden.

    What it has to remember (anchors, Fisher information, an old model) stands in `memory`, plain containers of tensors
    and numbers, which is its `state_dict` and goes into every checkpoint. A stage that begins loads the memory that its
    parent's methods of the same name ended with, if there is one, and calls `begin_stage`; a resumed stage loads its
    own and does not. Then both call `data`. Hooks are pure functions of the memory, their arguments and the seed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: Json = {}

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Sees the model as it is before the stage's first step, and the tasks of all stages before."""

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The samples that the stage trains on under `objective`; called at every start of it, resumed or not."""
        return train

    def penalty(self, model: Model, batch: Batch, step: int) -> Loss | None:
        """Its mean over its own tokens is added to the mean loss of a micro-batch; all ranks name the same metrics."""
        return None

    def gradients(self, model: Model, step: int) -> dict[str, Tensor]:
        """Changes the gradients of the mean loss in place, after all micro-batches and ranks, before clipping.

        Returns what is worth logging. The gradients are the same on every rank, and must stay so.
        """
        return {}

    def after_step(self, model: Model, step: int, lr: float) -> None:
        """Changes the weights after the optimizer's step, for what Adam must not rescale."""

    def end_stage(self, model: Model, save: Callable[[str], Path]) -> dict[str, Path]:
        """Further checkpoints of the stage, by the prefix of their metrics (`wise/0.5`).

        `save(name)` writes the weights that the model has now and returns where they lie.
        """
        return {}

    def get_extra_state(self) -> Json:
        return self.memory

    def set_extra_state(self, state: Json) -> None:
        self.memory = state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Retention:
        """A move to a device or precision moves what is remembered too."""
        self.memory = _mapped(self.memory, fn)
        return super()._apply(fn, recurse)


def _mapped(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    return {name: _mapped(item, fn) for name, item in value.items()} if isinstance(value, dict) else value
