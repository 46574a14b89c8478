"""Data that flows between model, objective, router and retention method: batches, outputs, losses and their sums.

Names of axes, everywhere: batch time dim heads head_dim hidden experts k vocab tokens (= batch * time). Means are taken
once, at the end, of sums, so they are the same for every split into micro-batches, batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
        fields: Any = {n: v.map(fn) if isinstance(v, Batch) else fn(v) for n, v in vars(self).items() if v is not None}
        return Batch(**fields)

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


class Sums:
    """Sums of "total", "tokens" and each metric of the losses added so far."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        for name, value in {"total": loss.total, "tokens": loss.tokens, **loss.metrics}.items():
            value = value.detach()
            self.values[name] = self.values[name] + value if name in self.values else value

    def reduce(self) -> Sums:
        """Adds up over all ranks, in one collective; every rank must have added the same metrics."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # fp64 keeps token counts exact: fp32 stops counting at 2^24.
            flat = torch.cat([value.reshape(-1).double() for value in self.values.values()])
            dist.all_reduce(flat)
            parts = flat.split([value.numel() for value in self.values.values()])
            self.values = {
                name: part.view(value.shape).to(value.dtype)
                for (name, value), part in zip(self.values.items(), parts, strict=True)
            }
        return self

    def means(self) -> dict[str, Tensor]:
        """Means per target token; "tokens" and vectors of counts (load/...) stay as they are."""
        tokens = self.values["tokens"]
        return {n: v if n == "tokens" or n.startswith("load/") else v / tokens for n, v in self.values.items()}
