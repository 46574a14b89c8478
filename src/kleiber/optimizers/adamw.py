"""The optimizers AdamW and Lion, and the parameter groups that all optimizers use.

The learning rate of a parameter is the base rate times a scale, which the parametrization (such as muP) gives to the
role of the parameter. Weight decay is decoupled and divided by that scale, so learning rate x decay is the same at
every width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kleiber.nn.sharding import is_sharded
from kleiber.types import Decay, NonNegative, Positive
from kleiber.types.batch import Role
from kleiber.types.model import LearningRateScale

ParameterGroup = dict[str, Any]  # of a torch optimizer: parameters, their names, and settings
DecayKind = Literal["decoupled", "independent", "cautious"]
Closure = Callable[[], Tensor | float]  # computes the loss and its gradients again


class Optimizer(Protocol):
    """The settings of a config's `optimizer`, which build a torch optimizer for a model.

    lr    base learning rate: that of parameters whose scale is 1
    clip  largest global norm of the gradients; null: no clipping
    """

    @property
    def lr(self) -> float: ...
    @property
    def clip(self) -> float | None: ...
    def build(self, model: nn.Module, roles: dict[str, Role], lr_scale: LearningRateScale) -> torch.optim.Optimizer: ...


def parameter_groups(
    model: nn.Module,
    roles: dict[str, Role],
    lr_scale: LearningRateScale,
    lr: float,
    weight_decay: float,
    only: Container[str] | None = None,
    decay: DecayKind = "decoupled",
) -> list[ParameterGroup]:
    """Returns the trainable parameters in groups that share a learning rate and a weight decay.

    only   names of the parameters to include; None for all of them
    decay  see `AdamW`

    Every parameter is in exactly one group. Embeddings, gains and biases have no weight decay. Each group has
    "lr_scale", and "names" in the order of its parameters, by which a checkpoint stores optimizer state. Sharded
    parameters have groups of their own, since fused steps do not take them together with others.
    """
    groups: dict[tuple[float, float, bool], list[str]] = defaultdict(list)
    weight_decay = weight_decay / lr if decay == "independent" else weight_decay
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if only is not None:
        parameters = {name: p for name, p in parameters.items() if name in only}
    for name, parameter in parameters.items():
        role = roles[name]
        scale = lr_scale(role)
        share = weight_decay / scale if role.kind in ("hidden", "output") else 0.0
        groups[scale, share, is_sharded(parameter)].append(name)
    assert sorted(n for names in groups.values() for n in names) == sorted(parameters), "every parameter in one group"
    return [
        {
            "params": [parameters[n] for n in names],
            "names": names,
            "lr": lr * scale,
            "lr_scale": scale,
            **({"weight_decay": 0.0, "cautious_decay": wd} if decay == "cautious" else {"weight_decay": wd}),
        }
        for (scale, wd, _), names in groups.items()
    ]


@dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101), in its fused implementation.

    lr     base learning rate: that of parameters whose scale is 1
    clip   largest global norm of the gradients; null: no clipping
    decay  what weight_decay multiplies in w -= ... w. `decoupled`: the learning rate. `independent`: its share of the
           peak, so that lr and weight_decay can be tuned apart (Wortsman et al. 2023, arXiv:2309.14322).
           `cautious`: the learning rate, of the weights that the step moves towards 0 (arXiv:2510.12402)
    """

    lr: Positive = 0.02
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: NonNegative = 0.0
    eps: Positive = 1e-8
    clip: Positive | None = 1.0
    decay: DecayKind = "decoupled"

    def build(self, model: nn.Module, roles: dict[str, Role], lr_scale: LearningRateScale) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameter groups of a model."""
        groups = parameter_groups(model, roles, lr_scale, self.lr, self.weight_decay, decay=self.decay)
        return with_decay(torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True))


@dataclass(frozen=True)
class Lion:
    """Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    w -= lr (sign(b1 m + (1 - b1) g) + weight_decay w), then m = b2 m + (1 - b2) g, with gradient g and momentum m.

    lr     base learning rate; the paper uses 1/3 to 1/10 of the rate of AdamW, and 3 to 10 times its weight decay
    clip   largest global norm of the gradients; null: no clipping
    decay  kind of weight decay, as in `AdamW`

    As in Adam, a step does not depend on the scale of the gradient, so muP scales the learning rates as for Adam.
    """

    lr: Positive = 0.004
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: NonNegative = 0.0
    clip: Positive | None = 1.0
    decay: DecayKind = "decoupled"

    def build(self, model: nn.Module, roles: dict[str, Role], lr_scale: LearningRateScale) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameter groups of a model."""
        groups = parameter_groups(model, roles, lr_scale, self.lr, self.weight_decay, decay=self.decay)
        return with_decay(SignDescent(groups, self.betas))


def with_decay(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Adds the cautious weight decay of the parameter groups to an optimizer, which has none of its own for them.

    With a step u it makes w -= u the update w -= u + lr weight_decay w [u w >= 0], elementwise. Costs a copy of the
    weights for the time of a step. Chen et al. 2025, arXiv:2510.12402, algorithm 1.
    """
    groups = [group for group in optimizer.param_groups if group.get("cautious_decay")]
    if not groups:
        return optimizer
    before: list[list[Tensor]] = []

    def remember(*_: object) -> None:
        before[:] = [[p.detach().clone() for p in group["params"]] for group in groups]

    @torch.no_grad()
    def shrink(*_: object) -> None:
        """Takes the decay from the weights that the step has moved towards 0."""
        for group, weights in zip(groups, before, strict=True):
            for p, old in zip(group["params"], weights, strict=True):
                if p.grad is not None:
                    p.sub_(old * ((old - p) * old >= 0), alpha=group["lr"] * group["cautious_decay"])
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(shrink)
    return optimizer


def call_closure(closure: Closure | None) -> Tensor | float | None:
    """Returns the loss of a closure, called with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class SignDescent(torch.optim.Optimizer):
    """The update of Lion as a torch optimizer; its state is the momentum of each parameter."""

    def __init__(self, groups: list[ParameterGroup], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters; returns the loss of `closure`, or None without one."""
        loss = call_closure(closure)
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if not with_gradient:
                continue
            gradients = [p.grad for p in with_gradient]
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in with_gradient]
            steps = torch._foreach_lerp(momenta, gradients, 1 - b1)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(with_gradient, 1 - lr * group["weight_decay"])
            torch._foreach_add_(with_gradient, steps, alpha=-lr)
            torch._foreach_lerp_(momenta, gradients, 1 - b2)
        return loss
