"""Choices, weights, scores and margins of routers in which tokens choose, and the top-k routers' own formulas."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.nn.mup import Site, StandardParametrization
from kleiber.nn.routers.hash import Hash, Random
from kleiber.nn.routers.sigmoid import GroupLimited, LossFree, Sigmoid
from kleiber.nn.routers.sinkhorn import Sinkhorn
from kleiber.nn.routers.topk import Noisy, Switch, TopK, check_sizes
from kleiber.types.batch import Batch

LEARNED = [TopK, Switch, Noisy, Sigmoid, LossFree, GroupLimited, Sinkhorn]
EVERY = [*LEARNED, Hash, Random]
SITE = Site(16)


@pytest.mark.parametrize("router", EVERY)
def test_k_different_experts_with_finite_weights_and_scores_that_are_a_distribution(router):
    routing = router(SITE, 8, 2).eval()(torch.randn(20, 16), Batch(torch.randint(50, (4, 5)), samples=torch.arange(4)))
    assert routing.experts.shape == routing.weights.shape == (20, 2)
    assert bool((routing.experts[:, 0] != routing.experts[:, 1]).all())
    torch.testing.assert_close(routing.scores.sum(-1), torch.ones(20))
    if router.sums_to_one:
        torch.testing.assert_close(routing.weights.sum(-1), torch.ones(20))


@pytest.mark.parametrize("router", LEARNED)
def test_forcing_the_choice_a_router_made_reproduces_its_routing(router):
    router = router(SITE, 8, 2).eval()
    logits = router.linear(torch.randn(20, 16))
    free = router.route(logits)
    frozen = router.route(logits, free.experts)
    assert torch.equal(frozen.weights, free.weights)
    other = router.route(logits, free.experts.flip(1).add(1) % 8)
    assert not torch.equal(other.weights, free.weights)


@pytest.mark.parametrize("router", LEARNED)
def test_logits_and_weights_stay_fp32_under_bf16_autocast(router):
    router, x = router(SITE, 8, 2).eval(), torch.randn(20, 16)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x)
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.logits, router(x).logits)


@pytest.mark.parametrize("router", [TopK, Switch, Sigmoid])
def test_the_margin_is_how_far_the_kth_score_is_above_the_next(router):
    routing = router(SITE, 8, 3)(torch.randn(20, 16))
    ordered = routing.scores.sort(-1, descending=True).values
    torch.testing.assert_close(routing.margin, ordered[:, 2] - ordered[:, 3])
    assert router(SITE, 8, 8)(torch.randn(20, 16)).margin is None


def test_topk_weights_are_the_chosen_probabilities_renormalised():
    routing = TopK(SITE, 6, 3)(torch.randn(20, 16))
    chosen = routing.scores.gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, chosen / chosen.sum(-1, keepdim=True))
    assert torch.equal(routing.scores.topk(3).indices, routing.experts)


def test_switch_weights_are_the_chosen_probabilities():
    routing = Switch(SITE, 6, 1)(torch.randn(20, 16))
    assert torch.equal(routing.weights, routing.scores.max(-1, keepdim=True).values)


def test_logits_carry_the_multiplier_of_an_output():
    for parametrization, multiplier in (({}, 0.25), ({"parametrization": StandardParametrization()}, 1.0)):
        router = TopK(Site(128, **parametrization), 4, 2)
        x = torch.randn(3, 128)
        torch.testing.assert_close(router(x).logits, multiplier * x @ router.linear.weight.T)


def test_noise_is_of_the_generator_off_in_evaluation_and_learned():
    router, x = Noisy(SITE, 8, 2), torch.randn(200, 16)
    torch.manual_seed(3)
    first, second = router(x), router(x)
    torch.manual_seed(3)
    assert torch.equal(router(x).logits, first.logits) and not torch.equal(first.logits, second.logits)
    noise = first.logits - router.linear(x)
    assert noise.std().item() == pytest.approx(float(F.softplus(torch.zeros(()))), rel=0.1)
    first.weights[:, 0].sum().backward()
    assert router.noise.weight.grad.abs().max().item() > 0
    router.eval()
    assert torch.equal(router(x).logits, router.linear(x))


@pytest.mark.parametrize(("num_experts", "k"), [(1, 2), (8, 0), (8, 9)])
def test_one_to_all_experts_can_be_chosen(num_experts, k):
    check_sizes(2, 1)
    check_sizes(8, 8)
    with pytest.raises(ValueError, match=rf"k={k}\b.*num_experts={num_experts}\b"):
        check_sizes(num_experts, k)


@pytest.mark.parametrize(
    "router, options, key",
    [(TopK, {"k": 1}, "k=1"), (Noisy, {"k": 1}, "k=1"), (Switch, {"k": 9}, "k=9"), (Hash, {"k": 9}, "k=9")],
)
def test_a_router_that_cannot_route_is_refused_by_key(router, options, key):
    with pytest.raises(ValueError, match=key):
        router(SITE, **{"num_experts": 8, "k": 2} | options)
