"""Moderated variances: limits, recovery of a known prior, and what groups with unequal variances keep."""

import math

import numpy as np
import pytest
from scipy.special import polygamma

from kleiber.inference.moderation import Prior, estimate_prior, inverse_trigamma, moderate, pooled_variance


def test_the_pooled_variance_is_that_within_cells():
    rng = np.random.default_rng(0)
    cells = [rng.normal(5, 2, 4), rng.normal(-3, 2, 3), [1.0]]
    variance, df = pooled_variance(cells)
    assert df == 5
    assert variance == pytest.approx((3 * np.var(cells[0], ddof=1) + 2 * np.var(cells[1], ddof=1)) / 5)
    assert pooled_variance([[1.0]])[1] == 0 and math.isnan(pooled_variance([])[0])


@pytest.mark.parametrize("x", [1e-4, 0.3, 2.0, 40.0, 1e8])
def test_the_inverse_of_the_trigamma_function(x):
    assert inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x, rel=1e-6)


@pytest.mark.parametrize(("df", "sd"), [(4.0, 0.5), (10.0, 3.0)])
def test_a_known_prior_is_recovered_from_many_variances(df, sd):
    rng, count, own = np.random.default_rng(1), 200_000, 4
    true = sd**2 * df / rng.chisquare(df, count)
    prior = estimate_prior(true * rng.chisquare(own, count) / own, np.full(count, own))
    assert prior.groups == count
    assert prior.df == pytest.approx(df, rel=0.05)
    assert prior.sd == pytest.approx(sd, rel=0.01)


def test_equal_variances_are_one_variance_and_unequal_ones_are_nearly_kept():
    equal = estimate_prior(np.linspace(0.9, 1.1, 12), np.full(12, 2))
    assert equal.df == math.inf and equal.sd == pytest.approx(1.0)
    unequal = np.array([1e-6, 1e-3, 1.0, 1e3] * 3)
    prior = estimate_prior(unequal, np.full(12, 2))
    assert prior.df < 0.5
    shrunk, df = moderate(unequal, np.full(12, 2), prior, 24)
    assert shrunk[-1] > 0.8 * unequal[-1] and df.max() < 2.5


def test_the_limits_of_a_prior():
    s2, d = np.array([1.0, 4.0]), np.array([2.0, 3.0])
    kept, df = moderate(s2, d, Prior(0.0, 9.0, 2), 5)
    assert kept.tolist() == [1, 4] and df.tolist() == [2, 3]
    pooled, df = moderate(s2, d, Prior(math.inf, 1.5, 2), 5)
    assert pooled == pytest.approx([2.25, 2.25]) and df.tolist() == [5, 5]
    between, df = moderate(s2, d, Prior(2.0, 1.5, 2), 4.5)
    assert between == pytest.approx([(2 * 2.25 + 2 * 1) / 4, (2 * 2.25 + 3 * 4) / 5]) and df.tolist() == [4, 4.5]


def test_a_single_variance_and_variances_of_nothing_have_no_prior():
    assert estimate_prior([2.0], [3]).df == 0
    assert estimate_prior([0.0, 0.0, 1.0], [2, 2, 2]).df == 0
    assert estimate_prior([], []).df == 0
