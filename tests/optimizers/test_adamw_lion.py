"""Lion takes the steps of the paper, of the same size for every entry."""

import torch
from torch import nn

from kleiber.optimizers.adamw import Lion
from kleiber.types.batch import Role

ROLES = {"weight": Role("hidden", 4)}


def scale(role: Role) -> float:
    return 0.5


def test_lion_takes_the_papers_steps():
    layer = nn.Linear(4, 3, bias=False)
    optimizer = Lion(lr=0.1, betas=(0.8, 0.7), weight_decay=0.3).build(layer, ROLES, scale)
    weight, m = layer.weight.detach().clone(), torch.zeros(3, 4)
    for _ in range(3):
        gradient = torch.randn(3, 4)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        weight = weight - 0.05 * ((0.8 * m + 0.2 * gradient).sign() + 0.3 / 0.5 * weight)
        m = 0.7 * m + 0.3 * gradient
    torch.testing.assert_close(layer.weight.detach(), weight)


def test_every_entry_moves_by_the_scaled_rate():
    layer = nn.Linear(4, 3, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(3, 4) * 1e-6
    Lion(lr=0.1).build(layer, ROLES, scale).step()
    torch.testing.assert_close((layer.weight.detach() - before).abs(), torch.full((3, 4), 0.05))
