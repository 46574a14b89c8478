"""Parameter groups are complete, AdamW takes the textbook step, and invalid settings are refused."""

import pytest
import torch
from torch import nn

from kleiber.optimizers.adamw import AdamW, parameter_groups
from kleiber.types.batch import Role

ROLES = {"0.weight": Role("hidden", 4), "0.bias": Role("vector", 1), "1.weight": Role("output", 8)}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3, bias=False))


def scale(role: Role) -> float:
    return 0.5 if role.kind == "hidden" else 1.0


def test_every_trainable_parameter_is_in_exactly_one_group():
    net = model()
    net[1].weight.requires_grad_(False)
    groups = parameter_groups(net, ROLES, scale, lr=0.1, weight_decay=0.2)
    assert sorted(name for g in groups for name in g["names"]) == ["0.bias", "0.weight"]


def test_lr_times_decay_is_the_same_at_every_scale_and_vectors_do_not_decay():
    by_name = {n: g for g in parameter_groups(model(), ROLES, scale, 0.1, 0.2) for n in g["names"]}
    assert by_name["0.weight"]["lr"] == 0.05
    assert by_name["0.weight"]["lr"] * by_name["0.weight"]["weight_decay"] == pytest.approx(0.1 * 0.2)
    assert by_name["1.weight"]["lr"] * by_name["1.weight"]["weight_decay"] == pytest.approx(0.1 * 0.2)
    assert by_name["0.bias"]["weight_decay"] == 0.0


def test_fused_adamw_takes_the_textbook_step():
    net = model()
    start = net[1].weight.detach().clone()
    optimizer = AdamW(lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, eps=1e-8).build(net, ROLES, scale)
    gradients = [torch.randn(3, 8), torch.randn(3, 8)]
    weight, m, v = start.clone(), torch.zeros(3, 8), torch.zeros(3, 8)
    for t, gradient in enumerate(gradients, start=1):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        net[1].weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        weight = weight * (1 - 0.1 * 0.3) - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
    torch.testing.assert_close(net[1].weight.detach(), weight)
