"""Routers whose scores are a softmax over all experts; they differ in what the weights of the chosen are."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.router import Logits, TokenChoice
from kleiber.types.batch import Batch, Routing


class TopK(TokenChoice):
    """The k experts of largest logit, weighted by a softmax over those k alone; the weights sum to 1.

    A softmax over all experts that is normalised again after the choice is the same. Mixtral: Jiang et al. 2024,
    arXiv:2401.04088, eq. 2. At k = 1 the weight is constant and only the balance loss teaches the router, so k = 1 is
    refused: `Switch` is the router for it.
    """

    def __init__(self, site: Site, num_experts: int, k: int) -> None:
        super().__init__(site, num_experts, k)
        refuse_one(k, "topk")

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return logits.gather(-1, chosen).softmax(-1)


class Switch(TokenChoice):
    """The k experts of largest probability, each weighted by that probability: normalised before the choice alone.

    The weights sum to less than 1. Fedus et al. 2021, arXiv:2101.03961, eq. 2 (k = 1 there, any k here).
    """

    sums_to_one: ClassVar[bool] = False

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return scores.gather(-1, chosen)


class Noisy(TopK):
    """Top-k of logits + standard normal * softplus(noise x) while training, of the logits alone in evaluation.

    The noise is PyTorch's own, which a run seeds from (seed, step, rank): it resumes exactly, but another split into
    micro-batches or ranks draws other noise. `noise` starts at 0, so at a standard deviation of log 2. Shazeer et al.
    2017, arXiv:1701.06538, eq. 4; their load loss is not here, the balance loss sees the noisy scores.
    """

    def __init__(self, site: Site, num_experts: int, k: int) -> None:
        super().__init__(site, num_experts, k)
        self.noise = Logits(site, num_experts)
        torch.nn.init.zeros_(self.noise.weight)

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        logits = self.linear(x)
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(self.noise(x))
        return self.route(logits)


def refuse_one(k: int, name: str) -> None:
    if k == 1:
        raise ValueError(
            f"model.mlp.k=1 gives router={name} nothing to learn from (its one weight is always 1): "
            "take model/router=switch, or k >= 2"
        )
