"""Balance losses: what keeps the load of the experts even, as sums over tokens, so that they add up like every loss.

They differ in which tokens the share f of an expert is taken over. None of them is a router's business, and none keeps
a statistic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Balance(Protocol):
    """A balance loss and its coefficient. The loss is a sum over real tokens, of mean 1 when routing is uniform."""

    @property
    def coefficient(self) -> float: ...
    def __call__(
        self, scores: Float[Tensor, "batch time experts"], hits: Float[Tensor, "batch experts"], real: Tensor | None
    ) -> Float[Tensor, ""]: ...


@dataclass(frozen=True)
class PerSequence:
    """sum_s n_s (experts * sum_e f_se p_se): shares within each sequence of n_s real tokens.

    f_se is the share of the (token, slot) assignments of sequence s that went to expert e, p_se the mean score there;
    so a mean per token is 1 when routing is uniform, for any k, and sums over sequences do not depend on how they were
    batched. Differentiable through p only. Fedus et al. 2021, arXiv:2101.03961, eq. 4 (k = 1 and one mean over the
    batch there).
    """

    coefficient: float = 0.01

    def __post_init__(self) -> None:
        _check(self.coefficient)

    def __call__(
        self, scores: Float[Tensor, "batch time experts"], hits: Float[Tensor, "batch experts"], real: Tensor | None
    ) -> Float[Tensor, ""]:
        mass = (scores if real is None else scores * real.unsqueeze(-1)).sum(1)
        share = hits / hits.sum(-1, keepdim=True).clamp(min=1)
        return scores.shape[-1] * (share * mass).sum()


@dataclass(frozen=True)
class Global:
    """n (experts * sum_e f_e p_e): shares over the whole micro-batch of all ranks, whose counts are added up.

    Experts may specialise by sequence, which `PerSequence` punishes. Another split into micro-batches gives another
    loss; the same split on more ranks the same one. In evaluation each rank counts alone. Qiu et al. 2025,
    arXiv:2501.11873.
    """

    coefficient: float = 0.01

    def __post_init__(self) -> None:
        _check(self.coefficient)

    def __call__(
        self, scores: Float[Tensor, "batch time experts"], hits: Float[Tensor, "batch experts"], real: Tensor | None
    ) -> Float[Tensor, ""]:
        counts = hits.sum(0)
        if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            counts = counts.detach().clone()
            dist.all_reduce(counts)
        mass = (scores if real is None else scores * real.unsqueeze(-1)).sum((0, 1))
        return scores.shape[-1] * (counts / counts.sum().clamp(min=1) * mass).sum()


def load_balance_loss(scope: Literal["sequence", "global"] = "sequence", coefficient: float = 0.01) -> Balance:
    """The balance loss over each sequence, or over the batch."""
    return {"sequence": PerSequence, "global": Global}[scope](coefficient)


def assignments(
    experts: Int[Tensor, "batch time k"],
    num_experts: int,
    counted: Bool[Tensor, "batch time k"] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "batch experts"]:
    """Assignments per sequence and expert, of those that are counted."""
    ones = torch.ones_like(experts, dtype=dtype) if counted is None else counted.to(dtype)
    counts = torch.zeros(len(experts), num_experts, dtype=dtype, device=experts.device)
    return counts.scatter_add(1, experts.flatten(1), ones.flatten(1))


def _check(coefficient: float) -> None:
    if coefficient < 0:
        raise ValueError(f"model.mlp.balance.coefficient={coefficient} cannot be negative; 0.01 is usual")
