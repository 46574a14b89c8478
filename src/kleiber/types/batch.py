"""Data that is passed between models, objectives, routers and retention methods: batches, outputs, losses and sums.

Axes of tensors have these names everywhere: batch time dim heads head_dim hidden experts k vocab tokens (= batch *
time). Means are computed once, at the end, from sums, so they are the same for every split into micro-batches, batches
and ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.types.ranks import all_reduce_together, world_size


@dataclass
class Batch:
    """Samples of one micro-batch.

    tokens       token ids; for next-token prediction a row is one token longer than the context
    real         False on padding; None if no token is padding
    weights      weight of each token as a target: 0 leaves it out of the loss; None if every weight is 1
    segments     number of the document within a packed row; tokens attend only to their own segment
    labels       class ids, scores or other targets of each sample
    samples      number of each sample in the data set, from which its random masks are drawn; so they do not depend on
                 the rank or micro-batch
    counterpart  rows that these are compared with, one for each, such as the rejected answers of preference data
    reference    values of each sample, or of each token, under a frozen model, such as the log-probabilities of both
                 answers of a pair
    positions    position of each token in its row, where cached tokens are before it; None counts from the row's first
    prefix       True on tokens of prompts, which a model with model.attention.prefix=true reads in both directions
    auxiliary_ratio  factor of the auxiliary sums, which is that of the whole step and the same for each sample; None:
                 that of this batch
    """

    tokens: Int[Tensor, "batch time"]
    real: Bool[Tensor, "batch time"] | None = None
    weights: Float[Tensor, "batch time"] | None = None
    segments: Int[Tensor, "batch time"] | None = None
    labels: Tensor | None = None
    samples: Int[Tensor, "batch"] | None = None
    counterpart: Batch | None = None
    reference: Float[Tensor, "batch ..."] | None = None
    positions: Int[Tensor, "#batch time"] | None = None
    auxiliary_ratio: Float[Tensor, "batch"] | None = None
    prefix: Bool[Tensor, "batch time"] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `fn` applied to every tensor in it, such as a move to a device or a slice of rows."""
        mapped = {}
        for name, value in vars(self).items():
            if value is not None:
                mapped[name] = value.map(fn) if isinstance(value, Batch) else fn(value)
        return Batch(**mapped)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device. A GPU copies it from pinned memory, for which the host does not wait."""
        is_gpu = torch.device(device).type == "cuda"
        pinned = self.map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory()) if is_gpu else self
        return pinned.map(lambda tensor: tensor.to(device, non_blocking=True))

    @property
    def is_real(self) -> Bool[Tensor, "batch time"]:
        """Whether each token is no padding."""
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.real is None else self.real

    def columns(self, stop: int) -> Batch:
        """The batch with the tokens `[:stop]` of each row alone, such as all but the last one for -1."""
        return self.map(lambda tensor: tensor[:, :stop] if tensor.dim() == 2 else tensor)

    def split(self, rows: int) -> list[Batch]:
        """Micro-batches of at most `rows` samples, in order; the batch itself where one micro-batch is enough."""
        if len(self) <= rows:
            return [self]
        return [self.map(lambda tensor, i=i: tensor[i : i + rows]) for i in range(0, len(self), rows)]

    def __len__(self) -> int:
        return self.tokens.shape[0]


@dataclass
class Output:
    """Hidden states of a backbone, and auxiliary results of its layers in `aux`.

    All of `aux` is summed over real tokens; a dense model has none:

    "loss"             the auxiliary losses, weighted by their coefficients
    "balance/<layer>"  a load-balancing loss without its coefficient; its mean per token is 1 for uniform routing
    "z/<layer>"        a router z-loss without its coefficient
    "load/<layer>"     number of assignments to each expert (a vector), before any is dropped
    "margin/<layer>"   score of the k-th expert minus that of the next one
    "drop/<layer>"     share of a token's assignments that were dropped because their expert was full

    `future` has hidden states that predict the second next token, the third next, and so on; only in training, of a
    model with such parts.
    """

    hidden: Float[Tensor, "batch time dim"]
    aux: dict[str, Tensor] = field(default_factory=dict)
    future: list[Tensor] = field(default_factory=list)


@dataclass
class Loss:
    """A loss as a sum over tokens, so that every split into micro-batches and ranks gives the same step.

    total    the sum that is differentiated
    tokens   number (or weight) of tokens in the sum; the optimizer step divides by its sum over micro-batches and ranks
    metrics  detached sums, divided by `tokens` when reported; always with "ce". Entries "load/..." are vectors of
             counts
    """

    total: Float[Tensor, ""]
    tokens: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Penalty:
    """The part of a micro-batch in a penalty, which is added to the mean loss of the step.

    value    what is differentiated
    metrics  detached values to log, which are summed over the step
    """

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Routing:
    """The experts that a router chooses for each token.

    weights  weight of each chosen expert's output
    experts  indices of the chosen experts
    scores   the router's distribution over all experts, for balance losses and statistics
    logits   in fp32, for the z-loss; None for a router without weights
    margin   score of the k-th expert minus that of the next one
    kept     False for an assignment that is not served; None where all are served
    """

    weights: Float[Tensor, "tokens k"]
    experts: Int[Tensor, "tokens k"]
    scores: Float[Tensor, "tokens experts"]
    logits: Float[Tensor, "tokens experts"] | None = None
    margin: Float[Tensor, "tokens"] | None = None
    kept: Bool[Tensor, "tokens k"] | None = None


@dataclass(frozen=True)
class Role:
    """The role of a parameter for the optimizer.

    kind    sets weight decay and the scale of the learning rate: "embedding" (lookup tables), "hidden" (matrices inside
            blocks, and stacks of matrices for experts), "output" (head and router), "vector" (norm gains, biases)
    fan_in  number of inputs of the matrix, which sets the muP scale
    depth   number of blocks of the model whose block has the parameter; None outside of blocks
    fixed_outputs  whether the number of outputs of a hidden matrix stays the same as the width grows
    """

    kind: Literal["embedding", "hidden", "output", "vector"]
    fan_in: int
    depth: int | None = None
    fixed_outputs: bool = False


class Sums:
    """Sums of "total", "tokens" and each metric over losses."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        """Adds a loss to the sums."""
        for name, value in {"total": loss.total, "tokens": loss.tokens, **loss.metrics}.items():
            value = value.detach()
            self.values[name] = self.values[name] + value if name in self.values else value

    def reduce(self) -> Sums:
        """Adds the sums of all ranks, in one collective; every rank must have the same metrics."""
        if world_size() > 1:
            # fp64 keeps token counts exact: fp32 stops counting at 2^24.
            totals = all_reduce_together([value.double() for value in self.values.values()])
            pairs = zip(self.values.items(), totals, strict=True)
            self.values = {name: total.to(value.dtype) for (name, value), total in pairs}
        return self

    def means(self) -> dict[str, Tensor]:
        """Means per target token; "tokens" and the counts in "load/..." stay sums."""
        tokens = self.values["tokens"]
        return {
            name: value if name == "tokens" or name.startswith("load/") else value / tokens
            for name, value in self.values.items()
        }
