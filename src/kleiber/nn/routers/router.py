"""What the learned token-choice routers share: logits in fp32, the k best experts, and the weights of those chosen.

It refuses to normalise anything itself: what a score is and how the chosen are weighed is the router's own.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.nn.mup import Site
from kleiber.types.batch import Batch, Role, Routing


class TokenChoice(nn.Module):
    """Each token goes to the k experts of largest `priority`; a router says its `scores` and its `weights`.

    sums_to_one    whether the k weights of a token add up to 1: what upcycling needs to change nothing
    needs_balance  whether only a balance loss keeps its experts alive
    """

    sums_to_one: ClassVar[bool] = True
    needs_balance: ClassVar[bool] = True

    def __init__(self, site: Site, num_experts: int, k: int) -> None:
        super().__init__()
        check_sizes(num_experts, k)
        self.k = k
        self.linear = Logits(site, num_experts)

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        return self.route(self.linear(x))

    def route(self, logits: Float[Tensor, "tokens experts"], experts: Int[Tensor, "tokens k"] | None = None) -> Routing:
        """The routing that these logits ask for; `experts` keeps an earlier choice, whatever the logits say now."""
        scores = self.scores(logits)
        with torch.no_grad():
            priority = self.priority(logits)
            ranked = priority.topk(min(self.k + 1, logits.shape[-1]), -1).indices
            standing = self.standing(scores, priority).gather(-1, ranked[:, self.k - 1 :])
            margin = standing[:, 0] - standing[:, 1] if standing.shape[1] == 2 else None
        chosen = ranked[:, : self.k].contiguous() if experts is None else experts
        return Routing(self.weights(logits, scores, chosen), chosen, scores, logits, margin)

    def priority(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        """What the choice sorts by."""
        return logits

    def standing(self, scores: Tensor, priority: Tensor) -> Float[Tensor, "tokens experts"]:
        """The scale on which the k-th and the next expert are compared for the routing margin."""
        return scores

    def scores(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        """A distribution over the experts, for the balance loss."""
        return logits.softmax(-1)

    def weights(
        self, logits: Float[Tensor, "tokens experts"], scores: Float[Tensor, "tokens experts"], chosen: Tensor
    ) -> Float[Tensor, "tokens k"]:
        raise NotImplementedError


class Logits(nn.Module):
    """multiplier * weight x in fp32 (or fp64), whatever autocast says."""

    def __init__(self, site: Site, num_experts: int) -> None:
        super().__init__()
        std, self.multiplier = site.parametrization.router(site.width)
        self.weight = nn.Parameter(torch.randn(num_experts, site.width) * std)

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens experts"]:
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            return (x.to(dtype) @ self.weight.to(dtype).T) * self.multiplier

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1])}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel()


def check_sizes(num_experts: int, k: int) -> None:
    if num_experts < 2 or not 1 <= k <= num_experts:
        raise ValueError(f"k={k} of num_experts={num_experts}: at least 2 experts, and 1 <= k <= num_experts")
