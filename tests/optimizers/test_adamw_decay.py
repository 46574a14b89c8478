"""Kinds of weight decay: each optimizer against its step without decay, and the terms that each kind adds."""

import pytest
import torch
from torch import nn

from kleiber.optimizers.adamw import AdamW, Lion
from kleiber.optimizers.muon import Muon
from kleiber.types.batch import Role

ROLES = {"0.weight": Role("hidden", 4), "0.bias": Role("vector", 1), "1.weight": Role("output", 8)}
LR, DECAY = 0.1, 0.3


def steps(make, **options) -> list[dict[str, torch.Tensor]]:
    """The weights before and after each of three steps, the last of them at half of the learning rate."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3, bias=False))
    optimizer = make(lr=LR, **options).build(net, ROLES, lambda role, rule=None: 0.5 if role.kind == "hidden" else 1.0)
    states = [{name: p.detach().clone() for name, p in net.named_parameters()}]
    for step in range(3):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        if step == 2:
            for group in optimizer.param_groups:
                group["lr"] /= 2
        optimizer.step()
        states.append({name: p.detach().clone() for name, p in net.named_parameters()})
    return states


@pytest.mark.parametrize("make", [AdamW, Lion, Muon])
def test_each_kind_takes_from_the_weights_what_it_says(make):
    decays = {kind: steps(make, weight_decay=DECAY, decay=kind) for kind in ("decoupled", "independent", "cautious")}
    plain = steps(make)
    name = "1.weight"
    for at, share in ((1, 1.0), (3, 0.5)):
        for kind, states in decays.items():
            old = states[at - 1][name]
            # The step itself does not depend on the weights, so that it is the one without decay.
            step = plain[at - 1][name] - plain[at][name]
            strength = DECAY if kind == "independent" else LR * DECAY
            kept = (step * old >= 0) if kind == "cautious" else torch.ones_like(old)
            torch.testing.assert_close(
                states[at][name], old - step - share * strength * old * kept, atol=1e-6, rtol=1e-5
            )
    assert all(torch.equal(states[3]["0.bias"], plain[3]["0.bias"]) for states in decays.values())
    assert 0 < float((step * old >= 0).float().mean()) < 1
