"""Joint intervals: closed forms, Dunnett's and Tukey's tests, and contrasts that are sums of others."""

import math

import numpy as np
import pytest
from scipy.stats import dunnett, norm, studentized_range, t

from kleiber.inference.joint import design_correlation, level_of_each, probability, quantile


def many_to_one(arms: int) -> np.ndarray:
    """The correlation of differences of `arms` arms from one plain arm, with as many seeds each."""
    weights = np.column_stack([-np.ones(arms), np.eye(arms)])
    return design_correlation(weights, np.ones(arms + 1))


def test_one_contrast_has_students_quantile():
    assert level_of_each([[1.0]], 4, 0.9) == 0.9
    assert quantile(4, 0.9) == pytest.approx(t.ppf(0.95, 4)) and quantile(math.inf, 0.9) == pytest.approx(
        norm.ppf(0.95)
    )
    assert math.isnan(quantile(0, 0.9))


def test_independent_contrasts_with_known_variance_have_sidaks_level():
    assert level_of_each(np.eye(6), math.inf, 0.9) == pytest.approx(0.9 ** (1 / 6), abs=1e-7)


def test_independent_contrasts_with_one_variance_have_the_integral_over_it():
    df, count, draws = 4, 5, np.random.default_rng(0).chisquare(4, 400_000)
    half = quantile(df, level_of_each(np.eye(count), df, 0.9))
    assert ((2 * norm.cdf(half * np.sqrt(draws / df)) - 1) ** count).mean() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("seeds", [3, 6])
def test_many_arms_against_one_have_dunnetts_p_values(seeds):
    rng, arms = np.random.default_rng(seeds), 5
    plain, others = rng.normal(size=seeds), [rng.normal(0.4 * i, 1, seeds) for i in range(arms)]
    result = dunnett(*others, control=plain, rng=np.random.default_rng(0))
    df = (arms + 1) * (seeds - 1)
    alone = [2 * float(t.sf(abs(statistic), df)) for statistic in result.statistic]
    inside = probability(many_to_one(arms), df)
    adjusted = [1 - inside(np.full(arms, quantile(df, 1 - p))) for p in alone]
    assert adjusted == pytest.approx(result.pvalue, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "df"), [(3, 6), (5, 20)])
def test_all_pairs_have_tukeys_quantile_though_their_correlation_is_singular(groups, df):
    pairs = [(i, j) for i in range(groups) for j in range(i)]
    weights = [[(g == i) - (g == j) for g in range(groups)] for i, j in pairs]
    half = quantile(df, level_of_each(design_correlation(weights, np.ones(groups)), df, 0.9))
    assert half == pytest.approx(studentized_range.ppf(0.9, groups, df) / math.sqrt(2), rel=5e-4)


def test_a_contrast_and_its_opposite_are_one():
    correlation = np.array([[1.0, -1.0, 0.5], [-1.0, 1.0, -0.5], [0.5, -0.5, 1.0]])
    assert level_of_each(correlation, 8, 0.9) == level_of_each(correlation[::2, ::2], 8, 0.9)


def test_contrasts_that_hardly_differ_are_one():
    close = np.full((3, 3), 1 - 1e-6) + 1e-6 * np.eye(3)
    assert level_of_each(close, 8, 0.9) == pytest.approx(0.9, abs=2e-3)


@pytest.mark.slow
def test_levels_lie_between_those_of_one_contrast_and_bonferronis_and_are_reproducible():
    level_of_each.__globals__["_level_of_each"].cache_clear()
    first = level_of_each(many_to_one(6), 14, 0.9)
    level_of_each.__globals__["_level_of_each"].cache_clear()
    assert level_of_each(many_to_one(6), 14, 0.9) == first
    assert 0.9 < first < 1 - 0.1 / 6


@pytest.mark.slow
def test_forty_contrasts_lie_close_to_what_dunnetts_integral_gives():
    level = level_of_each(many_to_one(40), 82, 0.9)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    scales = np.sqrt(np.random.default_rng(0).chisquare(82, 4000) / 82)[:, None]
    half, half_sd = quantile(82, level), math.sqrt(0.5)
    ends = [norm.cdf((sign * half * scales + half_sd * nodes) / half_sd) for sign in (1, -1)]
    assert float(((ends[0] - ends[1]) ** 40 @ (weights / weights.sum())).mean()) == pytest.approx(0.9, abs=2e-3)
