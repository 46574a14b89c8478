"""The contracts of the house on one screen: what flows between data, model, objective, router and retention method.

Axes are spelled one way everywhere: batch time dim heads head_dim hidden experts k vocab tokens (= batch * time).
Nothing here computes, and nothing here imports another module of kleiber.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass
class Batch:
    """Samples of one micro-batch. `None` stands for the obvious: every token real, every target of weight one.

    tokens    token ids; for next-token prediction a row is one longer than the context
    real      False on padding
    weights   weight of each token *as a target* (0 leaves it out of the loss)
    segments  number of the document within a packed row; attention stays inside a segment
    labels    class ids, scores or other per-sample targets
    samples   number of each sample in the data set: the seed of its masks, whatever rank or micro-batch it fell to
    against   the rows that these are compared with, one for each (the rejected answers of preference data)
    reference what a frozen model said of each sample before training: for pairs, log-probabilities of both answers
    """

    tokens: Int[Tensor, "batch time"]
    real: Bool[Tensor, "batch time"] | None = None
    weights: Float[Tensor, "batch time"] | None = None
    segments: Int[Tensor, "batch time"] | None = None
    labels: Tensor | None = None
    samples: Int[Tensor, "batch"] | None = None
    against: Batch | None = None
    reference: Float[Tensor, "batch values"] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `fn` applied to every tensor that is there: a device move, a slice of rows."""
        made: Any = {n: v.map(fn) if isinstance(v, Batch) else fn(v) for n, v in vars(self).items() if v is not None}
        return Batch(**made)

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of at most `rows` samples, in order; the batch itself where one is enough."""
        starts = range(0, len(self), rows)
        return [self.map(lambda t, i=i: t[i : i + rows]) for i in starts] if len(starts) > 1 else [self]

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass
class Output:
    """What a backbone returns. `aux` holds what its layers want to say beside the hidden states:

    "loss"             auxiliary losses, weighted by their coefficients, *summed* over real tokens; absent when dense
    "balance/<layer>"  a load-balancing loss, unweighted, summed over real tokens (so the mean is 1 when uniform)
    "z/<layer>"        a router z-loss, unweighted, summed over real tokens
    "load/<layer>"     assignments per expert, a vector of counts over real tokens, before any is dropped
    "margin/<layer>", "drop/<layer>"  how far the k-th score is above the next, and the share of a token's assignments
                       that found their expert full, summed over real tokens
    """

    hidden: Float[Tensor, "batch time dim"]
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Loss:
    """A sum over tokens and the number it is a sum over: additive, so any split into micro-batches and ranks agrees.

    total    what is differentiated, summed over `tokens`
    tokens   the weight that the optimizer step divides by, after summing over micro-batches and ranks
    metrics  detached sums (divided by `tokens` when reported), vectors of counts under "load/"; "ce" is always there
    """

    total: Float[Tensor, ""]
    tokens: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Routing:
    """Where a router sends each token.

    weights, experts  the chosen experts, and with what weight they are combined
    scores   the router's distribution over all experts, from which balance losses and statistics are computed
    logits   in fp32, for the z-loss; None where nothing is learned
    margin   score of the k-th expert less that of the next
    kept     False for an assignment that is not served; None where all are
    """

    weights: Float[Tensor, "tokens k"]
    experts: Int[Tensor, "tokens k"]
    scores: Float[Tensor, "tokens experts"]
    logits: Float[Tensor, "tokens experts"] | None = None
    margin: Float[Tensor, "tokens"] | None = None
    kept: Bool[Tensor, "tokens k"] | None = None


@dataclass(frozen=True)
class Role:
    """What a parameter is to the optimizer: its kind sets weight decay and learning-rate scale, `fan_in` the muP scale.

    kind  "embedding" (lookup tables), "hidden" (matrices inside blocks; stacks of matrices for experts),
          "output" (head and router), "vector" (norm gains, biases)
    """

    kind: Literal["embedding", "hidden", "output", "vector"]
    fan_in: int


@runtime_checkable
class Head(Protocol):
    """The output layer as a loss sees it: logits = cap(multiplier * hidden @ weight.T).

    cap(x) = soft_cap tanh(x / soft_cap), or x where `soft_cap` is None.
    """

    weight: Float[Tensor, "vocab dim"]
    multiplier: float
    soft_cap: float | None

    def __call__(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocab"]: ...


@runtime_checkable
class Model(Protocol):
    """A backbone with a head, for rows of up to `context` tokens. Causal or not is its own business."""

    context: int
    head: Head

    def __call__(self, batch: Batch) -> Output: ...
    def roles(self) -> dict[str, Role]: ...


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
class Router(Protocol):
    def __call__(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing: ...


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
