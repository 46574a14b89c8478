"""Token-choice routers: where each token goes, and with what weight. They know no experts and compute no loss.

Router logits are always fp32: a rounding there flips an expert, which is not a small error.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.nn.parametrization import Site
from kleiber.types import Role, Routing


class TopK(nn.Module):
    """The k experts of largest logit, weighted by a softmax over those k alone; the weights sum to 1.

    Mixtral: Jiang et al. 2024, arXiv:2401.04088, eq. 2. At k = 1 the weight is constant and only the balance loss
    teaches the router, so k = 1 is refused: `Switch` is the router for it.
    """

    def __init__(self, site: Site, num_experts: int, k: int) -> None:
        super().__init__()
        _check(num_experts, k)
        if k == 1:
            raise ValueError(
                "model.mlp.k=1 gives router=topk nothing to learn from (its one weight is always 1): "
                "take model/router=switch, or k >= 2"
            )
        self.k = k
        self.linear = Logits(site, num_experts)

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Routing:
        logits = self.linear(x)
        chosen, experts = logits.topk(self.k, -1)
        return Routing(chosen.softmax(-1), experts, logits.softmax(-1), logits)


class Switch(nn.Module):
    """The k experts of largest probability, each weighted by that probability; the weights sum to less than 1.

    Fedus et al. 2021, arXiv:2101.03961, eq. 2 (k = 1 there, any k here).
    """

    def __init__(self, site: Site, num_experts: int, k: int) -> None:
        super().__init__()
        _check(num_experts, k)
        self.k = k
        self.linear = Logits(site, num_experts)

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Routing:
        logits = self.linear(x)
        scores = logits.softmax(-1)
        weights, experts = scores.topk(self.k, -1)
        return Routing(weights, experts, scores, logits)


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


def _check(num_experts: int, k: int) -> None:
    if num_experts < 2 or not 1 <= k <= num_experts:
        raise ValueError(f"k={k} of num_experts={num_experts}: at least 2 experts, and 1 <= k <= num_experts")
