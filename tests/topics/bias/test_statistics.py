"""Means by stratum, tests against chance, and the correction for many groups, against direct computations."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from kleiber.evals.evaluation import percentile_score
from kleiber_topics.bias.statistics import Strata, q_values, sign_test


def test_a_mean_is_that_of_the_means_of_strata():
    strata = Strata.of(["a", "b", "a", "a"])
    assert strata.mean(np.array([1.0, 0.0, 0.0, 1.0])) == pytest.approx((2 / 3 + 0) / 2)


def test_resamples_keep_the_strata_and_pair_the_values():
    strata = Strata.of(["a"] * 30 + ["b"])
    values = np.arange(31.0)
    first, second = strata.resampled_means(values, 2 * values)
    assert second == pytest.approx(2 * first)
    assert first.mean() == pytest.approx((14.5 + 30) / 2, abs=0.1)  # the single item of b is in every resample
    assert first.std() == pytest.approx(np.std(np.arange(30)) / np.sqrt(30) / 2, rel=0.1)
    score = percentile_score(3.0, np.linspace(0, 1, 1001), 7)
    assert (score.value, score.lo, score.hi, score.n) == (3.0, pytest.approx(0.05), pytest.approx(0.95), 7)


def test_a_single_stratum_has_the_binomial_test_without_ties():
    prefers = np.array([1.0] * 9 + [0.0] * 2 + [0.5] * 5)
    assert sign_test(prefers, Strata.of([""] * 16)) == binomtest(9, 11).pvalue
    assert sign_test(np.full(4, 0.5), Strata.of([""] * 4)) == 1.0


def test_clusters_are_resampled_as_a_whole_and_have_the_exact_test_of_flipped_clusters():
    random = np.random.default_rng(0)
    means, clusters = random.normal(size=30), np.repeat([f"c{i}" for i in range(30)], 4)
    values = np.repeat(means, 4)
    (resampled,) = Strata.of([""] * 120, clusters.tolist()).resampled_means(values)
    assert resampled.std() == pytest.approx(means.std() / np.sqrt(30), rel=0.1)  # that of 30 values, not of 120
    prefers = np.array([1, 1, 1, 0, 0, 1, 0.5, 1, 1, 1, 1, 1.0])
    balances = (2 * prefers - 1).reshape(4, 3).sum(1)
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    exact = (abs(signs @ balances) >= abs(balances.sum())).mean()
    assert sign_test(prefers, Strata.of([""] * 12, [*"aaabbbcccddd"])) == pytest.approx(exact)
    alone = [""] * 12
    assert sign_test(prefers, Strata.of(alone, alone)) == sign_test(prefers, Strata.of(alone)) < exact


def test_strata_have_the_test_of_the_mean_of_their_means():
    sizes, hits = (3, 6), (3, 5)
    prefers = np.concatenate([[1.0] * k + [0.0] * (n - k) for n, k in zip(sizes, hits, strict=True)])
    strata = Strata.of(["a"] * 3 + ["b"] * 6)
    distance = abs((3 / 3 + 5 / 6) / 2 - 0.5)
    exact = sum(
        binom.pmf(a, 3, 0.5) * binom.pmf(b, 6, 0.5)
        for a in range(4)
        for b in range(7)
        if abs((a / 3 + b / 6) / 2 - 0.5) >= distance - 1e-9
    )
    assert sign_test(prefers, strata) == pytest.approx(exact, rel=0.1)


def test_q_values_are_those_of_benjamini_and_hochberg():
    p = [0.01, 0.04, 0.03, 0.5]
    slow = [min(min(1.0, 4 / rank * sorted(p)[rank - 1]) for rank in range(sorted(p).index(x) + 1, 5)) for x in p]
    assert q_values(p) == pytest.approx(slow)
    assert q_values([0.2]) == [0.2]


def test_the_false_discovery_rate_is_kept_where_no_group_is_biased():
    random = np.random.default_rng(1)
    reported = 0
    for _ in range(40):
        p = [sign_test((random.random(40) < 0.5).astype(float), Strata.of([""] * 40)) for _ in range(9)]
        reported += min(q_values(p)) <= 0.1
    assert reported <= 8  # all of them false: at most a tenth of the studies, here 4 +- 2
