"""Balanced assignment while training, plain top-k in evaluation: the gap between the two is what one pays.

The plan is computed within a sequence, from all its tokens: a choice in training depends on later tokens, as in expert
choice, though the weights do not. In evaluation nothing leaks, so held-out losses are those of a causal model.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.router import TokenChoice
from kleiber.types.batch import Batch, Routing


class Sinkhorn(TokenChoice):
    """The k experts of largest entry in the transport plan of the logits; weights are sigmoid(logit).

    The plan exp(logits), scaled in turns so that each token has mass 1 and each expert T / experts, is no part of the
    gradient. Clark et al. 2022, arXiv:2202.01169, appendix B.2.1 (S-BASE, k = 1 there).

    iterations  scalings of rows and columns
    """

    sums_to_one: ClassVar[bool] = False
    needs_balance: ClassVar[bool] = False

    def __init__(self, site: Site, num_experts: int, k: int, iterations: int = 8) -> None:
        super().__init__(site, num_experts, k)
        if iterations < 1:
            raise ValueError(f"model.mlp.router.iterations={iterations}: at least 1; without it take switch")
        self.iterations = iterations

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        logits = self.linear(x)
        if not self.training:
            return self.route(logits)
        rows, time = (1, len(x)) if batch is None else batch.tokens.shape
        real = None if batch is None else batch.real
        plan = self.plan(logits.detach().view(rows, time, -1), real).flatten(0, 1)
        return self.route(logits, plan.topk(self.k, -1).indices)

    def plan(self, logits: Float[Tensor, "batch time experts"], real: Tensor | None) -> Tensor:
        """log of the plan, over the real tokens of each sequence."""
        hidden = None if real is None else ~real.unsqueeze(-1)
        for _ in range(self.iterations):
            seen = logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
            logits = logits - seen.logsumexp(1, keepdim=True).nan_to_num(neginf=0.0)
            logits = logits - logits.logsumexp(2, keepdim=True)
        return logits

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return logits.gather(-1, chosen).sigmoid()
