"""Dense MLPs and RMSNorm against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.config.model_size import gated_hidden
from kleiber.nn.mlp import GELU, LayerNorm, Normalized, ReLU2, RMSNorm, SwiGLU, gated
from kleiber.nn.mup import Site


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


@pytest.mark.parametrize("hidden", [None, 24])
def test_mlps_are_their_formulas_with_the_default_or_the_given_size(hidden):
    x = torch.randn(2, 3, 32)
    swiglu, gelu = SwiGLU(Site(32), hidden), GELU(Site(32), hidden)
    assert (swiglu.hidden, gelu.hidden) == ((24, 24) if hidden else (gated_hidden(32), 128))
    gate, up = (x @ swiglu.gate_up.weight.T).chunk(2, -1)
    torch.testing.assert_close(swiglu(x)[0], (F.silu(gate) * up) @ swiglu.down.weight.T)
    torch.testing.assert_close(gelu(x)[0], F.gelu(x @ gelu.up.weight.T) @ gelu.down.weight.T)
    relu2 = ReLU2(Site(32), hidden)
    torch.testing.assert_close(relu2(x)[0], F.relu(x @ relu2.up.weight.T) ** 2 @ relu2.down.weight.T)
    assert swiglu(x)[1] == gelu(x)[1] == relu2(x)[1] == {} and relu2.hidden == gelu.hidden
    assert swiglu.last_matrix() is swiglu.down and gelu.last_matrix() is gelu.down


def test_default_sizes_of_gated_mlps_cost_what_a_plain_mlp_does():
    for width in (32, 48, 100, 768):
        hidden = gated_hidden(width)
        assert hidden % 16 == 0 and 0 <= 3 * hidden - 8 * width < 48


def test_rms_norm_scales_rows_to_an_rms_of_one_times_the_gain():
    norm, x = RMSNorm(16, eps=1e-12), torch.randn(4, 16) * 7
    torch.testing.assert_close(norm(x).square().mean(-1).sqrt(), torch.ones(4))
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), x / x.square().mean(-1, keepdim=True).sqrt() * norm.weight)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_layer_norm_and_its_gradients_are_those_of_pytorch():
    ours, theirs = LayerNorm(16, 1e-3), torch.nn.LayerNorm(16, 1e-3)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    for norm in (ours, theirs):
        norm(x).square().sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad)
    plain = LayerNorm(16, 0.0)(x)
    torch.testing.assert_close(plain.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.var(-1, correction=0), torch.ones(2, 5))
    assert ours(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 4, 16)])
def test_the_norm_and_its_gradients_are_those_of_pytorch(shape):
    x, gain = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (16,)))
    expected = F.rms_norm(x, (16,), gain, 1e-5)
    y = Normalized.apply(x, gain, 1e-5)
    assert torch.equal(y, expected)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, gain), weights), torch.autograd.grad(expected, (x, gain), weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
