"""Routers that score each expert by itself, by a sigmoid, and normalise over the chosen.

Both normalisations are taken in log space, where a sum of sigmoids cannot vanish: with a small constant in the
denominator instead, all sigmoids can fall below it, and the balance loss with them, without any balance.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.router import TokenChoice
from kleiber.nn.routers.topk import refuse_one


class Sigmoid(TokenChoice):
    """The k experts of largest s = sigmoid(logit), weighted by s over the sum of s over those k.

    The scores of the balance loss are s over the sum of s over all experts. DeepSeek-V3, arXiv:2412.19437, section
    2.1.2; without its scaling factor of the routed part. At k = 1 the one weight is always 1, so k = 1 is refused.
    """

    def __init__(self, site: Site, num_experts: int, k: int) -> None:
        super().__init__(site, num_experts, k)
        refuse_one(k, "sigmoid")

    def scores(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        return F.logsigmoid(logits).softmax(-1)

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return F.logsigmoid(logits.gather(-1, chosen)).softmax(-1)


class LossFree(Sigmoid):
    """Chooses by s + bias and weighs by s; after each optimizer step bias += rate * sign(mean load - load).

    The load is that of the whole global batch, over all micro-batches and ranks: `rebalance` is called once a step
    with it (`Transformer.rebalance`). The bias is a buffer in the checkpoint and has no gradient. Wang et al. 2024,
    arXiv:2408.15664.

    rate  step of the bias, on the scale of s, so of [0, 1]
    """

    needs_balance: ClassVar[bool] = False

    def __init__(self, site: Site, num_experts: int, k: int, rate: float = 1e-3) -> None:
        super().__init__(site, num_experts, k)
        if rate <= 0:
            raise ValueError(f"model.mlp.router.rate={rate} must be positive, such as 1e-3; without it take sigmoid")
        self.rate = rate
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(num_experts))

    def priority(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        return logits.sigmoid() + self.bias

    def standing(self, scores: Tensor, priority: Tensor) -> Float[Tensor, "tokens experts"]:
        return priority

    @torch.no_grad()
    def rebalance(self, load: Float[Tensor, "experts"]) -> None:
        """One update, from the assignments per expert of a global batch."""
        load = load.to(self.bias.dtype)
        self.bias.add_(self.rate * torch.sign(load.mean() - load))


class GroupLimited(LossFree):
    """LossFree within the `limit` groups of experts whose two best s + bias add up highest, of `groups` in all.

    Experts stand in groups of neighbours, as they would on devices; a token then visits few of them. DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2.

    groups  groups of equal size
    limit   groups that a token may visit
    """

    def __init__(
        self, site: Site, num_experts: int, k: int, rate: float = 1e-3, groups: int = 4, limit: int = 2
    ) -> None:
        super().__init__(site, num_experts, k, rate)
        if groups < 1 or num_experts % groups:
            raise ValueError(f"model.mlp.router.groups={groups} does not divide the {num_experts} experts")
        if not 1 <= limit <= groups or limit * (num_experts // groups) < k:
            raise ValueError(
                f"model.mlp.router.limit={limit} of groups={groups}: from 1 to {groups}, and enough for k={k} experts"
            )
        self.groups, self.limit = groups, limit

    def priority(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        grouped = super().priority(logits).unflatten(-1, (self.groups, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        open_to = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(self.limit, -1).indices, True)
        return grouped.masked_fill(~open_to.unsqueeze(-1), -torch.inf).flatten(-2)

    def standing(self, scores: Tensor, priority: Tensor) -> Float[Tensor, "tokens experts"]:
        """A margin to an expert of a closed group is none: it counts as the whole range of s."""
        return priority.clamp(min=-1.0)
