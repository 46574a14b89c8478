"""Tuning curves: unbiased means, and bands that hold together for losses of any distribution."""

import itertools
import math

import numpy as np
import pytest

from kleiber.studies.search_trials import curve, distribution_band, expected_best, median_band, running_best


def test_the_mean_is_that_over_all_subsets():
    losses = [3.0, 1.0, 2.5, 1.5, 4.0]
    for count in range(1, 6):
        subsets = [min(subset) for subset in itertools.combinations(losses, count)]
        assert expected_best(losses, count) == pytest.approx(np.mean(subsets))
    assert expected_best([1.0, math.inf, 2.0], 1) == math.inf and expected_best([1.0, math.inf, 2.0], 2) < 2


@pytest.mark.parametrize("inverse", [lambda u: u, lambda u: np.exp(-3 * u), lambda u: -np.log(u)])
def test_the_band_of_the_median_holds_for_all_numbers_of_trials_together(inverse):
    n, rng = 16, np.random.default_rng(0)
    share = 1 - 0.5 ** (1 / np.arange(1, n + 1))
    uniform = rng.random((60, n))
    falling = inverse(0.2) > inverse(0.8)
    truth = inverse(1 - share) if falling else inverse(share)
    held = [((lo <= truth) & (truth <= hi)).all() for lo, hi in (median_band(inverse(row), 0.8) for row in uniform)]
    assert np.mean(held) >= 0.8


def test_the_band_of_a_distribution_function_holds_at_its_level():
    rng = np.random.default_rng(1)
    lo, hi = distribution_band(20, 0.9)
    uniform = np.sort(rng.random((4000, 20)), axis=1)
    assert ((lo <= uniform) & (uniform <= hi)).all(axis=1).mean() == pytest.approx(0.9, abs=0.02)


def test_a_curve_has_no_number_where_there_is_no_bound():
    rows = curve([2.0, 1.0, 3.0, math.inf], 0.9)
    assert [row["trials"] for row in rows] == [1, 2, 3, 4] and rows[0]["mean"] is None and rows[3]["mean"] == 1.0
    assert rows[3]["lo"] is None


def test_the_best_loss_so_far_never_rises_and_has_no_band():
    rows = running_best([math.inf, 3.0, 4.0, 2.0])
    assert [(row["mean"], row["lo"], row["hi"]) for row in rows] == [(x, None, None) for x in (None, 3.0, 3.0, 2.0)]
