"""The experts themselves: SwiGLU layers of one size in two stacks of matrices, and how wide they are.

A mixture of experts in place of an MLP: a router, experts, and sums that say how evenly they were used.

It refuses to keep statistics; losses and loads leave through the returned dict. How tokens reach their experts is in
`dispatch`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kleiber.nn.balance import Balance, PerSequence, assignments
from kleiber.nn.dispatch import Backend, dispatch
from kleiber.nn.mlp import Aux, SwiGLU, gated_hidden
from kleiber.nn.mup import Factory, Site
from kleiber.nn.routers.topk import TopK
from kleiber.types.batch import Batch, Role, Routing


class Experts(nn.Module):
    """Stacked SwiGLU experts: `gate_up` (experts, dim, 2 hidden) and `down` (experts, hidden, dim).

    k  assignments of a token, on average: what a token costs
    """

    def __init__(self, site: Site, num_experts: int, hidden: int, k: int, backend: Backend = "grouped") -> None:
        super().__init__()
        self.backend: Backend = backend
        p = site.parametrization
        self.k = k
        self.gate_up = nn.Parameter(torch.randn(num_experts, site.width, 2 * hidden) * p.hidden_std(site.width))
        self.down = nn.Parameter(torch.randn(num_experts, hidden, site.width) * p.projection_std(hidden, site.depth))

    def forward(self, x: Float[Tensor, "tokens dim"], routing: Routing) -> Float[Tensor, "tokens dim"]:
        return dispatch(self.backend, x, self.gate_up, self.down, routing)

    def roles(self) -> dict[str, Role]:
        return {
            "gate_up": Role("hidden", self.gate_up.shape[1]),
            "down": Role("hidden", self.down.shape[1]),
        }

    def flops(self, time: int) -> float:
        return 2.0 * self.k * (self.gate_up[0].numel() + self.down[0].numel())


def expert_hidden(width: int, active: int) -> int:
    """Hidden units at which `active` experts cost one dense SwiGLU, up to the next multiple of 8 (see grouped_mm)."""
    return -(-gated_hidden(width) // (8 * active)) * 8


def sizes(width: int, k: int, num_shared: int, granularity: int, hidden: int | None) -> int:
    """Hidden units of one expert: of equal active FLOPs where `hidden` is null, else that cut into `granularity`."""
    if granularity < 1:
        raise ValueError(f"model.mlp.granularity={granularity}: into how many an expert is cut, at least 1")
    if hidden is None:
        return expert_hidden(width, (k + num_shared) * granularity)
    if hidden < 1 or hidden % granularity:
        raise ValueError(
            f"model.mlp.hidden={hidden} must be at least 1 and a multiple of granularity={granularity}; "
            "leave it null for equal active FLOPs"
        )
    return hidden // granularity


class MoE(nn.Module):
    """sum_i w_i expert_i(x) over the k experts that the router chooses, plus experts that every token passes.

    num_experts, k  experts, and those a token visits; both times `granularity`
    num_shared   experts that every token passes, without a weight (Dai et al. 2024, arXiv:2401.06066)
    hidden       hidden units of one expert; null: so that the active experts together cost what the dense SwiGLU does
    balance      the balance loss and its coefficient
    z            coefficient of the router z-loss, logsumexp(logits)^2 (Zoph et al. 2022, arXiv:2202.08906, eq. 5)
    granularity  how many experts each is cut into, k with them: equal FLOPs and parameters, more combinations
                 (Krajewski et al. 2024, arXiv:2402.07871)
    backend      see `dispatch`
    """

    def __init__(
        self,
        site: Site,
        num_experts: int = 8,
        k: int = 2,
        num_shared: int = 0,
        hidden: int | None = None,
        router: Factory = TopK,
        balance: Balance = PerSequence(),  # noqa: B008 (frozen)
        z: float = 1e-3,
        granularity: int = 1,
        backend: Backend = "grouped",
    ) -> None:
        super().__init__()
        if num_shared < 0 or z < 0:
            raise ValueError(f"model.mlp: num_shared={num_shared} and z={z} cannot be negative")
        self.hidden = sizes(site.width, k, num_shared, granularity, hidden)
        self.num_experts, self.k, self.balance, self.z = num_experts * granularity, k * granularity, balance, z
        self.router = router(site, num_experts=self.num_experts, k=self.k)
        if balance.coefficient == 0 and self.router.needs_balance:
            told = "the balance loss of the experts is off (model.mlp.balance.coefficient=0): experts may die"
            warnings.warn(told, stacklevel=2)
        self.experts = Experts(site, self.num_experts, self.hidden, self.k, backend)
        self.shared = SwiGLU(site, num_shared * granularity * self.hidden) if num_shared else None

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        flat, real = x.flatten(0, 1), None if batch is None else batch.real
        routing: Routing = self.router(flat, batch)
        served = self.admit(routing, x.shape[:2], real)
        y = self.experts(flat, served).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)[0]
        return y, self._aux(routing, served, x.shape[:2], real)

    def admit(self, routing: Routing, shape: torch.Size, real: Bool[Tensor, "batch time"] | None) -> Routing:
        """The routing that the experts serve: all of it."""
        return routing

    def _aux(self, routing: Routing, served: Routing, shape: torch.Size, real: Tensor | None) -> Aux:
        """Sums over real tokens, as `types.Output` names them, and the weighted "loss"."""
        experts, scores = routing.experts.view(*shape, -1), routing.scores.view(*shape, -1)
        counted = None if routing.kept is None else routing.kept.view_as(experts)
        if real is not None:
            mask = real.unsqueeze(-1).expand_as(experts)
            counted = mask if counted is None else counted & mask
        hits = assignments(experts, self.num_experts, counted, scores.dtype)
        balance = self.balance(scores, hits, real)
        aux = {"loss": self.balance.coefficient * balance, "balance": balance, "load": hits.sum(0)}
        if routing.logits is not None:
            aux["z"] = over(routing.logits.logsumexp(-1).square(), real)
            aux["loss"] = aux["loss"] + self.z * aux["z"]
        if routing.margin is not None:
            aux["margin"] = over(routing.margin, real)
        if served is not routing and served.kept is not None:
            aux["drop"] = over((~served.kept).to(scores.dtype).mean(-1), real)
        return aux


class Dropping(MoE):
    """A mixture whose experts take at most ceil(capacity_factor k context / experts) tokens of a sequence.

    Who comes first is served, in the order of the text, so a drop depends on no later token and on no other sequence;
    a token that is dropped passes through the residual alone. In training only: in evaluation nothing is dropped, since
    a model that generates token by token does not know who came before. Switch (Fedus et al. 2021, arXiv:2101.03961,
    section 2.2) counts over a device's whole batch instead.
    """

    def __init__(
        self,
        site: Site,
        num_experts: int = 8,
        k: int = 2,
        num_shared: int = 0,
        hidden: int | None = None,
        router: Factory = TopK,
        balance: Balance = PerSequence(),  # noqa: B008 (frozen)
        z: float = 1e-3,
        granularity: int = 1,
        backend: Backend = "grouped",
        capacity_factor: float = 1.25,
    ) -> None:
        super().__init__(site, num_experts, k, num_shared, hidden, router, balance, z, granularity, backend)
        if capacity_factor <= 0:
            raise ValueError(f"model.mlp.capacity_factor={capacity_factor} must be positive; 1.25 is usual")
        if not hasattr(self.router, "route"):
            raise ValueError(
                f"model/mlp=dropping: the experts of {type(self.router).__name__} cannot be full; use model/mlp=moe"
            )
        self.capacity = -int(-capacity_factor * self.k * site.context // self.num_experts)

    def admit(self, routing: Routing, shape: torch.Size, real: Bool[Tensor, "batch time"] | None) -> Routing:
        if not self.training:
            return routing
        assert routing.kept is None, "experts that choose have a capacity already"
        chosen = routing.experts.view(shape[0], -1)
        asked = torch.zeros(*chosen.shape, self.num_experts, dtype=torch.int32, device=chosen.device)
        asked.scatter_(2, chosen.unsqueeze(-1), 1)
        if real is not None:
            asked *= real.repeat_interleave(routing.experts.shape[1], 1).unsqueeze(-1)
        place = asked.cumsum(1).gather(2, chosen.unsqueeze(-1)).squeeze(-1)
        return replace(routing, kept=(place <= self.capacity).view_as(routing.experts))


def over(values: Float[Tensor, "tokens"], real: Bool[Tensor, "batch time"] | None) -> Float[Tensor, ""]:
    """The sum over real tokens."""
    return values.sum() if real is None else (values * real.flatten()).sum()


def interleaved_moe(
    site: Site,
    num_experts: int = 8,
    k: int = 2,
    num_shared: int = 0,
    every: int = 1,
    hidden: int | None = None,
    router: Factory = TopK,
    balance: Balance = PerSequence(),  # noqa: B008 (frozen)
    z: float = 1e-3,
    granularity: int = 1,
    backend: Backend = "grouped",
    dense_first: int = 0,
) -> MoE | SwiGLU:
    """A mixture on layers every, 2 every, ... (counted from 1) after the first `dense_first`; SwiGLU on the others."""
    if is_dense(site, every, dense_first):
        return SwiGLU(site)
    return MoE(site, num_experts, k, num_shared, hidden, router, balance, z, granularity, backend)


def dropping_moe(
    site: Site,
    num_experts: int = 8,
    k: int = 2,
    num_shared: int = 0,
    every: int = 1,
    hidden: int | None = None,
    router: Factory = TopK,
    balance: Balance = PerSequence(),  # noqa: B008 (frozen)
    z: float = 1e-3,
    granularity: int = 1,
    backend: Backend = "grouped",
    dense_first: int = 0,
    capacity_factor: float = 1.25,
) -> MoE | SwiGLU:
    """As `interleaved`, with experts that drop what exceeds their capacity."""
    if is_dense(site, every, dense_first):
        return SwiGLU(site)
    return Dropping(site, num_experts, k, num_shared, hidden, router, balance, z, granularity, backend, capacity_factor)


def is_dense(site: Site, every: int, dense_first: int) -> bool:
    """Whether this layer has no mixture. Raises ValueError where none of the model's layers would have one."""
    if not 1 <= every <= site.depth:
        raise ValueError(f"model.mlp.every={every} leaves no mixture in {site.depth} layers: 1 <= every <= depth")
    if not 0 <= dense_first < site.depth // every * every:
        raise ValueError(f"model.mlp.dense_first={dense_first} leaves no mixture in {site.depth} layers: make it less")
    return site.layer < dense_first or (site.layer + 1) % every != 0
