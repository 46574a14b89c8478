"""The experts themselves: SwiGLU layers of one size in two stacks of matrices, and how wide they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.nn.dispatch import Backend, dispatch
from kleiber.nn.mlp import gated_hidden
from kleiber.nn.parametrization import Site
from kleiber.types import Role, Routing


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
