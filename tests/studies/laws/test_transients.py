"""Score tests of transients against generalized least squares, with the degrees of freedom of trunks."""

from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.transients import detectable, diagnose, linear_terms, residual_precision
from kleiber.studies.laws.variance_components import VarianceComponents

from .. import ladders


def measured_with(between, within=4e-5, clusters=True):
    """Tests of 6 trunks x 5 branches whose noise has these variances, whatever was measured."""
    table = ladders.small()
    loss = ladders.noisy(ladders.small_loss(**table), 0)
    trunk = np.repeat(np.arange(6), 5)
    model = NoiseModel.of(fit("chinchilla", table, loss, "squared"), trunk if clusters else None)
    measured = diagnose(model)
    df_between, df_within = (3.0, 22.0) if between else (25.0, 25.0)
    noise = VarianceComponents(between, within, df_between, df_within, 3.0, 0.0, 0.0, 5.0)
    return replace(
        measured, noise=noise, precision=residual_precision(noise.covariance(model.layout), measured.tangent)
    )


def directions(tests):
    """Transients in D and in N, and a term of both, relative to the loss."""
    inputs = tests.least.problem.inputs
    terms = [np.exp(-inputs["D"] / 2e6), np.exp(-inputs["N"] / 1e5), np.log(inputs["N"]) * np.log(inputs["D"])]
    return np.stack(terms) / tests.least.predict(inputs)


def least_squares(tests, direction, covariance):
    """Height and standard error of a column beside the law's gradient, by generalized least squares."""
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    columns = np.column_stack([tests.tangent / np.linalg.norm(tests.tangent, axis=0), direction])
    inverse = np.linalg.pinv(root @ columns)
    return (inverse @ root @ tests.residuals)[-1], np.sqrt((inverse @ inverse.T)[-1, -1])


@pytest.mark.parametrize("between", [0.0, 2e-4])
def test_scores_are_least_squares(between):
    """Ordinary where noise is independent and equal, generalized where branches share it."""
    tests = measured_with(between)
    covariance = 4e-5 * np.eye(30) + between * np.kron(np.eye(6), np.ones((5, 5)))
    heights, errors, df = tests.score(directions(tests))
    expected = np.array([least_squares(tests, direction, covariance) for direction in directions(tests)])
    np.testing.assert_allclose(np.stack([heights, errors], 1), expected, rtol=1e-6)
    if not between:
        np.testing.assert_array_equal(df, 25.0)


def test_a_score_counts_only_what_the_law_cannot_absorb():
    tests = measured_with(2e-4)
    added = tests.tangent @ np.array([0.1, -0.2, 0.3, 0.1, 0.2])
    for there, moved in zip(tests.score(directions(tests)), tests.score(directions(tests) + added), strict=True):
        np.testing.assert_allclose(moved, there, rtol=1e-6)
    covariance = tests.noise.covariance(tests.layout)
    np.testing.assert_allclose(tests.precision @ covariance @ tests.precision, tests.precision, rtol=1e-6, atol=1e-3)


def test_noise_of_trunks_blurs_tests_along_size_alone():
    """The branches of a trunk differ in D, so the noise that they share cancels there; along N it does not."""
    (_, alone, _), (_, shared, df) = (
        tests.score(directions(tests)) for tests in (measured_with(0.0), measured_with(2e-4))
    )
    assert shared[1] > 2 * alone[1] and shared[0] < 1.1 * alone[0]
    assert df[1] < 4 and df[0] > 20


@pytest.mark.slow
def test_tests_along_size_have_the_degrees_of_freedom_of_trunks():
    """Of trunks at most, pooled noise or not; along D and for rows without trunks those of the variance."""
    df = np.array([2.0, 25.0])
    assert [measured_with(between).df_along("N", df).tolist() for between in (0.0, 2e-4)] == [[2.0, 3.0]] * 2
    assert measured_with(0.0).df_along("C", df).tolist() == [2.0, 3.0]
    assert measured_with(0.0).df_along("D", df).tolist() == df.tolist()
    assert measured_with(0.0, clusters=False).df_along("N", df).tolist() == df.tolist()


def test_twice_the_noise_hides_transients_twice_as_large():
    once, twice = (np.array(detectable(measured_with(0.0, within))) for within in (1e-4, 4e-4))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


@pytest.mark.parametrize("space", ["log", "linear"])
def test_linear_terms_are_the_slopes_of_the_target_in_their_factors(space):
    rows = ladders.twenty()
    least = fit("chinchilla", rows, ladders.noisy(ladders.loss(**rows), 0, 0.002), space=space)
    *_, alpha, beta = least.values[0]
    loss = least.predict(rows)
    slopes = np.column_stack([np.ones(20), rows["N"] ** -alpha, rows["D"] ** -beta])
    expected = slopes / loss[:, None] if space == "log" else slopes
    np.testing.assert_allclose(linear_terms(least), expected, rtol=1e-9)
