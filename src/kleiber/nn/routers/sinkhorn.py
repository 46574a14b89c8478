"""Sinkhorn routing: balanced assignment in training, top-k in evaluation.

In training, the transport plan of a sequence is computed from all its tokens, so the choice of experts depends on later
tokens, as in expert choice; the weights do not. In evaluation it does not, so held-out losses are those of a causal
model.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.topk import TokenChoice
from kleiber.types import ChosenExperts, NumExperts
from kleiber.types.batch import Batch, Routing


class Sinkhorn(TokenChoice):
    """The k experts with the largest entries in the transport plan of the logits, weighted by sigmoid(logit).

    The plan is exp(logits), rescaled alternately so that each token has mass 1 and each expert T / experts; it has no
    gradient. Clark et al. 2022, arXiv:2202.01169, appendix B.2.1 (S-BASE, there k = 1).

    iterations  number of scalings of rows and columns
    """

    sums_to_one: ClassVar[bool] = False
    needs_balance: ClassVar[bool] = False

    def __init__(
        self, site: Site, num_experts: NumExperts, k: ChosenExperts, iterations: Annotated[int, Ge(1), Le(10_000)] = 8
    ) -> None:
        super().__init__(site, num_experts, k)
        self.iterations = iterations

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        """The routing by the plan of each sequence in training, by the logits in evaluation."""
        logits = self.linear(x)
        if not self.training:
            return self.route(logits)
        rows, time = (1, len(x)) if batch is None else batch.tokens.shape
        real = None if batch is None else batch.real
        plan = self.plan(logits.detach().view(rows, time, -1), real).flatten(0, 1)
        return self.route(logits, plan.topk(self.k, -1).indices)

    def plan(self, logits: Float[Tensor, "batch time experts"], real: Tensor | None) -> Tensor:
        """The logarithm of the transport plan over the real tokens of each sequence, (batch, time, experts)."""
        hidden = None if real is None else ~real.unsqueeze(-1)
        for _ in range(self.iterations):
            visible = logits if hidden is None else logits.masked_fill(hidden, -torch.inf)
            logits = logits - visible.logsumexp(1, keepdim=True).nan_to_num(neginf=0.0)
            logits = logits - logits.logsumexp(2, keepdim=True)
        return logits

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return logits.gather(-1, chosen).sigmoid()
