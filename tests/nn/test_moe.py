"""The mixture layer: every backend, capacity, sums over real tokens, and independence of order and batching."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kleiber.config.model_size import gated_hidden
from kleiber.nn.mlp import SwiGLU, expert_hidden
from kleiber.nn.moe import Global, MoE, PerSequence, interleaved_moe
from kleiber.nn.mup import Site
from kleiber.nn.routers.expert_choice import ExpertChoice
from kleiber.nn.routers.hash import Hash
from kleiber.nn.routers.sigmoid import LossFree, Sigmoid
from kleiber.nn.routers.topk import Switch, TopK
from kleiber.types.batch import Batch

SITE = Site(width=16)


def slow(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """Every expert on every token, and zero weight where it was not chosen."""
    flat = x.flatten(0, 1)
    routing = moe.router(flat)
    y = torch.zeros_like(flat)
    for e in range(moe.num_experts):
        weight = (routing.weights * (routing.experts == e)).sum(-1, keepdim=True).to(x.dtype)
        gate, up = (flat @ moe.experts.gate_up[e]).chunk(2, -1)
        y = y + weight * ((F.silu(gate) * up) @ moe.experts.down[e])
    if moe.shared is not None:
        y = y + moe.shared(flat[None])[0][0]
    return y.view_as(x)


def padded(x: torch.Tensor, real: torch.Tensor | None = None) -> Batch:
    return Batch(torch.zeros(x.shape[:2], dtype=torch.long), real=real)


@pytest.mark.slow
@pytest.mark.parametrize("k, router", [(1, Switch), (2, TopK), (2, Sigmoid), (3, TopK), (8, TopK)])
@pytest.mark.parametrize("num_shared", [0, 1])
@pytest.mark.parametrize("backend", ["grouped", "loop", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_equals_every_expert_on_every_token(k, router, num_shared, backend, dtype):
    moe = MoE(SITE, 8, k, num_shared, router=router, backend=backend).to(dtype)
    x = torch.randn(3, 7, 16, dtype=dtype, requires_grad=True)
    ours, expected, grad = moe(x)[0], slow(moe, x), torch.randn(3, 7, 16, dtype=dtype)
    wanted = (x, *moe.parameters())
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-10}
    torch.testing.assert_close(ours, expected, **tolerance)
    gradients = [torch.autograd.grad(y, wanted, grad, materialize_grads=True) for y in (ours, expected)]
    torch.testing.assert_close(*gradients, **tolerance)


def test_under_bf16_autocast_the_router_stays_fp32():
    moe = MoE(SITE)
    x = torch.randn(2, 6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        routing = moe.router(x.flatten(0, 1))
        y = moe(x.bfloat16())[0]
    assert routing.logits.dtype == torch.float32 and y.dtype == torch.bfloat16
    assert torch.equal(routing.logits, moe.router(x.flatten(0, 1)).logits)


def test_permuting_the_experts_changes_nothing():
    moe, order = MoE(SITE, 6), torch.randperm(6)
    x = torch.randn(2, 9, 16)
    before, aux = moe(x)
    for parameter in (moe.router.linear.weight, moe.experts.gate_up, moe.experts.down):
        parameter.data = parameter.data[order]
    after, permuted = moe(x)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(permuted["balance"], aux["balance"])
    assert torch.equal(permuted["load"], aux["load"][order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_expert_without_tokens_gets_a_zero_gradient_not_none(dtype):
    moe = MoE(SITE, 4, 2).to(dtype)
    moe.router.linear.weight.data.zero_()
    moe.router.linear.weight.data[:2, 0] = 1
    x = torch.randn(1, 5, 16, dtype=dtype)
    x[..., 0] = 9
    y, aux = moe(x)
    (y.square().sum() + aux["loss"]).backward()
    assert aux["load"].tolist() == [5, 5, 0, 0]
    for stack in (moe.experts.gate_up, moe.experts.down):
        assert stack.grad is not None and stack.grad[2:].abs().max() == 0 and stack.grad[:2].abs().max() > 0


def test_what_padding_holds_changes_no_auxiliary_sum():
    moe, real = MoE(SITE), torch.arange(6)[None] < torch.tensor([[6], [3]])
    x = torch.randn(2, 6, 16)
    other = torch.where(real[..., None], x, torch.randn(2, 6, 16))
    sums, other_sums = moe(x, padded(x, real))[1], moe(other, padded(x, real))[1]
    torch.testing.assert_close(sums, other_sums)
    assert sums["load"].sum() == 2 * 9 and {"loss", "balance", "z", "load", "margin"} == sums.keys()
    torch.testing.assert_close(sums["loss"], 0.01 * sums["balance"] + 1e-3 * sums["z"])


def test_z_is_the_sum_of_squared_log_normalisers():
    moe = MoE(SITE)
    x = torch.randn(2, 5, 16)
    logits = moe.router(x.flatten(0, 1)).logits
    torch.testing.assert_close(moe(x)[1]["z"], logits.exp().sum(-1).log().square().sum())


def test_active_experts_cost_what_the_dense_layer_does():
    for width, active in ((64, 2), (128, 2), (192, 3), (256, 4)):
        assert 0 <= active * expert_hidden(width, active) - gated_hidden(width) < 8 * active
    assert MoE(Site(64), num_shared=1).hidden == expert_hidden(64, 3)


def test_experts_stand_on_every_second_layer():
    kinds = [type(interleaved_moe(Site(16, depth=4, layer=layer), every=2)) for layer in range(4)]
    assert kinds == [SwiGLU, MoE, SwiGLU, MoE]


def test_a_mixture_after_the_first_dense_layers():
    factory = partial(interleaved_moe, every=2, dense_first=2)
    kinds = [type(factory(Site(16, depth=5, layer=layer))) for layer in range(5)]
    assert kinds == [SwiGLU, SwiGLU, SwiGLU, MoE, SwiGLU]
    mixture = interleaved_moe(Site(16, context=32), capacity_factor=0.5)
    assert isinstance(mixture, MoE) and mixture.capacity == 4


@pytest.mark.parametrize("num_shared", [0, 1])
def test_granularity_keeps_parameters_and_active_flops(num_shared):
    coarse, fine = (MoE(Site(96), 4, 2, num_shared, granularity=g) for g in (1, 4))
    assert (fine.num_experts, fine.k) == (16, 8)
    assert fine.experts.flops(1) == pytest.approx(coarse.experts.flops(1), rel=0.3), "rounded up to 8 hidden units"
    assert 0 <= fine.experts.flops(1) - coarse.experts.flops(1) <= 2 * 8 * 8 * 3 * 96
    sized = MoE(Site(96), 4, 2, num_shared, hidden=128, granularity=4)
    assert sized.hidden == 32 and sized.experts.flops(1) == MoE(Site(96), 4, 2, num_shared, hidden=128).experts.flops(1)
    assert sized.experts.down.numel() == 4 * 128 * 96


def test_capacity_serves_who_comes_first_in_each_sequence_and_counts_the_rest():
    moe = MoE(Site(16, context=8), 4, 2, capacity_factor=0.5)
    assert moe.capacity == 2
    x = torch.randn(2, 8, 16)
    routing = moe.router(x.flatten(0, 1))
    served, requests = torch.zeros(2, 8, 2, dtype=torch.bool), torch.zeros(2, 4)
    for s in range(2):
        for t in range(8):
            for slot in range(2):
                e = int(routing.experts[8 * s + t, slot])
                served[s, t, slot] = requests[s, e] < 2
                requests[s, e] += 1
    y, aux = moe(x)
    assert float(aux["drop"]) == float((~served).sum()) / 2 > 0
    assert aux["load"].sum() == 32, "the load is what was asked for"
    lost = (~served).all(-1)
    assert bool(lost.any()) and y[lost].count_nonzero() == 0
    routing.kept = served.view(16, 2)
    torch.testing.assert_close(y, moe.experts(x.flatten(0, 1), routing).view_as(x))


def test_a_drop_depends_on_no_later_token_and_no_other_sequence():
    moe, x = MoE(Site(16, context=8), 4, 2, capacity_factor=0.5), torch.randn(2, 8, 16)
    other = x.clone()
    other[0, 5:], other[1] = torch.randn(3, 16), torch.randn(8, 16)
    torch.testing.assert_close(moe(x)[0][0, :5], moe(other)[0][0, :5])


def test_in_evaluation_nothing_is_dropped_and_padding_takes_no_place():
    moe, x = MoE(Site(16, context=8), 4, 2, capacity_factor=0.5), torch.randn(1, 8, 16)
    plain = MoE(Site(16, context=8), 4, 2)
    plain.load_state_dict(moe.state_dict())
    moe.eval()
    torch.testing.assert_close(moe(x)[0], plain(x)[0])
    assert "drop" not in moe(x)[1]
    moe.train()
    late = torch.arange(8)[None] >= 4
    torch.testing.assert_close(moe(x, padded(x, late))[0][:, 4:], moe(x[:, 4:])[0])


@pytest.mark.parametrize("backend", ["grouped", "loop", "dense"])
def test_experts_that_choose_serve_the_same_by_every_back_end(backend):
    torch.manual_seed(5)
    moe = MoE(Site(16, causal=False), 4, 2, router=ExpertChoice, backend=backend)
    x = torch.randn(2, 8, 16)
    y, aux = moe(x, padded(x))
    routing = moe.router(x.flatten(0, 1), padded(x))
    torch.testing.assert_close(y.flatten(0, 1), sum_of_experts(moe, x.flatten(0, 1), routing), atol=1e-5, rtol=1e-4)
    assert aux["load"].tolist() == [8.0] * 4


def sum_of_experts(moe, flat, routing):
    y = torch.zeros_like(flat)
    for e in range(moe.num_experts):
        gate, up = (flat @ moe.experts.gate_up[e]).chunk(2, -1)
        y = y + (routing.weights[:, e] * routing.kept[:, e])[:, None] * ((F.silu(gate) * up) @ moe.experts.down[e])
    return y


def test_global_scope_and_coefficient_reach_the_loss():
    x = torch.randn(4, 6, 16)
    moe = MoE(SITE, balance=Global(0.5), z=0.0)
    sums = moe(x)[1]
    torch.testing.assert_close(sums["loss"], 0.5 * sums["balance"])
    moe.balance = PerSequence()
    assert moe(x)[1]["balance"].item() != pytest.approx(sums["balance"].item())


def test_a_router_without_logits_has_no_z_and_gives_the_experts_all_gradients():
    moe = MoE(SITE, router=Hash, balance=PerSequence(0.0))
    x = torch.randn(2, 6, 16)
    y, aux = moe(x, Batch(torch.randint(50, (2, 6))))
    assert "z" not in aux and "margin" not in aux and float(aux["loss"]) == 0
    y.square().sum().backward()
    assert all(p.grad is not None for p in moe.parameters())


def test_bad_sizes_are_refused_and_a_coefficient_of_zero_is_warned_about():
    for options in ({"k": 9}, {"k": 1}, {"hidden": 9, "granularity": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            MoE(SITE, **options)
    with pytest.raises(ValueError, match="every=3"):
        interleaved_moe(Site(16, depth=2), every=3)
    with pytest.raises(ValueError, match="dense_first=2"):
        interleaved_moe(Site(16, depth=3), every=2, dense_first=2)
    with pytest.raises(ValueError, match="ExpertChoice"):
        MoE(Site(16, causal=False), router=ExpertChoice, capacity_factor=1.25)
    with pytest.warns(UserWarning, match="coefficient=0"):
        MoE(SITE, balance=PerSequence(0.0))


def test_a_coefficient_of_zero_is_no_matter_where_the_router_balances_itself(recwarn):
    MoE(SITE, router=LossFree, balance=PerSequence(0.0))
    assert not recwarn.list
