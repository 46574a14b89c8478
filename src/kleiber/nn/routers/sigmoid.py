"""Routers that score each expert by a sigmoid of its own logit and normalize over the chosen experts.

They normalize in log space, where a sum of sigmoids cannot underflow. With a small constant in the denominator
instead, all sigmoids can fall below that constant, and the balance loss becomes small although the load is unbalanced.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kleiber.config.layer_checks import check_groups
from kleiber.nn.mup import Site
from kleiber.nn.routers.topk import TokenChoice, refuse_single_expert
from kleiber.types import ChosenExperts, NumExperts, Positive


class Sigmoid(TokenChoice):
    """The k experts of largest s = sigmoid(logit), weighted by s over the sum of s over those k.

    The scores of the balance loss are s over the sum of s over all experts. DeepSeek-V3, arXiv:2412.19437, section
    2.1.2, without its scaling factor of the routed part. Raises ValueError at k = 1, where the weight is always 1.
    """

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts) -> None:
        super().__init__(site, num_experts, k)
        refuse_single_expert(k, "sigmoid")

    def scores(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        return F.logsigmoid(logits).softmax(-1)

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return F.logsigmoid(logits.gather(-1, chosen)).softmax(-1)


class LossFree(Sigmoid):
    """Chooses experts by s + bias and weights them by s; each step adds rate * sign(mean load - load) to the bias.

    The load is that of the global batch, over all micro-batches and ranks. The bias is a buffer, saved in
    checkpoints, and has no gradient; where the router is frozen, so is the bias. Wang et al. 2024, arXiv:2408.15664.

    rate  step of the bias, on the scale of s, which lies in [0, 1]
    """

    needs_balance: ClassVar[bool] = False

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts, rate: Positive = 1e-3) -> None:
        super().__init__(site, num_experts, k)
        self.rate = rate
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(num_experts))

    def priority(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        return logits.sigmoid() + self.bias

    def margin_values(self, scores: Tensor, priority: Tensor) -> Float[Tensor, "tokens experts"]:
        return priority

    @torch.no_grad()
    def rebalance(self, load: Float[Tensor, "experts"] | None) -> None:
        """Updates the bias once, unless the router is frozen.

        Raises ValueError where the objective reports no load: the bias would never move.
        """
        if not any(parameter.requires_grad for parameter in self.parameters()):
            return
        if load is None:
            raise ValueError(
                f"router {type(self).__name__} needs the load of each step, which this objective does not report: "
                "choose another model/router"
            )
        load = load.to(self.bias.dtype)
        self.bias.add_(self.rate * torch.sign(load.mean() - load))


class GroupLimited(LossFree):
    """LossFree within `limit` groups of experts: those with the largest sum of their two largest s + bias.

    A group consists of neighboring experts, as if on one device, so that a token visits few devices. DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2.

    groups  number of groups, of equal size
    limit   number of groups that a token may visit
    """

    def __init__(
        self,
        site: Site,
        num_experts: NumExperts,
        k: ChosenExperts,
        rate: Positive = 1e-3,
        groups: ChosenExperts = 4,
        limit: ChosenExperts = 2,
    ) -> None:
        super().__init__(site, num_experts, k, rate)
        check_groups(groups, limit, num_experts, k)
        self.groups, self.limit = groups, limit

    def priority(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        grouped = super().priority(logits).unflatten(-1, (self.groups, -1))
        best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1)
        allowed = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(self.limit, -1).indices, True)
        return grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(-2)

    def margin_values(self, scores: Tensor, priority: Tensor) -> Float[Tensor, "tokens experts"]:
        """The priority, with -1 for experts of other groups, so that the margin to them is finite."""
        return priority.clamp(min=-1.0)
