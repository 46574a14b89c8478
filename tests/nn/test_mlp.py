"""The gated activation and its own backward pass against silu(gate) * up."""

import torch
import torch.nn.functional as F

from kleiber.nn.mlp import gated


def test_the_gate_and_its_gradient_are_those_of_the_plain_form():
    gate_up = torch.randn(3, 5, 14, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, -1)
    plain = F.silu(gate) * up
    torch.testing.assert_close(gated(gate_up), plain)
    weights = torch.randn_like(plain)
    (expected,) = torch.autograd.grad((plain * weights).sum(), gate_up)
    (gradient,) = torch.autograd.grad((gated(gate_up) * weights).sum(), gate_up)
    torch.testing.assert_close(gradient, expected)


def test_the_gate_takes_a_gradient_that_is_an_expanded_scalar():
    gate_up = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated, gate_up)
    gated(gate_up).sum().backward()
    assert gate_up.grad is not None
