"""Parabolas by least squares: planted ones are found, with the spread of their vertex."""

import numpy as np
import pytest

from kleiber.inference.parabola import fit_parabola

X = np.linspace(-2.0, 3.0, 9)


def test_a_planted_parabola_is_found_with_a_level_for_each_group():
    groups = ["a", "b"] * 4 + ["a"]
    y = 0.3 * (X - 0.7) ** 2 + np.where(np.array(groups) == "b", 5.0, 1.0)
    curve = fit_parabola(X, y, groups, center=0.5)
    assert curve is not None and curve.vertex == pytest.approx(0.7) and curve.curvature == pytest.approx(0.3)
    assert curve.df == 5 and curve.squares == pytest.approx(0.0, abs=1e-20)
    assert curve.at([0.7, 1.7]) == pytest.approx([1.0, 1.3])


def test_the_spread_of_the_vertex_and_of_a_height_are_those_of_refits():
    rng, noise = np.random.default_rng(0), 0.01
    y = 0.3 * (X - 0.7) ** 2
    refits = [fit_parabola(X, y + rng.normal(0, noise, len(X))) for _ in range(2000)]
    curve = fit_parabola(X, y)
    assert curve is not None
    assert curve.spread(noise**2) == pytest.approx(np.std([refit.vertex for refit in refits if refit]), rel=0.1)
    heights = [float(refit.at(0.7)) for refit in refits if refit]
    assert curve.variance_at(0.7) ** 0.5 * noise == pytest.approx(np.std(heights), rel=0.1)


def test_a_curve_that_bends_downwards_has_no_vertex_and_two_rates_no_parabola():
    curve = fit_parabola(X, -(X**2))
    assert curve is not None and np.isnan(curve.vertex)
    assert fit_parabola([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) is None
