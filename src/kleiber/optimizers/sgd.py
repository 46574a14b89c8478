"""Stochastic gradient descent with momentum, and its learning rates by width under muP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from kleiber.optimizers.adamw import parameter_groups
from kleiber.types import Decay, NonNegative, Positive
from kleiber.types.batch import Role
from kleiber.types.model import LearningRateScale


@dataclass(frozen=True)
class SGD:
    """SGD: v = momentum v + g + weight_decay w, then w -= lr v, or with Nesterov's look-ahead lr (g + momentum v).

    lr            base learning rate: that of parameters whose scale is 1
    momentum      decay rate of the sum of gradients; 0: none
    weight_decay  added to the gradient, as in torch.optim.SGD
    clip          largest global norm of the gradients; null: no clipping

    A step is proportional to the gradient, which is smaller in a wider model under muP. So the scales of learning rates
    are not those of Adam: hidden matrices have 1 at every width and depth, and the embedding, gains and the output
    matrix have width/base_width (Yang et al. 2022, arXiv:2203.03466, table 8; depth: Yang et al. 2023,
    arXiv:2310.02244).
    """

    lr: Positive = 1.0
    momentum: Decay = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    clip: Positive | None = 1.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum > 0")

    def build(self, model: nn.Module, roles: dict[str, Role], lr_scale: LearningRateScale) -> torch.optim.Optimizer:
        """Returns the optimizer of the parameter groups of a model."""
        groups = parameter_groups(
            model, with_channels(model, roles), partial(lr_scale, rule="sgd"), self.lr, self.weight_decay
        )
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


def with_channels(model: nn.Module, roles: dict[str, Role]) -> dict[str, Role]:
    """The roles with `fan_in` of embeddings and vectors set to their channels, by which the scale of SGD grows."""
    channels = {name: p.shape[-1] for name, p in model.named_parameters() if p.dim()}
    return {
        name: replace(role, fan_in=channels.get(name, 1)) if role.kind in ("embedding", "vector") else role
        for name, role in roles.items()
    }
