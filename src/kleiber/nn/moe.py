"""A mixture of experts in place of an MLP: a router, experts and a load-balancing loss.

The layer keeps no statistics: losses and loads per expert are in the dict that it returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.nn.dispatch import Backend, Experts
from kleiber.nn.mlp import Aux, SwiGLU, expert_sizes
from kleiber.nn.mup import Site
from kleiber.nn.routers.topk import TokenChoice, TopK
from kleiber.types import ChosenExperts, Depth, Natural, NonNegative, NumExperts, Positive, SharedExperts, Width
from kleiber.types.batch import Batch, Routing
from kleiber.types.model import MLP, Router
from kleiber.types.ranks import world_size


@runtime_checkable
class Balance(Protocol):
    """A load-balancing loss summed over real tokens, scaled so that the mean per token is 1 for uniform routing."""

    @property
    def coefficient(self) -> float: ...
    def __call__(
        self, scores: Float[Tensor, "batch time experts"], hits: Float[Tensor, "batch experts"], real: Tensor | None
    ) -> Float[Tensor, ""]: ...


@dataclass(frozen=True)
class PerSequence:
    """sum_s n_s (experts * sum_e f_se p_se), with shares taken within each sequence s of n_s real tokens.

    f_se is the share of the (token, slot) assignments of sequence s that went to expert e, p_se the mean score of that
    expert. The mean per token is 1 for uniform routing at any k, and the sum does not depend on how sequences are
    batched. Only p has a gradient. Fedus et al. 2021, arXiv:2101.03961, eq. 4 (there k = 1 and one mean over
    the batch).
    """

    coefficient: NonNegative = 0.01

    def __call__(
        self, scores: Float[Tensor, "batch time experts"], hits: Float[Tensor, "batch experts"], real: Tensor | None
    ) -> Float[Tensor, ""]:
        mass = (scores if real is None else scores * real.unsqueeze(-1)).sum(1)
        share = hits / hits.sum(-1, keepdim=True).clamp(min=1)
        return scores.shape[-1] * (share * mass).sum()


@dataclass(frozen=True)
class Global:
    """n (experts * sum_e f_e p_e), with shares taken over the micro-batches of all ranks together.

    Experts may specialize by sequence, which `PerSequence` penalizes. The loss depends on the split into micro-batches,
    but not on the number of ranks; in evaluation each rank uses its own counts. Qiu et al. 2025, arXiv:2501.11873.
    """

    coefficient: NonNegative = 0.01

    def __call__(
        self, scores: Float[Tensor, "batch time experts"], hits: Float[Tensor, "batch experts"], real: Tensor | None
    ) -> Float[Tensor, ""]:
        counts = hits.sum(0)
        if torch.is_grad_enabled() and world_size() > 1:
            counts = counts.detach().clone()
            dist.all_reduce(counts)
        mass = (scores if real is None else scores * real.unsqueeze(-1)).sum((0, 1))
        return scores.shape[-1] * (counts / counts.sum().clamp(min=1) * mass).sum()


def counts_over_ranks(model: nn.Module) -> bool:
    """Whether each forward pass with gradients waits for those of the other ranks, to count their assignments."""
    return world_size() > 1 and any(
        isinstance(module, MoE) and isinstance(module.balance, Global) for module in model.modules()
    )


def load_balance_loss(scope: Literal["sequence", "global"] = "sequence", coefficient: NonNegative = 0.01) -> Balance:
    """The balance loss whose shares are taken over each sequence, or over the micro-batches of all ranks (`global`)."""
    return {"sequence": PerSequence, "global": Global}[scope](coefficient)


def assignments(
    experts: Int[Tensor, "batch time k"],
    num_experts: int,
    counted: Bool[Tensor, "batch time k"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "batch experts"]:
    """Number of assignments per sequence and expert; those where `counted` is False are left out."""
    ones = torch.ones_like(experts, dtype=dtype) if counted is None else counted.to(dtype)
    counts = torch.zeros(len(experts), num_experts, dtype=dtype, device=experts.device)
    return counts.scatter_add(1, experts.flatten(1), ones.flatten(1))


class MoE(MLP):
    """sum_i w_i expert_i(x) over the k experts that the router chooses, plus shared experts.

    num_experts, k  number of experts, and number that each token visits; `granularity` multiplies both
    num_shared   experts that every token visits, with weight 1 (Dai et al. 2024, arXiv:2401.06066)
    hidden       hidden units of one expert; null: the active experts together cost as much as a dense SwiGLU
    balance      the balance loss and its coefficient
    z            coefficient of the router z-loss, logsumexp(logits)^2 (Zoph et al. 2022, arXiv:2202.08906, eq. 5)
    granularity  parts that each expert is cut into, at equal FLOPs and parameters (Krajewski et al. 2024,
                 arXiv:2402.07871)
    backend      grouped, loop or dense: see `kleiber.nn.dispatch`
    capacity_factor  in training, an expert takes at most ceil(capacity_factor k context / experts) tokens of each
                 sequence (`admit`); null: all tokens
    """

    routes = True

    def __init__(
        self,
        site: Site,
        num_experts: NumExperts = 8,
        k: ChosenExperts = 2,
        num_shared: SharedExperts = 0,
        hidden: Width | None = None,
        router: Callable[..., Router] = TopK,
        balance: Balance = PerSequence(),
        z: NonNegative = 1e-3,
        granularity: ChosenExperts = 1,
        backend: Backend = "grouped",
        capacity_factor: Positive | None = None,
    ) -> None:
        super().__init__()
        self.hidden = expert_sizes(site.width, k, num_shared, granularity, hidden)
        self.num_experts, self.k, self.balance, self.z = num_experts * granularity, k * granularity, balance, z
        self.router: Router = router(site, num_experts=self.num_experts, k=self.k)
        if balance.coefficient == 0 and self.router.needs_balance:
            warnings.warn(
                "model.mlp.balance.coefficient=0 turns the balance loss off: some experts may stop receiving tokens",
                stacklevel=2,
            )
        self.capacity: int | None = None
        if capacity_factor is not None:
            if not isinstance(self.router, TokenChoice):
                raise ValueError(
                    f"model.mlp.capacity_factor={capacity_factor:g} needs a learned router in which tokens choose "
                    f"experts, and {type(self.router).__name__} is not one: remove it"
                )
            self.capacity = -int(-capacity_factor * self.k * site.context // self.num_experts)
        self.experts = Experts(site, self.num_experts, self.hidden, self.k, backend)
        self.shared = SwiGLU(site, num_shared * granularity * self.hidden) if num_shared else None

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        """Returns the output to add to the residual stream, and the auxiliary sums (see `Output`).

        batch  the batch that x is computed from; its padding is left out of the sums. None: x has no padding
        """
        flat, real = x.flatten(0, 1), None if batch is None else batch.real
        routing: Routing = self.router(flat, batch)
        served = self.admit(routing, x.shape[:2], real)
        y = self.experts(flat, served).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)[0]
        return y, self._aux(routing, served, x.shape[:2], real)

    def admit(self, routing: Routing, shape: torch.Size, real: Bool[Tensor, "batch time"] | None) -> Routing:
        """The routing with `kept` False for the assignments beyond the capacity of an expert; all in evaluation.

        Tokens are served in the order of the text, so that a drop depends neither on later tokens nor on other
        sequences. A token that is dropped by all its experts only passes through the residual stream. In evaluation no
        token is dropped, because a model that generates token by token does not know the earlier assignments. Switch
        (Fedus et al. 2021, arXiv:2101.03961, section 2.2) counts over a device's whole batch instead.
        """
        if self.capacity is None or not self.training:
            return routing
        assert routing.kept is None, "routers in which experts choose tokens limit their capacity themselves"
        chosen = routing.experts.view(shape[0], -1)
        requests = torch.zeros(*chosen.shape, self.num_experts, dtype=torch.int32, device=chosen.device)
        requests.scatter_(2, chosen.unsqueeze(-1), 1)
        if real is not None:
            requests *= real.repeat_interleave(routing.experts.shape[1], 1).unsqueeze(-1)
        place = requests.cumsum(1).gather(2, chosen.unsqueeze(-1)).squeeze(-1)
        return replace(routing, kept=(place <= self.capacity).view_as(routing.experts))

    def rebalance(self, load: Float[Tensor, "experts"] | None) -> None:
        self.router.rebalance(load)

    def _aux(self, routing: Routing, served: Routing, shape: torch.Size, real: Tensor | None) -> Aux:
        """Auxiliary sums over real tokens, by the names in `Output`; "loss" has the weighted losses."""
        experts, scores = routing.experts.view(*shape, -1), routing.scores.view(*shape, -1)
        counted = None if routing.kept is None else routing.kept.view_as(experts)
        if real is not None:
            mask = real.unsqueeze(-1).expand_as(experts)
            counted = mask if counted is None else counted & mask
        hits = assignments(experts, self.num_experts, counted, scores.dtype)
        balance = self.balance(scores, hits, real)
        aux = {"loss": self.balance.coefficient * balance, "balance": balance, "load": hits.sum(0)}
        if routing.logits is not None:
            aux["z"] = sum_real(routing.logits.logsumexp(-1).square(), real)
            aux["loss"] = aux["loss"] + self.z * aux["z"]
        if routing.margin is not None:
            aux["margin"] = sum_real(routing.margin, real)
        if served is not routing and served.kept is not None:
            aux["drop"] = sum_real((~served.kept).to(scores.dtype).mean(-1), real)
        return aux


def sum_real(values: Float[Tensor, "tokens"], real: Bool[Tensor, "batch time"] | None) -> Float[Tensor, ""]:
    """The sum of the values of real tokens."""
    return values.sum() if real is None else (values * real.flatten()).sum()


def interleaved_moe(
    site: Site,
    num_experts: NumExperts = 8,
    k: ChosenExperts = 2,
    num_shared: SharedExperts = 0,
    every: Depth = 1,
    hidden: Width | None = None,
    router: Callable[..., Router] = TopK,
    balance: Balance = PerSequence(),
    z: NonNegative = 1e-3,
    granularity: ChosenExperts = 1,
    backend: Backend = "grouped",
    dense_first: Natural = 0,
    capacity_factor: Positive | None = None,
) -> MoE | SwiGLU:
    """Builds the MLP of one layer: a mixture of experts in layers every, 2 every, ... counted from 1, else SwiGLU.

    site         position and sizes of the layer
    dense_first  number of first layers that are SwiGLU in any case

    The arguments that are not listed here are those of `MoE`. Raises ValueError where no layer of the model would have
    experts.
    """
    if is_dense(site, every, dense_first):
        return SwiGLU(site)
    return MoE(site, num_experts, k, num_shared, hidden, router, balance, z, granularity, backend, capacity_factor)


def is_dense(site: Site, every: int, dense_first: int) -> bool:
    """Whether the layer at `site` has a dense MLP instead of experts, with the arguments of `interleaved_moe`.

    Raises ValueError if no layer of the model would have experts.
    """
    if every > site.depth:
        raise ValueError(f"model.mlp.every={every} must be <= {site.depth}, the number of layers")
    if dense_first >= site.depth // every * every:
        raise ValueError(
            f"model.mlp.dense_first={dense_first} must be <= {site.depth // every * every - 1}: "
            f"of {site.depth} layers at least one must hold experts"
        )
    return site.layer < dense_first or (site.layer + 1) % every != 0
