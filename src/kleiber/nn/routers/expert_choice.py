"""Expert choice: experts choose tokens, which balances the load but makes a choice depend on later tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kleiber.nn.mup import Site
from kleiber.nn.routers.topk import Logits, check_sizes
from kleiber.types import ChosenExperts, NumExperts
from kleiber.types.batch import Batch, Routing
from kleiber.types.model import Router


class ExpertChoice(Router):
    """Each expert takes the ceil(k T / experts) tokens of a sequence of T that score highest with it.

    A token may visit no expert or all of them, on average k; its weights are its softmax scores. Experts choose within
    a sequence, so that the choice does not depend on how sequences are batched. Zhou et al. 2022, arXiv:2202.09368.
    Raises ValueError in a causal model, where a choice would depend on later tokens.

    acknowledge_leak  allows it in a causal model, whose loss is then not the likelihood of a text
    """

    sums_to_one: ClassVar[bool] = False
    needs_balance: ClassVar[bool] = False

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts, acknowledge_leak: bool = False) -> None:
        super().__init__()
        check_sizes(num_experts, k)
        if site.causal and not acknowledge_leak:
            raise ValueError(
                "model/router=expert_choice shows later tokens to a causal model: use model=bert with objective=mlm, "
                "another router, or model.mlp.router.acknowledge_leak=true"
            )
        self.k, self.linear = k, Logits(site, num_experts)

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        """The routing of every token to every expert, with `kept` True where the expert takes the token."""
        logits = self.linear(x)
        scores = logits.softmax(-1)
        rows, time = (1, len(x)) if batch is None else batch.tokens.shape
        real = None if batch is None else batch.real
        kept = self.choices(scores.detach().view(rows, time, -1), real).flatten(0, 1)
        experts = torch.arange(scores.shape[-1], device=x.device).expand_as(scores)
        return Routing(scores, experts, scores, logits, kept=kept)

    def choices(self, scores: Float[Tensor, "batch time experts"], real: Tensor | None) -> Tensor:
        """True where an expert takes a token, (batch, time, experts); padding ranks last and does not count in T."""
        _, time, experts = scores.shape
        if real is None:
            count = torch.full((1, 1, 1), time, device=scores.device)
        else:
            scores = scores.masked_fill(~real.unsqueeze(-1), -1.0)
            count = real.sum(1)[:, None, None]
        order = torch.argsort(scores, dim=1, descending=True, stable=True)
        ranks = torch.arange(time, device=scores.device)[None, :, None].expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, ranks)
        return rank < (self.k * count + experts - 1) // experts
