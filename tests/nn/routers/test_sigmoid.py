"""Sigmoid scores in log space, the bias of loss-free balance, and groups of experts."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.nn.lora import adapt
from kleiber.nn.mup import Site
from kleiber.nn.routers.sigmoid import GroupLimited, LossFree, Sigmoid

SITE = Site(16)


def test_sigmoid_is_the_published_formula_where_that_has_no_trouble():
    routing = Sigmoid(SITE, 8, 2)(torch.randn(20, 16))
    s = routing.logits.sigmoid()
    chosen = s.gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, chosen / chosen.sum(-1, keepdim=True))
    torch.testing.assert_close(routing.scores, s / s.sum(-1, keepdim=True))
    assert torch.equal(s.topk(2).indices, routing.experts)


@pytest.mark.parametrize("shift", [-300.0, -80.0, 0.0])
def test_sigmoids_that_vanish_cannot_lower_the_balance_loss(shift):
    router = Sigmoid(SITE, 8, 2)
    logits = (torch.randn(20, 8) + shift).requires_grad_()
    routing = router.route(logits)
    torch.testing.assert_close(routing.scores.sum(-1), torch.ones(20))
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(20))
    (grad,) = torch.autograd.grad(routing.weights[:, 0].sum() + routing.scores.square().sum(), logits)
    assert bool(grad.isfinite().all()) and float(grad.abs().max()) > 1e-4


def test_the_bias_moves_by_its_rate_against_the_load_and_changes_the_choice_but_not_the_weights():
    router, x = LossFree(SITE, 4, 2, rate=0.01), torch.randn(50, 16)
    router.rebalance(torch.tensor([10.0, 0.0, 5.0, 5.0]))
    torch.testing.assert_close(router.bias, torch.tensor([-0.01, 0.01, 0.0, 0.0]))
    assert "bias" in router.state_dict() and not any(p is router.bias for p in router.parameters())
    for _ in range(300):
        router.rebalance(torch.tensor([10.0, 0.0, 0.0, 0.0]))
    routing = router(x)
    assert not bool((routing.experts == 0).any())
    chosen = routing.logits.sigmoid().gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, chosen / chosen.sum(-1, keepdim=True))


def test_the_bias_of_a_frozen_router_stays():
    router = LossFree(SITE, 4, 2).requires_grad_(False)
    router.rebalance(torch.tensor([10.0, 0.0, 5.0, 5.0]))
    assert not router.bias.any()
    adapt(router.linear, "weight", 2, 1.0, torch.Generator())  # a low-rank update is trained
    router.rebalance(torch.tensor([10.0, 0.0, 5.0, 5.0]))
    assert router.bias.any()


@pytest.mark.slow
def test_the_bias_evens_the_load_of_a_skewed_router():
    router, x = LossFree(SITE, 8, 2), torch.randn(500, 16)
    x[:, 0] += 2
    router.linear.weight.data[0, 0] += 2

    def load():
        return F.one_hot(router(x).experts, 8).sum((0, 1)).float()

    before = float(load().max() / 125)
    for _ in range(600):
        router.rebalance(load())
    assert before > 2 and float(load().max() / 125) < 1.2


def test_a_token_stays_within_its_best_groups():
    router = GroupLimited(SITE, 8, 2, groups=4, limit=1)
    routing = router(torch.randn(60, 16))
    assert torch.equal(routing.experts[:, 0] // 2, routing.experts[:, 1] // 2)
    s = routing.logits.sigmoid().view(60, 4, 2).sum(-1)
    assert torch.equal(routing.experts[:, 0] // 2, s.argmax(-1))
    everywhere, alone = GroupLimited(SITE, 8, 2, groups=2, limit=2), LossFree(SITE, 8, 2)
    alone.load_state_dict(everywhere.state_dict())
    x = torch.randn(60, 16)
    assert torch.equal(everywhere(x).experts, alone(x).experts)


def test_a_balance_without_a_load_is_refused():
    with pytest.raises(ValueError, match="LossFree"):
        LossFree(SITE, 4, 2).rebalance(None)


@pytest.mark.parametrize(
    "router, options, key",
    [
        (Sigmoid, {"k": 1}, "k=1"),
        (GroupLimited, {"groups": 3}, "groups=3"),
        (GroupLimited, {"groups": 8, "limit": 1}, "limit=1"),
    ],
)
def test_a_router_that_cannot_route_is_refused_by_key(router, options, key):
    with pytest.raises(ValueError, match=key):
        router(SITE, **{"num_experts": 8, "k": 2} | options)
