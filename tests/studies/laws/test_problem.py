"""A problem on its rows: scales of the residuals, standard errors, and derivatives."""

import numpy as np
import pytest

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.problem import (
    SPACES,
    checked_problem,
    clip,
    convert,
    from_space,
    influence,
    relative_sigma,
    rho,
    to_space,
    zero_where_not_finite,
)

from .. import ladders


@pytest.mark.parametrize("space", ["log", "linear", "log10"])
def test_equal_errors_change_nothing(space):
    """Equal on the scale of the residuals: of L in linear space, of L relative to itself in log space."""
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    scale = relative_sigma(np.full(20, 0.013) * (1.0 if space == "linear" else L), L, space)
    plain = fit("chinchilla", rows, L, space=space)
    weighted = fit("chinchilla", rows, L, space=space, scale=scale)
    assert weighted.value == pytest.approx(plain.value, rel=1e-12)
    assert list(weighted.params.values()) == pytest.approx(list(plain.params.values()), rel=1e-12)


@pytest.mark.parametrize(("loss_fn", "share"), [("huber", 0.5), ("squared", 0.05)])
def test_a_row_with_ten_times_the_error_hardly_moves_the_fit(loss_fn, share):
    """Squared errors give it a hundredth of the weight; Huber's loss had bounded its pull before."""
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    off = L * np.where(np.arange(20) == 7, 1.05, 1.0)
    scale = relative_sigma(np.where(np.arange(20) == 7, 0.1, 0.01) * off, off, "log")
    at = {"N": np.array([3e9]), "D": np.array([6e10])}
    moves = []
    for by in (None, scale):
        row, other = (fit("chinchilla", rows, loss, loss_fn, scale=by).predict(at)[0] for loss in (L, off))
        moves.append(abs(other - row))
    assert moves[1] < share * moves[0]


def test_a_problem_on_its_own_rows_is_scaled_alike_whole_and_in_part():
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    scale = relative_sigma(np.linspace(0.01, 0.05, 20), L, "log")
    fitted = fit("chinchilla", rows, L, scale=scale)
    raw = np.log(fitted.predict(rows) / L)
    np.testing.assert_allclose(fitted.residuals * scale, raw, atol=1e-12)
    part = fitted.problem.rows(np.arange(5))
    np.testing.assert_allclose(part.predict(fitted.theta[None])[0] - part.observed, (raw / scale)[:5], atol=1e-12)
    np.testing.assert_allclose(np.exp(part.predict(fitted.theta[None])[0] * scale[:5]), fitted.predict(part.inputs))
    assert np.mean(relative_sigma(np.linspace(0.01, 0.05, 20), L, "linear") ** 2) == pytest.approx(1)


def test_jacobian_equals_the_derivative_by_hand():
    """d log L / d (log E, log A, log B, log alpha, log beta) of Chinchilla, in closed form."""
    table = ladders.twenty()
    fitted = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 2), "huber")
    p, N, D = fitted.params, fitted.problem.inputs["N"], fitted.problem.inputs["D"]
    size, scarce = p["A"] * N ** -p["alpha"], p["B"] * D ** -p["beta"]
    columns = [p["E"] + 0 * N, size, scarce, -size * np.log(N) * p["alpha"], -scarce * np.log(D) * p["beta"]]
    hand = np.column_stack(columns) / (p["E"] + size + scarce)[:, None]
    for draws in (1, 400):  # all coordinates in one call, and one at a time
        theta = np.repeat(fitted.theta[None], draws, axis=0)
        np.testing.assert_allclose(fitted.problem.jacobian(theta)[-1], hand, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_spaces_are_inverted_and_a_law_is_converted_into_each(space):
    loss = np.array([0.5, 2.0, 30.0])
    np.testing.assert_allclose(from_space(to_space(loss, space), space), loss)
    np.testing.assert_allclose(convert(np.log10(loss), "log10", space), to_space(loss, space))
    np.testing.assert_allclose(convert(loss, "linear", space), to_space(loss, space))


def test_coordinates_are_logarithms_of_positive_parameters_and_inverted_by_values():
    problem = checked_problem(find("interaction"), ladders.twenty(), ladders.loss(**ladders.twenty()), None, 1e-3, None)
    values = np.array([[1.7, 400.0, 410.0, -2e4, 0.34, 0.28]])
    theta = problem.coordinates(values)
    assert theta[0, 0] == pytest.approx(np.log(1.7)) and theta[0, 3] == -2e4  # F may be negative
    np.testing.assert_allclose(problem.values(theta), values)


def test_huber_is_quadratic_within_delta_and_linear_beyond():
    r = np.array([0.0, 0.05, 0.1, 0.3, -0.3])
    np.testing.assert_allclose(rho(r, "huber", 0.1), [0, 0.00125, 0.005, 0.025, 0.025])
    np.testing.assert_allclose(influence(r, "huber", 0.1), [1, 1, 1, 1 / 3, 1 / 3])
    assert rho(np.array([np.nan, -2.0]), "lad", 0.1).tolist() == [np.inf, 2.0]
    assert rho(r, "squared", 0.1)[3] == pytest.approx(0.09) and influence(r, "squared", 0.1).tolist() == [1] * 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss_fn": "mse"}, "'mse'"),
        ({"space": "ln"}, "'ln'"),
        ({"loss_fn": "huber", "delta": 0.0}, "delta 0"),
        ({"inputs": {"N": np.ones(20)}}, "lacks D"),
        ({"target": np.full(20, -1.0)}, "target -1 "),
    ],
)
def test_a_problem_that_cannot_be_solved_is_refused_with_the_value(changes, named):
    options = {"loss_fn": None, "delta": 1e-3, "space": None, "inputs": ladders.twenty(), "target": np.ones(20)}
    options |= changes
    with pytest.raises(ValueError, match=named):
        checked_problem(find("chinchilla"), **options)


def test_limits_are_those_of_numpy_and_only_numbers_stay():
    values = np.array([[-9.0, 2.0, np.nan], [np.inf, -np.inf, 0.5]])
    assert np.array_equal(clip(values, -3.0, 3.0), np.clip(values, -3.0, 3.0), equal_nan=True)
    assert np.array_equal(zero_where_not_finite(values), [[-9.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    assert np.array_equal(zero_where_not_finite(values[:, :1].clip(max=1)), [[-9.0], [1.0]])
