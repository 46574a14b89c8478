"""Routers in which each token chooses k experts: their base class, and those whose scores are a softmax."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.nn.mup import Site
from kleiber.nn.precision import without_autocast
from kleiber.types import ChosenExperts, NumExperts
from kleiber.types.batch import Batch, Role, Routing
from kleiber.types.model import Layer, Router


class TokenChoice(Router):
    """Sends each token to the k experts of largest `priority`; subclasses define the `scores` and the `weights`."""

    by_logits: ClassVar[bool] = True

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts) -> None:
        super().__init__()
        check_sizes(num_experts, k)
        self.k = k
        self.linear = Logits(site, num_experts)

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        return self.route(self.linear(x))

    def route(self, logits: Float[Tensor, "tokens experts"], experts: Int[Tensor, "tokens k"] | None = None) -> Routing:
        """The routing by these logits; `experts`, where passed, replaces the choice, and only weights are computed."""
        scores = self.scores(logits)
        with torch.no_grad():
            priority = self.priority(logits)
            ranked = priority.topk(min(self.k + 1, logits.shape[-1]), -1).indices
            values = self.margin_values(scores, priority).gather(-1, ranked[:, self.k - 1 :])
            margin = values[:, 0] - values[:, 1] if values.shape[1] == 2 else None
        chosen = ranked[:, : self.k].contiguous() if experts is None else experts
        return Routing(self.weights(logits, scores, chosen), chosen, scores, logits, margin)

    def priority(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        """Values (tokens, experts) by which experts are chosen: a token goes to the k experts of largest value."""
        return logits

    def margin_values(self, scores: Tensor, priority: Tensor) -> Float[Tensor, "tokens experts"]:
        """The values whose k-th and next largest entries differ by the routing margin."""
        return scores

    def scores(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        """Probabilities of the experts (tokens, experts), which sum to 1 per token, for the balance loss."""
        return logits.softmax(-1)

    def weights(
        self, logits: Float[Tensor, "tokens experts"], scores: Float[Tensor, "tokens experts"], chosen: Tensor
    ) -> Float[Tensor, "tokens k"]:
        """The weights of the chosen experts."""
        raise NotImplementedError


class Logits(Layer):
    """multiplier * weight x, in fp32 also under autocast, because rounding would change which experts are chosen."""

    def __init__(self, site: Site, num_experts: int) -> None:
        super().__init__()
        std, self.multiplier = site.parametrization.router(site.width)
        self.weight = nn.Parameter(torch.randn(num_experts, site.width) * std)

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens experts"]:
        with without_autocast(x.device):
            dtype = torch.promote_types(x.dtype, torch.float32)
            return (x.to(dtype) @ self.weight.to(dtype).T) * self.multiplier

    def roles(self) -> dict[str, Role]:
        return {"weight": Role("output", self.weight.shape[1])}

    def flops(self, time: int) -> float:
        return 2.0 * self.weight.numel()


def check_sizes(num_experts: int, k: int) -> None:
    """Raises ValueError unless k is from 1 to the number of experts."""
    if not 1 <= k <= num_experts:
        raise ValueError(f"model.mlp.k={k} must be from 1 to model.mlp.num_experts={num_experts}")


class TopK(TokenChoice):
    """The k experts of largest logit, weighted by a softmax over those k; the weights sum to 1.

    Equal to a softmax over all experts that is renormalized over the chosen ones. Mixtral: Jiang et al. 2024,
    arXiv:2401.04088, eq. 2. Raises ValueError at k = 1, where the weight would always be 1 and the router would learn
    from the balance loss only; use `Switch` there.
    """

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts) -> None:
        super().__init__(site, num_experts, k)
        refuse_single_expert(k, "topk")

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return logits.gather(-1, chosen).softmax(-1)


class Switch(TokenChoice):
    """The k experts of largest probability, weighted by that probability, so that the weights sum to less than 1.

    Fedus et al. 2021, arXiv:2101.03961, eq. 2 (there k = 1, here any k).
    """

    sums_to_one: ClassVar[bool] = False

    def weights(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens k"]:
        return scores.gather(-1, chosen)


class Noisy(TopK):
    """Top-k of logits + standard normal * softplus(noise x) in training, of the logits in evaluation.

    PyTorch's generator, which a run seeds from (seed, step, rank), draws the noise: a run resumes exactly, but another
    split into micro-batches or ranks draws different noise. `noise` starts at 0, where the standard deviation is log 2.
    Shazeer et al. 2017, arXiv:1701.06538, eq. 4, without their load loss: the balance loss is computed from the noisy
    scores.
    """

    matrices: ClassVar[int] = 2

    def __init__(self, site: Site, num_experts: NumExperts, k: ChosenExperts) -> None:
        super().__init__(site, num_experts, k)
        self.noise = Logits(site, num_experts)
        torch.nn.init.zeros_(self.noise.weight)

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        logits = self.linear(x)
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(self.noise(x))
        return self.route(logits)


def refuse_single_expert(k: int, name: str) -> None:
    """Raises ValueError at k = 1, for routers whose weights sum to 1; `name` is that of the router in configs."""
    if k == 1:
        raise ValueError(
            f"model.mlp.k=1 leaves model/router={name} without a gradient, since its weight is always 1: "
            "use model/router=switch, or k >= 2"
        )
