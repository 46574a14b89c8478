"""The batched solver: independent descents, fixed coordinates, and a polish to ten digits."""

from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.solve import descend, polish

from .. import ladders


def problem(loss_fn="huber"):
    table = ladders.twenty()
    return fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 2), loss_fn)


def test_a_batch_equals_its_problems_one_by_one():
    result = problem("squared")
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 0.05), size=4).astype(float)
    starts = np.repeat(result.theta[None], 4, axis=0)
    together, _ = descend(result.problem, starts, weights=weights)
    for i in range(4):
        alone, _ = descend(result.problem, starts[:1], weights=weights[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-7)


def test_a_fixed_coordinate_stays_and_the_others_move():
    result = problem("squared")
    start = result.theta[None] + 0.1
    theta, value = descend(result.problem, start, fixed=3)
    assert theta[0, 3] == start[0, 3] and not np.isclose(theta[0, 0], start[0, 0]) and value[0] > result.value


@pytest.mark.parametrize("loss_fn", ["huber", "squared", "lad"])
def test_polish_reaches_the_same_value_from_nearby(loss_fn):
    result = problem(loss_fn)
    theta = polish(result.problem, result.theta + 0.003)
    tolerance = 1e-4 if loss_fn == "lad" else 1e-9  # lad is the limit of smooth problems
    assert replace(result, theta=theta).value == pytest.approx(result.value, rel=tolerance)
    assert not np.allclose(theta, result.theta + 0.003, atol=1e-4)


def test_refits_whose_floor_tends_to_zero_reach_their_minima():
    """Valleys that are long and curved: after 50 rounds four of ten of these refits are far from their ends."""
    table = ladders.small()
    L = ladders.noisy(ladders.loss(**table, E=0.05, A=30.0, B=40.0, alpha=0.15, beta=0.15), 2, 0.005)
    result = fit("chinchilla", table, L)
    weights = np.random.default_rng(0).multinomial(len(L), np.full(len(L), 1 / len(L)), size=60).astype(float)
    theta, value = descend(result.problem, np.repeat(result.theta[None], 60, axis=0), weights=weights)
    _, least = descend(result.problem, theta, weights=weights, rounds=3000, tolerance=1e-12)
    assert (value / least).max() < 1.01
