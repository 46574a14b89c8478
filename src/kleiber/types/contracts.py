"""Base classes of what a user can add, with defaults that do nothing: data, objectives, adapters, retention methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.types import Json
from kleiber.types.batch import Batch, Loss
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer


class Planted(NamedTuple):
    """The known cause of one token of each sample.

    targets  position of the token that is decided
    causes   True for the earlier tokens that decide it, without the one in front of it, which asks for it
    """

    targets: Int[np.ndarray, "batch"]
    causes: Bool[np.ndarray, "batch time"]


class Samples:
    """A finite, indexable set of samples.

    num_tokens  number of target tokens
    num_bytes   bytes of the text of the targets, for bits per byte
    sides       rows that a forward pass has per sample: 2 for a pair of answers
    padded      whether samples differ in length, so that rows are padded and their first tokens are no targets
    random_access  whether `gather` returns any sample; False: samples are read in order alone, and len() is above
                   their number until all were read
    """

    num_tokens: int
    num_bytes: int
    sides: int = 1
    padded: bool = False
    random_access: bool = True

    def __len__(self) -> int:
        raise NotImplementedError

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """The samples with these numbers, in that order, as they are in that epoch."""
        raise NotImplementedError

    def question(self, i: int) -> tuple[list[int], list[int]] | None:
        """Prompt and last answer of conversation i, as token ids; None where samples are not conversations."""
        return None

    def planted(self, index: Int[np.ndarray, "batch"]) -> Planted | None:
        """Which tokens of these samples decide a later token, where the data were made so; None for other data."""
        return None


class HeldOut(Samples):
    """Samples that are scored, in a fixed order."""

    def first(self, tokens: int | None) -> HeldOut:
        """The first samples with about `tokens` targets, the same at every call; all samples for None."""
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
    """The distributions over outcomes that an objective scores: softmax(head(hidden)) for each vector of `hidden`.

    head     an output layer that returns logits over outcomes, such as a `Head`
    weights  weight of each distribution in the loss
    """

    hidden: Float[Tensor, "*axes dim"]
    head: Callable[[Tensor], Tensor]
    weights: Float[Tensor, "*axes"]


class Objective:
    """A loss of a model on a batch.

    likelihood            whether the mean loss is the negative log-likelihood of a text, as bits per byte need
    metric                name of the main score: "loss", or a metric of the scorer
    higher_is_better      whether a higher main score is better
    unit                  unit of the loss in reports
    learning_rate_factor  factor of the default learning rate
    default_epochs        passes over the training samples without a budget; None: 20 tokens per active parameter
    fine_tuning           other defaults for fine-tuning an imported model, by key of the config
    outputs               number of outputs of each output layer that the objective adds to `model.heads`, by name
    has_predictions       whether `predictions` returns distributions over outcomes
    compares_answers      whether a sample is a pair of answers, so that the scorer has `pairs`
    couples_samples       whether the loss of a sample also depends on other training samples, which DP-SGD forbids
    needs_causal          whether tokens are predicted from those before them, which needs a causal model
    trains_future         whether the loss has a term for `Output.future`, as `model.future` needs
    class_names           names of the classes if a sample has exactly one, so that the scorer has `confusion`
    models                paths of the trained models that the objective reads, by their key in its config
    """

    likelihood: bool = False
    metric: str = "loss"
    higher_is_better: bool = False
    unit: ClassVar[str] = "nats/token"
    learning_rate_factor: ClassVar[float] = 1.0
    default_epochs: ClassVar[float | None] = None
    fine_tuning: ClassVar[Mapping[str, float] | None] = None
    outputs: Mapping[str, int] = MappingProxyType({})
    has_predictions: bool = False
    compares_answers: ClassVar[bool] = False
    couples_samples: ClassVar[bool] = False
    needs_causal: ClassVar[bool] = False
    trains_future: ClassVar[bool] = False
    class_names: Sequence[str] = ()
    models: Mapping[str, str] = MappingProxyType({})

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """The loss of a batch, as a sum over its targets."""
        raise NotImplementedError

    def check(self, model: Model) -> None:
        """Raises ValueError where the objective does not fit the model. Called before any stage is trained."""

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Called when a stage begins or resumes.

        model   as it was when the stage began; None where the stage is not trained further
        folder  of the stage, for results that a resumed stage needs again
        """

    def prepare_step(self, model: Model, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Changes the micro-batches of a step, where losses depend on the whole step (`couples_samples`)."""
        return batches

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[float | Tensor, float | Tensor] | None:
        """Divisor of the loss, and real tokens read: their ratio in a step scales auxiliary losses. None: it is 1."""
        return None

    def unlearned_flops(self, model: Model, time: int) -> float:
        """FLOPs per token of forward passes that train nothing, such as a teacher's, over rows of `time` tokens."""
        return 0.0

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The distributions over outcomes, for divergences and Fisher information."""
        raise NotImplementedError(f"objective={type(self).__name__} predicts no distribution over outcomes")

    def scorer(self) -> Scorer:
        """A new scorer for one pass over held-out samples."""
        return Scorer(self)


class Scorer:
    """Computes metrics from one pass over held-out samples. This base class has no metrics besides the loss."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def add(self, model: Model, batch: Batch) -> Loss:
        """The loss of a batch; stores what `compute` needs."""
        return self.objective(model, batch)

    def compute(self) -> dict[str, float]:
        """Metrics by name over the samples of all ranks; the same numbers on every rank."""
        return {}

    def pairs(self) -> dict[str, Float[Tensor, "pairs"]]:
        """The values of each pair of answers, by the metric that is their mean."""
        return {}

    def confusion(self) -> Int[Tensor, "classes classes"] | None:
        """Entry (i, j): number of samples of class i predicted to have class j; None without classes."""
        return None


@dataclass(frozen=True)
class Task:
    """Held-out samples and an objective, on which a model is scored, and the data of an earlier stage.

    train      training samples that a retention method may read again; None where they are not available
    data_hash  `hash` of the corpus of the samples; "" where they were not read from one
    """

    name: str
    objective: Objective
    held_out: HeldOut
    train: Samples | None = None
    data_hash: str = ""


class Adapter:
    """Chooses which parameters of a loaded model a stage trains, and may add new ones.

    learning_rate_factor  factor of the default learning rate
    """

    learning_rate_factor: ClassVar[float] = 1.0

    def check(self, model: Model) -> None:
        """Raises ValueError where the adapter does not fit the model. Called before any stage is trained."""

    def apply(self, model: Model, seed: int) -> None:
        """Changes the model in place; random numbers depend on `seed` alone."""
        raise NotImplementedError

    def merge(self, model: Model) -> None:
        """Merges the adapter into the weights: modules and names are plain again, and every parameter is trainable."""
        model.requires_grad_(True)


class Retention(nn.Module):
    """A method that preserves earlier tasks while a stage trains on a new one. Every hook here does nothing.

    What it remembers (start weights, Fisher information, an old model) is in `memory`: dictionaries of tensors and
    numbers, which are its `state_dict` and part of every checkpoint. A new stage loads the memory with which its
    parent's method of the same name ended, if there is one, and calls `begin_stage`. A resumed stage loads its own
    memory and does not call `begin_stage`. Both then call `data`. Hooks are pure functions of the memory, their
    arguments and the seed.

    mixes_data           whether `data` may return other samples than those of the stage
    reads_earlier_tasks  whether it reads the tasks of earlier stages: their samples or their objectives
    """

    mixes_data: ClassVar[bool] = False
    reads_earlier_tasks: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.memory: Json = {}

    def begin_stage(self, model: Model, tasks: Sequence[Task], seed: int) -> None:
        """Called before the stage's first step, with the model as it is then and the tasks of all earlier stages."""

    def data(self, train: Samples, tasks: Sequence[Task], objective: Objective) -> Samples:
        """The samples that the stage trains on under `objective`; called at every start of the stage."""
        return train

    def penalty(self, model: Model, batch: Batch, step: int) -> Loss | None:
        """The `Loss` whose mean, total / tokens, is added to the mean loss of a micro-batch; None for no penalty.

        Its `metrics` have the same names on all ranks.
        """
        return None

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
