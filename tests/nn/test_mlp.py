"""Dense MLPs and RMSNorm against their formulas, and the backends of experts against a slow reference."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.nn import mlp as module
from kleiber.nn.mlp import GELU, ReLU2, RMSNorm, SwiGLU, dispatch, gated, gated_hidden
from kleiber.nn.mup import Site
from kleiber.types.batch import Routing

BACKENDS = ("grouped", "loop", "dense")
TOKENS, EXPERTS, DIM, HIDDEN = 21, 6, 16, 8


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


def slow(x, gate_up, down, routing):
    """One token and one assignment at a time."""
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[0])
        for slot in range(routing.experts.shape[1]):
            if routing.kept is None or routing.kept[t, slot]:
                e = int(routing.experts[t, slot])
                gate, up = (x[t] @ gate_up[e]).chunk(2)
                y = y + routing.weights[t, slot].to(x.dtype) * ((F.silu(gate) * up) @ down[e])
        rows.append(y)
    return torch.stack(rows)


def case(dtype=torch.float32, k=2, kept=False, idle=(), hidden=HIDDEN):
    torch.manual_seed(0)
    parts = torch.randn(TOKENS, DIM), torch.randn(EXPERTS, DIM, 2 * hidden) / 4, torch.randn(EXPERTS, hidden, DIM) / 3
    x, gate_up, down = (part.to(dtype).requires_grad_() for part in parts)
    scores = torch.rand(TOKENS, EXPERTS, dtype=dtype)
    scores[:, list(idle)] = -1
    experts = scores.topk(k, -1).indices
    weights = torch.rand(TOKENS, k, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    mask = torch.rand(TOKENS, k) < 0.6 if kept else None
    return (x, gate_up, down), weights, Routing(weights, experts, scores.detach(), kept=mask)


def gradients(y, parts, weights):
    torch.manual_seed(1)
    return torch.autograd.grad((y * torch.randn_like(y)).sum(), (*parts, weights), materialize_grads=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "k, kept, idle", [(1, False, ()), (2, False, ()), (2, True, ()), (3, False, (0, 5)), (3, True, (2,))]
)
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_back_ends_agree_with_one_token_at_a_time(backend, k, kept, idle, dtype, atol):
    parts, weights, routing = case(dtype, k, kept, idle)
    ours, expected = dispatch(backend, *parts, routing), slow(*parts, routing)
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-4)
    for gradient, reference in zip(gradients(ours, parts, weights), gradients(expected, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [False, True])
def test_an_expert_without_tokens_gets_a_zero_gradient_not_none(backend, kept):
    parts, _, routing = case(kept=kept, idle=(1, 3))
    dispatch(backend, *parts, routing).square().sum().backward()
    for stack in parts[1:]:
        assert stack.grad is not None and stack.grad[[1, 3]].abs().max() == 0 and stack.grad[0].abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_kept_is_zero_and_still_has_gradients(backend):
    parts, weights, routing = case()
    routing.kept = torch.zeros_like(routing.experts, dtype=torch.bool)
    y = dispatch(backend, *parts, routing)
    assert y.shape == parts[0].shape and y.abs().max() == 0
    assert all(float(g.abs().max()) == 0 for g in gradients(y, parts, weights))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_under_bf16_autocast_the_product_is_in_bf16_and_near(backend, kept):
    parts, weights, routing = case(kept=kept)
    with torch.autocast("cpu", torch.bfloat16):
        y = dispatch(backend, *parts, routing)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), slow(*parts, routing), atol=0.05, rtol=0.05)
    assert all(g.dtype == torch.float32 for g in gradients(y, parts, weights))


def test_each_back_end_takes_its_own_way(monkeypatch):
    taken = []
    for name in ("looped_mm", "every_expert"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: taken.append(name) or real(*a))
    grouped = F.grouped_mm
    monkeypatch.setattr(module.F, "grouped_mm", lambda *a, **kw: taken.append("grouped_mm") or grouped(*a, **kw))
    parts, _, routing = case()
    for backend in BACKENDS:
        dispatch(backend, *parts, routing)
    assert taken == [*["grouped_mm"] * 2, *["looped_mm"] * 2, "every_expert"]
    taken.clear()
    unaligned, _, routing = case(hidden=9)  # 36 bytes a row: no kernel for `down`, and 72 for `gate_up`
    dispatch("grouped", *unaligned, routing)
    double, _, routing = case(torch.float64)
    dispatch("grouped", *double, routing)
    assert taken == ["looped_mm"] * 4


def test_the_gpu_way_of_leaving_rows_out_gives_what_cutting_them_off_gives():
    parts, weights, routing = case(kept=True)
    cut = dispatch("grouped", *parts, routing)
    masked = module.dispatch_kept(module.grouped_mm, *parts, routing, cut=False)
    torch.testing.assert_close(masked, cut)
    for gradient, reference in zip(gradients(masked, parts, weights), gradients(cut, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [False, True])
def test_compiled_it_gives_the_same(backend, kept, unchecked):
    parts, weights, routing = case(kept=kept)
    compiled = torch.compile(dispatch, backend="aot_eager")
    ours, expected = compiled(backend, *parts, routing), dispatch(backend, *parts, routing)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    for gradient, reference in zip(gradients(ours, parts, weights), gradients(expected, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)
