"""Routers without parameters, by token id or at random: baselines for learned routers.

Their choice is a pure function of the batch, so that a run resumes exactly and an evaluation can be repeated. The k
experts have equal weights. Without logits there is no z-loss, and the balance loss has no gradient.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.topk import check_sizes
from kleiber.types import ChosenExperts, NumExperts
from kleiber.types.batch import Batch, Routing
from kleiber.types.model import Router


class Hash(Router):
    """Chooses a token's experts by a hash of its id and the layer. Roller et al. 2021, arXiv:2106.04426 (k = 1)."""

    needs_balance: ClassVar[bool] = False
    matrices: ClassVar[int] = 0

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts) -> None:
        super().__init__()
        check_sizes(num_experts, k)
        self.num_experts, self.k, self.layer = num_experts, k, site.layer

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        if batch is None:
            raise ValueError("model/router=hash routes by token ids: call the layer with the batch, layer(x, batch)")
        return equal_weights(hash_numbers(batch.tokens.flatten(), self.num_experts, self.layer), self.k, x)


class Random(Router):
    """Chooses the experts of a token pseudo-randomly, as a function of (layer, sample, position)."""

    needs_balance: ClassVar[bool] = False
    matrices: ClassVar[int] = 0

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts) -> None:
        super().__init__()
        check_sizes(num_experts, k)
        self.num_experts, self.k, self.layer = num_experts, k, site.layer

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        """The routing of the tokens; without sample numbers every row counts as sample 0, whichever rows are beside it.

        Padding on the left counts for no position.
        """
        rows, time = (1, len(x)) if batch is None else batch.tokens.shape
        samples, positions = torch.zeros(rows, dtype=torch.long, device=x.device), torch.arange(time, device=x.device)
        if batch is not None:
            samples = samples if batch.samples is None else batch.samples
            if batch.positions is not None:
                positions = batch.positions
            elif batch.real is not None:
                positions = (batch.real.cumsum(1) - 1).clamp(min=0)
        places = samples[:, None] * 0x9E3779B1 + positions
        return equal_weights(hash_numbers(places.flatten(), self.num_experts, self.layer), self.k, x)


def equal_weights(numbers: Int[Tensor, "tokens experts"], k: int, x: Tensor) -> Routing:
    """The routing to the k experts of largest number, each with weight 1/k; the scores are those weights."""
    experts = numbers.topk(k, -1).indices
    dtype = torch.promote_types(x.dtype, torch.float32)
    weights = torch.full(experts.shape, 1 / k, dtype=dtype, device=x.device)
    scores = torch.zeros(numbers.shape, dtype=dtype, device=x.device).scatter(-1, experts, weights)
    return Routing(weights, experts, scores)


def hash_numbers(keys: Int[Tensor, "tokens"], num_experts: int, layer: int) -> Int[Tensor, "tokens experts"]:
    """A pseudo-random number for each (key, expert, layer), by the finalizer of SplitMix64 (Steele et al. 2014)."""
    x = (keys[:, None] * num_experts + torch.arange(num_experts, device=keys.device)) * 64 + layer % 64
    x = x + 0x1E3779B97F4A7C15 + layer // 64 * 0x9E3779B97F4B  # odd, so that no key has the state of another layer
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        # int64 shifts copy the sign bit; the mask makes them the unsigned shifts of the definition.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
