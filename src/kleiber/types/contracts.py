"""Base classes of what a user can add, with defaults that do nothing: data, objectives, adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.types import Json, Row
from kleiber.types.batch import Batch, Loss
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics
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
    random_access  whether `gather` returns any sample; False: they are read in order, and len() is an upper bound
    label       what figures call these samples, where their name does not say it
    """

    num_tokens: int
    num_bytes: int
    sides: int = 1
    padded: bool = False
    label: str = ""
    random_access: bool = True

    def __len__(self) -> int:
        raise NotImplementedError

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """The samples with these numbers, in that order, as they are in that epoch."""
        raise NotImplementedError

    def question(self, i: int) -> tuple[list[int], list[int]] | None:
        """Prompt and last answer of conversation i, as token ids; None where samples are not conversations."""
        return None

    def columns(self, i: int) -> Row:
        """What a reward reads of sample i, by column; a right answer that it lacks is that of `gather`."""
        return {}

    def state(self) -> Json:
        """What a checkpoint keeps, where the next samples do not follow from the step alone."""
        return {}

    def restore(self, state: Json) -> None:
        """Continues from the `state` of a checkpoint."""

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
    metrics               what each score is, by the name of the metric or a pattern: the loss, and those of the scorer
    learning_rate_factor  factor of the default learning rate
    default_epochs        passes over the training samples without a budget; None: 20 tokens per active parameter
    fine_tuning           other defaults for fine-tuning an imported model, by key of the config
    outputs               number of outputs of each output layer that the objective adds to `model.heads`, by name
    has_predictions       whether `predictions` returns distributions over outcomes
    compares_answers      whether a sample is a pair of answers, so that the scorer has `pairs`
    couples_samples       whether the loss of a sample also depends on other training samples, which DP-SGD forbids
    needs_causal          whether tokens are predicted from those before them, which needs a causal model
    hides_tokens          whether tokens are predicted from both sides, of which a causal model reads the left one alone
    trains_future         whether the loss has a term for `Output.future`, as `model.future` needs
    reads_prefix          whether the tokens in front of targets are marked for a model with `model.attention.prefix`
    reads_weights         whether the loss weighs target tokens by the weights of the batch
    trains_answers        whether the model learns to answer in conversations, so that it can be talked to
    class_names           names of the classes if a sample has exactly one, so that the scorer has `confusion`
    models                paths of the trained models that the objective reads, by their key in its config
    answers               answers to each sample that the model writes to learn from; 0: it learns those of the data
    passes                optimizer steps that learn from one batch of samples
    """

    likelihood: bool = False
    metric: str = "loss"
    metrics: Metrics = MappingProxyType({"loss": Metric("loss", "lower", "nats per token")})
    learning_rate_factor: ClassVar[float] = 1.0
    default_epochs: ClassVar[float | None] = None
    fine_tuning: ClassVar[Mapping[str, float] | None] = None
    outputs: Mapping[str, int] = MappingProxyType({})
    has_predictions: bool = False
    compares_answers: ClassVar[bool] = False
    couples_samples: ClassVar[bool] = False
    needs_causal: ClassVar[bool] = False
    hides_tokens: ClassVar[bool] = False
    trains_future: ClassVar[bool] = False
    reads_prefix: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = True
    trains_answers: ClassVar[bool] = False
    class_names: Sequence[str] = ()
    models: Mapping[str, str] = MappingProxyType({})
    answers: int = 0
    passes: int = 1

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """The loss of a batch, as a sum over its targets."""
        raise NotImplementedError

    def check(self, model: Model) -> None:
        """Raises ValueError where the objective does not fit the model. Called before any stage is trained."""
        if self.needs_causal and not model.causal:
            raise ValueError(
                f"objective={type(self).__name__.lower()} needs a causal model, because a bidirectional one reads the "
                "token that it predicts: set model=gpt, or objective=mlm"
            )

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Called when a stage begins or resumes.

        model   as it was when the stage began; None where the stage is not trained further
        folder  of the stage, for results that a resumed stage needs again
        """

    def prepare_step(self, model: Model, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Changes the micro-batches of a step, where losses depend on the whole step (`couples_samples`)."""
        return batches

    def state(self) -> Json:
        """What a checkpoint keeps of the batch that further steps learn from (`passes`), of all ranks."""
        return {}

    def restore(self, state: Json) -> None:
        """Continues from the `state` of a checkpoint."""

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[float | Tensor, float | Tensor] | None:
        """Divisor of the loss, and real tokens read: their ratio in a step scales auxiliary losses. None: it is 1."""
        return None

    def targets(self, model: Model, batch: Batch) -> float | Tensor:
        """`tokens` of the loss of a batch. An objective that knows them without a forward pass overrides this."""
        counts = self.auxiliary_counts(model, batch)
        if counts is not None:
            return counts[0]
        with torch.no_grad():
            return self(model, batch).tokens

    def forward_only_flops(self, model: Model, time: int) -> float:
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
    adds_weights          whether it adds parameters to frozen weights, so that it can be switched off
    """

    learning_rate_factor: ClassVar[float] = 1.0
    adds_weights: ClassVar[bool] = False

    def check(self, model: Model) -> None:
        """Raises ValueError where the adapter does not fit the model. Called before any stage is trained."""

    def apply(self, model: Model, seed: int) -> None:
        """Changes the model in place; random numbers depend on `seed` alone."""
        raise NotImplementedError

    def merge(self, model: Model) -> None:
        """Merges the adapter into the weights: modules and names are plain again, and every parameter is trainable."""
        model.requires_grad_(True)
