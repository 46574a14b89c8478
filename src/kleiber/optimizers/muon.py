"""Muon for the matrices of the blocks, experts included, with fused AdamW for all other parameters.

Matrices that are stored as one (queries, keys and values; gate and up) are orthogonalized as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated

import torch
import torch.distributed as dist
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from kleiber.nn.sharding import is_sharded, local
from kleiber.optimizers.adamw import (
    Closure,
    DecayKind,
    ParameterGroup,
    call_closure,
    parameter_groups,
    with_decay,
)
from kleiber.types import Decay, NonNegative, Positive
from kleiber.types.batch import Role
from kleiber.types.model import LearningRateScale

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic, steepest at 0; torch.optim.Muon has the same
TINY = 1e-7


@dataclass(frozen=True)
class Muon:
    """Muon: w -= lr (.2 sqrt(max(rows, columns)) O + weight_decay w), where O is the orthogonalized momentum.

    lr        base learning rate of all parameters; the factor .2 gives steps of the same RMS as those of AdamW (Liu et
              al. 2025, arXiv:2502.16982, eq. 4), so the rate of AdamW can be kept
    momentum  of the matrices, with Nesterov's look-ahead (Jordan et al. 2024, kellerjordan.github.io/posts/muon)
    steps     Newton-Schulz iterations, in bf16
    betas, eps  of AdamW, which trains embeddings, head, router, gains and biases
    clip      largest global norm of the gradients; null: no clipping
    decay     kind of weight decay, as in `AdamW`

    With muP, the largest singular value of a step over sqrt(fan_out / fan_in) must not grow with the width (Yang et al.
    2023, arXiv:2310.17813). That of O is 1 and sqrt(max(rows, columns)) grows as sqrt(width). So the width enters the
    learning-rate scale of a matrix as sqrt(base_width / fan_in), the *square root* of Adam's, unless its number of
    outputs is fixed, as LoRA's rank is; lr x weight_decay is the same at every width.
    """

    lr: Positive = 0.02
    momentum: Decay = 0.95
    steps: Annotated[int, Ge(1), Le(99)] = 5
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: NonNegative = 0.0
    eps: Positive = 1e-8
    clip: Positive | None = 1.0
    decay: DecayKind = "decoupled"

    def build(self, model: nn.Module, roles: dict[str, Role], lr_scale: LearningRateScale) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameter groups of a model."""
        dims = {name: p.dim() for name, p in model.named_parameters()}
        kinds: dict[int, set[str]] = {0: set(), 2: set(), 3: set()}
        for name, dim in dims.items():
            kinds[dim if roles[name].kind == "hidden" and dim in (2, 3) else 0].add(name)
        of_muon = partial(lr_scale, rule="muon")
        matrices, stacks, rest = (
            parameter_groups(model, roles, scale, self.lr, self.weight_decay, only=kinds[kind], decay=self.decay)
            for kind, scale in ((2, of_muon), (3, of_muon), (0, lr_scale))
        )
        built: list[torch.optim.Optimizer] = []
        if any(is_sharded(parameter) for group in matrices for parameter in group["params"]):
            built.append(ShardedMuon(matrices, self.momentum, self.steps))
        elif matrices:
            options = {"momentum": self.momentum, "ns_steps": self.steps, "weight_decay": self.weight_decay}
            built.append(torch.optim.Muon(matrices, lr=self.lr, adjust_lr_fn="match_rms_adamw", **options))
        if stacks:
            built.append(StackedMuon(stacks, self.momentum, self.steps))
        if rest:
            built.append(torch.optim.AdamW(rest, lr=self.lr, betas=self.betas, eps=self.eps, fused=True))
        return with_decay(CombinedOptimizer(model, built))


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one, with the parameter groups and the state of all of them."""

    def __init__(self, model: nn.Module, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state
        parameters = [id(p) for group in self.param_groups for p in group["params"]]
        assert sorted(parameters) == sorted(id(p) for p in model.parameters() if p.requires_grad), (
            "every parameter in one group"
        )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters; returns the loss of `closure`, or None without one."""
        loss = call_closure(closure)
        for part in self.parts:
            part.step()
        return loss


class StackedMuon(torch.optim.Optimizer):
    """torch.optim.Muon for stacks of matrices (experts, in, out), each of which is orthogonalized by itself.

    Stacks may be sharded along their first axis, so that a rank has all of its experts' matrices.
    """

    def __init__(self, groups: list[ParameterGroup], momentum: float, steps: int) -> None:
        super().__init__(groups, {"momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters; a closure is not supported."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            averages = (self.look_ahead(p, group["momentum"]) for p in parameters)
            directions = self.directions(averages, group["steps"])
            for p, direction in zip(parameters, directions, strict=True):
                weights, size = local(p), 0.2 * math.sqrt(max(p.shape[-2:]))
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.add_(direction, alpha=-group["lr"] * size)

    def look_ahead(self, parameter: Tensor, decay: float) -> Tensor:
        """Updates the momentum of a parameter, and returns Nesterov's average of it and the gradient."""
        assert parameter.grad is not None
        momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        momentum.lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(momentum, decay)

    def directions(self, averages: Iterator[Tensor], steps: int) -> Iterator[Tensor]:
        """This rank's part of each orthogonalized average."""
        return (orthogonalize(local(average), steps) for average in averages)


class ShardedMuon(StackedMuon):
    """torch.optim.Muon for matrices whose rows are sharded over n ranks: of n matrices, each rank orthogonalizes one.

    The rows of a matrix are sent to its rank and the result is sent back, both in bf16, in which the iterations run
    anyway: 4 bytes of traffic for each weight and step. No rank does the work of another, and each holds one whole
    matrix at a time. The result is that of torch.optim.Muon.
    """

    def directions(self, averages: Iterator[Tensor], steps: int) -> Iterator[Tensor]:
        """This rank's rows of each orthogonalized average."""
        for average in averages:
            assert is_sharded(average)
            group = average.device_mesh.get_group()
            others = islice(averages, dist.get_world_size(group) - 1)
            yield from self._of_each_rank([average, *others], steps, dist.get_rank(group), group)

    def _of_each_rank(
        self, averages: list[Tensor], steps: int, rank: int, group: dist.ProcessGroup
    ) -> Iterator[Tensor]:
        """This rank's rows of at most one matrix a rank, of which it orthogonalizes that of `rank`."""
        ranks = dist.get_world_size(group)
        rows = [local(average).bfloat16() for average in averages]
        mine = averages[rank].shape if rank < len(averages) else (0, 0)
        to_send = [part.numel() for part in rows] + [0] * (ranks - len(rows))
        share = -(-mine[0] // ranks)
        to_receive = [max(0, min(share, mine[0] - share * other)) * mine[1] for other in range(ranks)]
        sent = torch.cat([part.flatten() for part in rows])
        received = sent.new_empty(sum(to_receive))
        dist.all_to_all_single(received, sent, to_receive, to_send, group=group)
        if rank < len(averages):
            received = _zeropower_via_newtonschulz(received.view(mine), COEFFICIENTS, steps, TINY).flatten()
        dist.all_to_all_single(sent, received, to_send, to_receive, group=group)
        parts = sent.split([part.numel() for part in rows])
        return (part.view_as(whole) for part, whole in zip(parts, rows, strict=True))


def orthogonalize(stack: Float[Tensor, "experts rows columns"], steps: int) -> Float[Tensor, "experts rows columns"]:
    """Returns an approximation of U V^T for every matrix U S V^T, by `steps` Newton-Schulz iterations in bf16.

    An iteration is x = a x + (b x x^T + c (x x^T)^2) x. Singular values of the result are between .7 and 1.2 (Jordan et
    al. 2024). A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
