"""The measure at the best rate: exact parabolas, the cell where a parabola is no answer, and the winner's curse."""

import numpy as np
import pytest

from kleiber.inference.optimum import LEAST_RATES, at_best_rate, misfit

RATES = 0.01 * 2.0 ** np.arange(-2, 3)


def parabola(at: float, value: float = 3.0, curvature: float = 0.05, rates: np.ndarray = RATES) -> np.ndarray:
    return (value + curvature * np.log2(rates / at) ** 2)[:, None].repeat(3, axis=1)


@pytest.mark.parametrize("at", [0.01, 0.007, 0.015])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_vertex_of_a_parabola_is_found(at, sign):
    best = at_best_rate(RATES, sign * parabola(at), higher_is_better=sign < 0)
    assert best.fitted and best.why == ""
    assert best.rate == pytest.approx(at) and best.value == pytest.approx(sign * 3)


@pytest.mark.parametrize(
    ("rates", "table", "why"),
    [
        (RATES[1:], parabola(0.01, rates=RATES[1:]), str(LEAST_RATES)),
        (RATES, parabola(0.2), "no vertex"),
        (RATES, parabola(0.01, curvature=-0.01), "no vertex"),
        (RATES, np.where(RATES[-1] == RATES, np.inf, 0.0)[:, None] + parabola(0.01), "diverged"),
    ],
)
def test_the_best_cell_is_used_where_a_parabola_is_no_answer(rates, table, why):
    best = at_best_rate(rates, table)
    means = table.mean(1)
    assert not best.fitted and why in best.why
    assert best.value == pytest.approx(means.min()) and best.rate == pytest.approx(rates[means.argmin()])


def test_a_curve_that_a_parabola_misses_by_more_than_noise_uses_the_cell():
    noise = 0.01 * np.random.default_rng(0).normal(size=(5, 3))
    cliff = np.array([0.3, 0.1, 0.0, 0.01, 2.0])[:, None]
    assert not at_best_rate(RATES, cliff + noise).fitted and misfit(cliff + noise, [0.3, -0.5, 0.1, 0.4, -0.3]) < 0.01
    assert at_best_rate(RATES, parabola(0.01) + noise).fitted
    assert misfit(cliff[:, :1], [1.0] * 5) == 1.0


def test_the_vertex_of_a_flat_curve_is_less_biased_than_its_best_cell():
    rng = np.random.default_rng(1)
    tables = [rng.normal(size=(5, 3)) for _ in range(1000)]
    vertex = np.mean([at_best_rate(RATES, table).value for table in tables])
    assert -0.75 < np.mean([table.mean(1).min() for table in tables]) < vertex - 0.1
