"""Choices, weights and scores of every router, and what each refuses."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.nn.mup import Site, StandardParametrization
from kleiber.nn.routers.expert_choice import ExpertChoice
from kleiber.nn.routers.hash import Hash, Random
from kleiber.nn.routers.sigmoid import GroupLimited, LossFree, Sigmoid
from kleiber.nn.routers.sinkhorn import Sinkhorn  # fmt: skip
from kleiber.nn.routers.topk import Noisy, Switch, TopK
from kleiber.types.batch import Batch

LEARNED = [TopK, Switch, Noisy, Sigmoid, LossFree, GroupLimited, Sinkhorn]
EVERY = [*LEARNED, Hash, Random]
SITE = Site(16)


def batch_of(rows: int, time: int, real=None) -> Batch:
    return Batch(torch.randint(50, (rows, time)), real=real, samples=torch.arange(rows))


@pytest.mark.parametrize("router", EVERY)
def test_k_different_experts_with_finite_weights_and_scores_that_are_a_distribution(router):
    routing = router(SITE, 8, 2).eval()(torch.randn(20, 16), batch_of(4, 5))
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
    one, two = router(x), router(x)
    torch.manual_seed(3)
    assert torch.equal(router(x).logits, one.logits) and not torch.equal(one.logits, two.logits)
    noise = one.logits - router.linear(x)
    assert noise.std().item() == pytest.approx(float(F.softplus(torch.zeros(()))), rel=0.1)
    one.weights[:, 0].sum().backward()
    assert router.noise.weight.grad.abs().max().item() > 0
    router.eval()
    assert torch.equal(router(x).logits, router.linear(x))


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


def test_hash_depends_on_the_id_and_the_layer_alone():
    ids = torch.arange(4000).view(40, 100)
    one, two = (Hash(Site(16, 2, layer), 8, 2) for layer in (0, 1))
    first = one(torch.randn(4000, 16), Batch(ids)).experts
    assert torch.equal(first, one(torch.randn(4000, 16), Batch(ids)).experts)
    assert 0.05 < float((first == two(torch.randn(4000, 16), Batch(ids)).experts).float().mean()) < 0.25
    load = torch.bincount(first.flatten(), minlength=8)
    assert float(load.min()) > 850 and float(load.max()) < 1150, "8000 assignments to 8 experts"
    with pytest.raises(ValueError, match="batch"):
        one(torch.randn(3, 16))


def test_random_depends_on_sample_and_position_and_is_uniform():
    router = Random(SITE, 8, 2)
    batch = Batch(torch.zeros(40, 100, dtype=torch.long), samples=torch.arange(40))
    experts = router(torch.randn(4000, 16), batch).experts
    load = torch.bincount(experts.flatten(), minlength=8)
    assert float(load.min()) > 850 and float(load.max()) < 1150
    half = batch.map(lambda t: t[20:])
    assert torch.equal(router(torch.randn(2000, 16), half).experts, experts[2000:])


def test_every_expert_takes_its_share_of_each_sequence_and_the_tokens_that_score_best():
    router = ExpertChoice(Site(16, causal=False), 4, 2)
    real = torch.arange(8) < torch.tensor([[8], [5]])
    routing = router(torch.randn(16, 16), batch_of(2, 8, real))
    kept = routing.kept.view(2, 8, 4)
    assert kept.sum(1).tolist() == [[4] * 4, [3] * 4] and not bool(kept[1, 5:].any())
    scores = routing.scores.view(2, 8, 4)[0]
    for e in range(4):
        assert set(scores[:, e].topk(4).indices.tolist()) == set(kept[0, :, e].nonzero().flatten().tolist())
    alone = router(torch.randn(8, 16), batch_of(1, 8))
    assert int(alone.kept.sum()) == 16


def test_expert_choice_is_refused_in_a_causal_model_until_the_leak_is_acknowledged():
    with pytest.raises(ValueError, match="acknowledge_leak"):
        ExpertChoice(Site(16), 4, 2)
    assert ExpertChoice(Site(16), 4, 2, acknowledge_leak=True).k == 2


def test_the_plan_of_sinkhorn_evens_the_load_in_training_alone():
    router, x = Sinkhorn(SITE, 8, 2, iterations=30), torch.randn(400, 16)
    x[:, 0] += 2
    router.linear.weight.data[0, 0] += 2
    training = F.one_hot(router(x, batch_of(4, 100)).experts, 8).sum((0, 1)).float()
    evaluation = F.one_hot(router.eval()(x).experts, 8).sum((0, 1)).float()
    assert float(training.max()) < 0.7 * float(evaluation.max())
    plan = router.plan(router.linear(x).detach().view(4, 100, 8), None).exp()
    torch.testing.assert_close(plan.sum(2), torch.ones(4, 100))
    torch.testing.assert_close(plan.sum(1), torch.full((4, 8), 100 / 8), atol=0.5, rtol=0.05)


def test_padding_does_not_move_the_plan():
    router = Sinkhorn(SITE, 4, 2)
    logits = torch.randn(1, 6, 4)
    real = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(router.plan(logits, real)[:, :4], router.plan(logits[:, :4], None))


@pytest.mark.parametrize(
    "router, options, told",
    [
        (TopK, {"k": 1}, "switch"), (Noisy, {"k": 1}, "k=1"), (Sigmoid, {"k": 1}, "k=1"), (Switch, {"k": 9}, "k=9"),
        (LossFree, {"rate": 0.0}, "rate"), (GroupLimited, {"groups": 3}, "groups=3"), (Hash, {"k": 9}, "k=9"),
        (GroupLimited, {"groups": 8, "limit": 1}, "limit=1"), (Sinkhorn, {"iterations": 0}, "iterations"),
    ],
)  # fmt: skip
def test_what_cannot_route_is_refused_by_name(router, options, told):
    with pytest.raises(ValueError, match=told):
        router(SITE, **{"num_experts": 8, "k": 2} | options)
