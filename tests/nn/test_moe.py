"""Dispatch against the slow dense reference, balance bounds, dead experts, and independence of order and batching."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.nn import moe as module
from kleiber.nn.mlp import SwiGLU, gated_hidden
from kleiber.nn.moe import MoE, balance_loss, expert_hidden, interleaved
from kleiber.nn.parametrization import Site
from kleiber.nn.routers import Switch, TopK

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


@pytest.mark.parametrize("k, router", [(1, Switch), (2, TopK), (2, Switch), (3, TopK), (8, TopK)])
@pytest.mark.parametrize("num_shared", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dispatch_equals_every_expert_on_every_token(k, router, num_shared, dtype):
    # fp32 takes the grouped product, fp64 the loop.
    moe = MoE(SITE, 8, k, num_shared, router=router).to(dtype)
    x = torch.randn(3, 7, 16, dtype=dtype, requires_grad=True)
    ours, expected, grad = moe(x)[0], slow(moe, x), torch.randn(3, 7, 16, dtype=dtype)
    wanted = (x, *moe.parameters())
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-10}
    torch.testing.assert_close(ours, expected, **tolerance)
    both = [torch.autograd.grad(y, wanted, grad, materialize_grads=True) for y in (ours, expected)]
    torch.testing.assert_close(*both, **tolerance)


def test_grouped_product_and_loop_are_both_taken(monkeypatch):
    taken = []
    real = F.grouped_mm
    monkeypatch.setattr(module.F, "grouped_mm", lambda *a, **kw: taken.append(1) or real(*a, **kw))
    x = torch.randn(1, 5, 16)
    MoE(SITE, hidden=8)(x)
    assert len(taken) == 2
    MoE(SITE, hidden=9)(x)  # 36 bytes a row: no kernel for `down`, and 72 for `gate_up`
    MoE(SITE, hidden=8).double()(x.double())
    assert len(taken) == 2


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


@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_is_one_a_token_when_uniform_and_experts_over_k_at_worst(k):
    batch, time, experts = 2, 8, 4
    uniform = torch.full((batch, time, experts), 1 / experts)
    turns = (torch.arange(time)[:, None] + torch.arange(k)) % experts
    value, load = balance_loss(uniform, turns.expand(batch, time, k))
    assert float(value) == pytest.approx(batch * time) and load.tolist() == [batch * time * k / experts] * experts
    first = torch.arange(k).expand(batch, time, k)
    collapsed = F.one_hot(torch.zeros(batch, time, dtype=torch.long), experts).float()
    assert float(balance_loss(collapsed, first)[0]) == pytest.approx(batch * time * experts / k)


def test_balance_counts_real_tokens_only_and_adds_over_sequences():
    scores, chosen = (
        torch.randn(3, 6, 4).softmax(-1),
        torch.stack([torch.randperm(4)[:2] for _ in range(18)]).view(3, 6, 2),
    )
    real = torch.arange(6) < torch.tensor([[6], [4], [0]])
    whole, load = balance_loss(scores, chosen, real)
    cut = [balance_loss(scores[i : i + 1, :n], chosen[i : i + 1, :n]) for i, n in ((0, 6), (1, 4))]
    torch.testing.assert_close(whole, sum(value for value, _ in cut))
    assert torch.equal(load, cut[0][1] + cut[1][1]) and load.sum() == 2 * 10


def test_what_padding_holds_changes_no_auxiliary_sum():
    moe, real = MoE(SITE), torch.arange(6)[None] < torch.tensor([[6], [3]])
    x = torch.randn(2, 6, 16)
    other = torch.where(real[..., None], x, torch.randn(2, 6, 16))
    torch.testing.assert_close(moe(x, real)[1], moe(other, real)[1])
    weighted = moe(x, real)[1]
    torch.testing.assert_close(weighted["loss"], 0.01 * weighted["balance"] + 1e-3 * weighted["z"])


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
    kinds = [type(interleaved(Site(16, depth=4, layer=layer), every=2)) for layer in range(4)]
    assert kinds == [SwiGLU, MoE, SwiGLU, MoE]


def test_bad_sizes_are_refused_and_a_balance_of_zero_is_said():
    for options in ({"k": 9}, {"num_experts": 1}, {"num_shared": -1}, {"hidden": 0}, {"k": 1}, {"balance": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            MoE(SITE, **options)
    with pytest.raises(ValueError, match="every=3"):
        interleaved(Site(16, depth=2), every=3)
    with pytest.warns(UserWarning, match="balance"):
        MoE(SITE, balance=0.0)
