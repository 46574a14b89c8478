"""Boundaries of tests that are looked at repeatedly: published constants, Student's t, and simulated crossings."""

import math

import numpy as np
import pytest
from scipy import stats

from kleiber.inference.sequential import boundary, crossing_chance, e_value


@pytest.mark.parametrize(("looks", "published"), [(2, 2.178), (5, 2.413), (10, 2.555)])
def test_boundaries_are_those_of_pocock(looks, published):
    """Two-sided constants at an error of 0.05 (Jennison and Turnbull 2000, table 2.1), whose sides hardly overlap."""
    assert boundary(0.025, looks, math.inf) == pytest.approx(published, abs=2e-3)


@pytest.mark.parametrize("df", [3.0, 5.5, 40.0])
def test_the_boundary_of_one_look_is_students_t(df):
    assert boundary(0.003, 1, df) == pytest.approx(stats.t.isf(0.003, df), rel=2e-4)


def test_sums_with_an_estimated_deviation_cross_as_often_as_the_error_says():
    noise = np.random.default_rng(0)
    looks, df, error, count = 6, 5, 0.1, 40_000
    means = np.cumsum(noise.standard_normal((count, looks)), 1) / np.sqrt(np.arange(1, looks + 1))
    sd = np.sqrt(noise.chisquare(df, count) / df)
    crossed = (means >= boundary(error, looks, df) * sd[:, None]).any(1).mean()
    assert crossed == pytest.approx(error, abs=4 * math.sqrt(error * (1 - error) / count))


def test_more_looks_and_fewer_degrees_of_freedom_move_the_boundary_outwards():
    assert boundary(0.01, 3, 10.0) < boundary(0.01, 6, 10.0) < boundary(0.01, 6, 4.0)
    assert crossing_chance(3.0, 4, math.inf) < crossing_chance(2.0, 4, math.inf)


@pytest.mark.parametrize(("error", "df"), [(0.0, 5.0), (0.5, 5.0), (0.1, 0.0), (math.nan, 5.0)])
def test_errors_and_degrees_that_make_no_boundary_are_refused(error, df):
    with pytest.raises(ValueError, match="must be"):
        boundary(error, 3, df)


def test_an_e_value_rarely_exceeds_one_over_the_error_where_there_is_no_gain():
    noise = np.random.default_rng(1)
    totals = np.cumsum(noise.standard_normal((4_000, 20)), 1)
    largest = [max(e_value(float(total), at) for at, total in enumerate(row, 1)) for row in totals]
    assert np.mean(np.array(largest) >= 10) <= 0.1
    assert e_value(12.0, 4) > 100
