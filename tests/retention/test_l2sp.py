"""The pull goes beside the optimizer: its size does not depend on that of the gradients."""

import pytest
import torch

from kleiber.retention.l2sp import L2SP

from .toys import learned, with_heads


def after(net, scale, decoupled):
    """Weights after five Adam steps on a constant gradient times `scale`, with a pull of 2 towards 0."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, eps=0)
    method = L2SP(2.0)
    method.begin_stage(net, [], 0)
    method.memory["start"] = {name: torch.zeros_like(value) for name, value in method.memory["start"].items()}
    for step in range(5):
        for number, parameter in enumerate(net.parameters()):
            parameter.grad = torch.full_like(parameter, scale * (1 + number))
            if not decoupled:
                parameter.grad += 2.0 * parameter.detach()
        optimizer.step()
        if decoupled:
            method.after_step(net, step, 0.01)
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_the_pull_is_independent_of_adams_scale():
    assert torch.allclose(after(learned(), 1.0, True), after(learned(), 1e4, True), atol=1e-6)
    assert not torch.allclose(after(learned(), 1.0, False), after(learned(), 1e4, False), atol=1e-3)


def test_without_gradients_the_distance_shrinks_by_a_known_factor():
    net, method = learned(), L2SP(3.0)
    method.begin_stage(net, [], 0)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1.0
    method.after_step(net, 0, 0.1)
    for parameter, anchor in zip(net.parameters(), start, strict=True):
        assert torch.allclose(parameter - anchor, torch.full_like(anchor, 1 - 0.3), atol=1e-6)


def test_a_pull_beyond_the_start_is_refused():
    method = L2SP(200.0)
    method.begin_stage(learned(), [], 0)
    with pytest.raises(ValueError, match=r"retention.l2sp.strength=200.0.*at most 100"):
        method.after_step(learned(), 0, 0.01)


def test_a_new_output_layer_is_not_pulled_and_a_trained_one_is():
    method = L2SP(3.0)
    net = with_heads(method)
    method.after_step(net, 0, 0.1)
    assert bool((net.heads["new"].weight == 1).all())
    assert torch.allclose(net.heads["old"].weight, torch.tensor(2.7))
