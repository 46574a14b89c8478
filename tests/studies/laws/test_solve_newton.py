"""Newton steps to a zero gradient: the same end from every start, and fixed rows that do not move."""

import numpy as np
import pytest

from kleiber.studies.laws.solve import descend, finish

from .test_solve import problem


@pytest.mark.parametrize("loss_fn", ["huber", "squared"])
def test_it_ends_at_one_point_from_wherever_a_descent_came_to_rest(loss_fn):
    """A descent leaves its rows at 1e-5 of each other; the finish takes them to the digits that arithmetic has."""
    result = problem(loss_fn)
    starts = result.theta + np.random.default_rng(0).normal(0, 0.1, (8, len(result.theta)))
    rest, _ = descend(result.problem, starts, rounds=100, tolerance=1e-6)
    theta, value = finish(result.problem, rest)
    assert np.ptp(rest, axis=0).max() > 1e-7
    np.testing.assert_allclose(theta, np.repeat(result.theta[None], 8, axis=0), rtol=2e-10)
    np.testing.assert_allclose(value, result.value, rtol=1e-12)


def test_each_row_has_its_own_targets_and_weights_and_may_have_a_coordinate_that_stays():
    result = problem("squared")
    rng = np.random.default_rng(1)
    weights = rng.multinomial(20, np.full(20, 0.05), size=3).astype(float)
    targets = result.problem.observed + rng.normal(0, 0.005, (3, 20))
    starts = np.repeat(result.theta[None], 3, axis=0) + 0.01
    rest, _ = descend(result.problem, starts, targets, weights, fixed=3)
    theta, value = finish(result.problem, rest, targets, weights, fixed=3)
    assert (theta[:, 3] == starts[:, 3]).all()
    r = result.problem.predict(theta) - targets
    np.testing.assert_allclose(value, (weights * r**2).sum(1), rtol=1e-12)
    slope = np.einsum("br,brp->bp", weights * r, result.problem.jacobian(theta))
    assert np.abs(np.delete(slope, 3, axis=1)).max() < 1e-11 < np.abs(slope[:, 3]).min()


def test_corners_are_left_as_they_are():
    result = problem("lad")
    theta, value = finish(result.problem, result.theta[None] + 1e-4)
    assert (theta[0] == result.theta + 1e-4).all() and value[0] > result.value
