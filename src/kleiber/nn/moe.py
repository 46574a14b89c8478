"""A mixture of experts in place of an MLP: route, sort by expert, one grouped product, put back, weigh.

No token is dropped and no expert is padded: what a step costs is what it computes. It refuses to keep statistics;
losses and loads leave through the returned dict. Expert parallelism across devices is not here.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.nn.mlp import Aux, SwiGLU, gated, gated_hidden
from kleiber.nn.parametrization import Factory, Site
from kleiber.nn.routers import TopK
from kleiber.types import Role, Routing


class MoE(nn.Module):
    """sum_i w_i expert_i(x) over the k experts that the router chooses, plus experts that every token passes.

    num_shared  experts that every token passes, without a weight (Dai et al. 2024, arXiv:2401.06066)
    hidden      hidden units of one expert; null: so that the active experts together cost what the dense SwiGLU does
    balance     coefficient of the balance loss (1 when uniform, per sequence)
    z           coefficient of the router z-loss, logsumexp(logits)^2 (Zoph et al. 2022, arXiv:2202.08906, eq. 5)
    """

    def __init__(
        self,
        site: Site,
        num_experts: int = 8,
        k: int = 2,
        num_shared: int = 0,
        hidden: int | None = None,
        router: Factory = TopK,
        balance: float = 0.01,
        z: float = 1e-3,
    ) -> None:
        super().__init__()
        if num_shared < 0 or balance < 0 or z < 0:
            raise ValueError(f"num_shared={num_shared}, balance={balance}, z={z}: none of them can be negative")
        if balance == 0:
            warnings.warn("the balance loss of the experts is off (model.mlp.balance=0): experts may die", stacklevel=2)
        self.hidden = expert_hidden(site.width, k + num_shared) if hidden is None else hidden
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden} must be at least 1; leave it null for equal active FLOPs")
        self.num_experts, self.k, self.balance, self.z = num_experts, k, balance, z
        self.router = router(site, num_experts=num_experts, k=k)
        self.experts = Experts(site, num_experts, self.hidden, k)
        self.shared = SwiGLU(site, num_shared * self.hidden) if num_shared else None

    def forward(
        self, x: Float[Tensor, "batch time dim"], real: Bool[Tensor, "batch time"] | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], Aux]:
        flat = x.flatten(0, 1)
        routing: Routing = self.router(flat)
        y = self.experts(flat, routing).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)[0]
        return y, self._aux(routing, x.shape[:2], real)

    def _aux(self, routing: Routing, shape: torch.Size, real: Tensor | None) -> Aux:
        """Sums over real tokens: "balance", "z", their weighted "loss", and the assignments per expert "load"."""
        balance, load = balance_loss(routing.scores.view(*shape, -1), routing.experts.view(*shape, -1), real)
        squares = routing.logits.logsumexp(-1).square().view(shape)
        z = (squares if real is None else squares * real).sum()
        return {"loss": self.balance * balance + self.z * z, "balance": balance, "z": z, "load": load}


class Experts(nn.Module):
    """Stacked SwiGLU experts: `gate_up` (experts, dim, 2 hidden) and `down` (experts, hidden, dim)."""

    def __init__(self, site: Site, num_experts: int, hidden: int, k: int) -> None:
        super().__init__()
        p = site.parametrization
        self.k = k
        self.gate_up = nn.Parameter(torch.randn(num_experts, site.width, 2 * hidden) * p.hidden_std(site.width))
        self.down = nn.Parameter(torch.randn(num_experts, hidden, site.width) * p.projection_std(hidden, site.depth))

    def forward(self, x: Float[Tensor, "tokens dim"], routing: Routing) -> Float[Tensor, "tokens dim"]:
        flat = routing.experts.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        counts = torch.zeros(len(self.down), dtype=torch.int32, device=x.device)
        counts = counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32))
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows = Spread.apply(x.to(dtype), order, inverse, self.k)
        hidden = gated(grouped_mm(rows, self.gate_up.to(dtype), counts))
        y = grouped_mm(hidden, self.down.to(dtype), counts)
        y = Spread.apply(y, inverse, order, 1).unflatten(0, (-1, self.k))
        return (y * routing.weights.to(dtype).unsqueeze(-1)).sum(1)

    def roles(self) -> dict[str, Role]:
        return {
            "gate_up": Role("hidden", self.gate_up.shape[1]),
            "down": Role("hidden", self.down.shape[1]),
        }

    def flops(self, time: int) -> float:
        return 2.0 * self.k * (self.gate_up[0].numel() + self.down[0].numel())


class Spread(torch.autograd.Function):
    """rows[i] = x[order[i] // k], its gradient by the inverse permutation: gathers only, no atomic or serial adds."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order if k == 1 else order // k)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = grad.index_select(0, inverse)
        return rows if ctx.k == 1 else rows.unflatten(0, (-1, ctx.k)).sum(1), None, None, None


def grouped_mm(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "experts in out"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "rows out"]:
    """Rows of expert e, one after another, times weight[e]. Without rows its gradient is 0, not None."""
    if _grouped_is_legal(rows, weight):
        return F.grouped_mm(rows, weight, offs=counts.cumsum(0, dtype=torch.int32))
    parts = rows.split(counts.tolist())
    return torch.cat([part @ matrix for part, matrix in zip(parts, weight.unbind(0), strict=True)])


def _grouped_is_legal(rows: Tensor, weight: Tensor) -> bool:
    """Rows of both operands must be multiples of 16 bytes; fp64 has no kernel, and fp32 none under torch.compile."""
    if rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    aligned = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])
    return aligned and (rows.dtype == torch.bfloat16 or not torch.compiler.is_compiling())


def balance_loss(
    scores: Float[Tensor, "batch time experts"],
    chosen: Int[Tensor, "batch time k"],
    real: Bool[Tensor, "batch time"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "experts"]]:
    """Load-balancing loss, sum_s n_s (experts * sum_e f_se p_se), and the assignments per expert, over real tokens.

    f_se is the share of the (token, slot) assignments of sequence s that went to expert e, p_se the mean probability
    there, n_s its real tokens; so the mean per token is 1 when routing is uniform, for any k, and sums over sequences
    do not depend on how they were batched. Differentiable through p only. Fedus et al. 2021, arXiv:2101.03961, eq. 4
    (k = 1 and one mean over the batch there).
    """
    batch, time, experts = scores.shape
    k = chosen.shape[-1]
    hits = scores.new_ones(batch, time) if real is None else real.to(scores.dtype)
    counts = scores.new_zeros(batch, experts)
    counts = counts.scatter_add(1, chosen.flatten(1), hits.repeat_interleave(k, 1))
    mass = (scores if real is None else scores * real.unsqueeze(-1)).sum(1)
    tokens = hits.sum(1).clamp(min=1)
    return experts * (counts * mass / (k * tokens).unsqueeze(-1)).sum(), counts.sum(0)


def expert_hidden(width: int, active: int) -> int:
    """Hidden units at which `active` experts cost one dense SwiGLU, up to the next multiple of 8 (see grouped_mm)."""
    return -(-gated_hidden(width) // (8 * active)) * 8


def interleaved(
    site: Site,
    num_experts: int = 8,
    k: int = 2,
    num_shared: int = 0,
    every: int = 1,
    hidden: int | None = None,
    router: Factory = TopK,
    balance: float = 0.01,
    z: float = 1e-3,
) -> MoE | SwiGLU:
    """A mixture on layers every, 2 every, ... (counted from 1), and a dense SwiGLU on the others."""
    if not 1 <= every <= site.depth:
        raise ValueError(f"model.mlp.every={every} leaves no mixture in {site.depth} layers: 1 <= every <= depth")
    if (site.layer + 1) % every:
        return SwiGLU(site)
    return MoE(site, num_experts, k, num_shared, hidden, router, balance, z)
