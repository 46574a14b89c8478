"""Weights, experts and scores of the token-choice routers."""

import torch

from kleiber.nn.parametrization import Site, Standard
from kleiber.nn.routers import Switch, TopK


def test_topk_weights_are_the_chosen_probabilities_renormalised():
    x = torch.randn(20, 16)
    routing = TopK(Site(16), 6, 3)(x)
    chosen = routing.scores.gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, chosen / chosen.sum(-1, keepdim=True))
    assert torch.equal(routing.scores.topk(3).indices, routing.experts)


def test_switch_weights_are_the_chosen_probabilities():
    routing = Switch(Site(16), 6, 1)(torch.randn(20, 16))
    assert torch.equal(routing.weights, routing.scores.max(-1, keepdim=True).values)


def test_logits_carry_the_multiplier_of_an_output():
    for parametrization, multiplier in (({}, 0.25), ({"parametrization": Standard()}, 1.0)):
        router = TopK(Site(128, **parametrization), 4, 2)
        x = torch.randn(3, 128)
        torch.testing.assert_close(router(x).logits, multiplier * x @ router.linear.weight.T)
