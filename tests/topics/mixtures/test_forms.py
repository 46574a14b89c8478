"""Forms of the law of mixtures: known parameters are recovered, and the best mixture is the minimum on the simplex."""

import numpy as np
import pytest

from kleiber_topics.mixtures.forms import Form, best_mixtures, degrees, fit_form, refit

from .tables import mixtures


def read(name, losses=1, noise=0.0):
    frame, truth = mixtures(rows=80, noise=noise, form=name, losses=losses)
    weights = frame.filter(like="w_").to_numpy()
    return weights, frame.filter(like="loss_").to_numpy().T, truth


@pytest.mark.parametrize("name", ["ridge", "exponential", "linear"])
def test_a_form_predicts_losses_without_noise(name):
    weights, losses, _ = read(name, losses=2)
    form, params = fit_form(name, weights, losses, 4)
    error = np.abs(form.predict(params, weights) - losses).max()
    assert error < (0.02 if name == "ridge" else 1e-5)  # its floor of the logs is one of a grid
    assert np.allclose(refit(form, weights, losses, params), params, atol=1e-4)


def test_the_exponential_form_recovers_its_parameters():
    weights, losses, truth = read("exponential", losses=2)
    _, params = fit_form("exponential", weights, losses, 4)
    assert params == pytest.approx(truth, abs=1e-3)


def test_a_penalty_leaves_fewer_degrees_of_freedom():
    weights, _, _ = read("ridge")
    assert degrees(Form("ridge", 4, 0.02, 10.0), weights) < degrees(Form("ridge", 4, 0.02, 1e-9), weights) <= 7.0
    assert degrees(Form("linear", 4), weights) == pytest.approx(4.0)


@pytest.mark.parametrize(("name", "losses"), [("ridge", 1), ("ridge", 2), ("exponential", 3), ("linear", 2)])
def test_no_other_mixture_has_a_lower_loss_than_the_best(name, losses):
    rng = np.random.default_rng(1)
    params = np.concatenate([np.ones((6, losses, 1)), rng.normal(0, 0.5, (6, losses, 4))], axis=2)
    form = Form(name, 4, 0.02)
    best = best_mixtures(form, params)
    assert best.min() >= 0 and best.sum(1) == pytest.approx(np.ones(6))
    others = np.concatenate([rng.dirichlet(np.full(4, 0.4), size=4000), np.eye(4)])
    for row, mixture in zip(params, best, strict=True):
        least = form.predict(row, others).mean(0).min()
        assert form.predict(row, mixture[None]).mean() <= least + 2e-3


def test_weights_are_divided_in_proportion_to_their_benefit_where_the_floor_is_small():
    params = np.array([[[3.0, -0.3, -0.1, 0.2, -0.1]]])
    assert best_mixtures(Form("ridge", 4, 1e-6), params)[0] == pytest.approx([0.6, 0.2, 0.0, 0.2], abs=1e-4)
