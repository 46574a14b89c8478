"""The contracts of the house on one screen: what flows between data, model, objective, router and retention method.

Axes are spelled one way everywhere: batch time dim heads head_dim hidden experts k vocab tokens (= batch * time).
Nothing here computes, and nothing here imports another module of kleiber.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
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
    """

    tokens: Int[Tensor, "batch time"]
    real: Bool[Tensor, "batch time"] | None = None
    weights: Float[Tensor, "batch time"] | None = None
    segments: Int[Tensor, "batch time"] | None = None
    labels: Tensor | None = None
    samples: Int[Tensor, "batch"] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `fn` applied to every tensor that is there: a device move, a slice of rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {name: None if value is None else fn(value) for name, value in values.items()}
        return Batch(**mapped)

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of at most `rows` samples, in order."""
        return [self.map(lambda t, i=i: t[i : i + rows]) for i in range(0, len(self), rows)]

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass
class Output:
    """What a backbone returns. `aux` holds what its layers want to say beside the hidden states:

    "loss"             auxiliary losses, weighted by their coefficients, *summed* over real tokens; absent when dense
    "balance/<layer>"  a load-balancing loss, unweighted, summed over real tokens (so the mean is 1 when uniform)
    "z/<layer>"        a router z-loss, unweighted, summed over real tokens
    "load/<layer>"     assignments per expert, a vector of counts over real tokens, before any is dropped
    "margin/<layer>"   score of the last chosen expert less that of the first left out, summed over real tokens
    "drop/<layer>"     assignments that found their expert full, over k, summed over real tokens (so the mean is the
                       share that was dropped); absent where no expert has a capacity
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

    weights  combination weights of the chosen experts
    experts  the chosen experts
    scores   the router's distribution over all experts, from which balance losses and statistics are computed
    logits   the router's logits in fp32, for the z-loss; None where nothing is learned
    margin   score of the k-th expert less that of the next; None where there is none
    kept     False for an assignment that is not served: an expert that is full, or that chose otherwise
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
    """A backbone with a head. Causal or not is its own business."""

    @property
    def head(self) -> Head: ...
    def __call__(self, batch: Batch) -> Output: ...
    def roles(self) -> dict[str, Role]: ...


@runtime_checkable
class Objective(Protocol):
    """One loss. It receives the model; it never imports one. `likelihood`: whether its mean is that of a text.

    An objective that needs an output layer of its own says so in `outputs` (name of the head: number of outputs); the
    run gives it to the model, which holds it as `model.heads[name]`. One whose score is more than a mean loss has
    `scorer()`, a new `Scorer` for one pass over held-out samples.
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

    What it has to remember (anchors, Fisher information, an old model) stands in its `state_dict`, which goes into
    every checkpoint: `begin_stage` is called once, when a stage begins, and not when it resumes. Hooks are pure
    functions of that state, their arguments and the seed.
    """

    def begin_stage(self, model: Any, tasks: Sequence[Task], seed: int) -> None:
        """Sees the model as it is before the stage's first step, and the tasks of all stages before."""

    def data(self, train: Samples, tasks: Sequence[Task]) -> Samples:
        """The samples that the stage trains on; called at every start of the stage, resumed or not."""
        return train

    def penalty(self, model: Any, batch: Batch, step: int) -> Loss | None:
        """Added to the loss of a micro-batch: a sum over its target tokens, as every Loss."""
        return None

    def gradients(self, model: Any, step: int) -> None:
        """Changes the gradients of the mean loss in place, after all micro-batches and ranks, before clipping."""

    def after_step(self, model: Any, step: int, lr: float) -> None:
        """Changes the weights after the optimizer's step, for what Adam must not rescale."""

    def end_stage(self, model: Any, folder: Path) -> dict[str, Path]:
        """Writes further checkpoints into `folder`, by name (an interpolation, an average)."""
        return {}


@runtime_checkable
class Router(Protocol):
    """`batch` says what the tokens are (ids, rows, padding); most routers look at x alone.

    sums_to_one    whether the weights of a token add up to 1
    needs_balance  whether only a balance loss keeps its experts alive
    """

    sums_to_one: bool
    needs_balance: bool

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
