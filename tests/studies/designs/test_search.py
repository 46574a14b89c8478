"""The search for designs: incremental variances against direct ones, and the goals of the benchmark."""

import importlib.util

import numpy as np
import pytest
from small_run import REPOSITORY

from kleiber.studies.designs.search import (
    Elimination,
    Noise,
    Points,
    Rules,
    exchange,
    gradient,
    half_width,
    log_variance,
)

LAW = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28}


def grid(sizes=8, lengths=5, seeds=2):
    N = np.tile(np.repeat(np.geomspace(1e5, 1e7, sizes), lengths), seeds)
    D = np.tile(np.geomspace(1e6, 1e8, lengths), sizes * seeds)
    return Points(N, D, np.repeat(np.arange(sizes * seeds), lengths), 6 * N)


def test_the_gradient_is_that_of_the_log_loss():
    names, N, D = list(LAW), np.array([1e6]), np.array([3e7])

    def log_loss(theta):
        E, A, B = np.exp(theta[:3])
        return np.log(E + A * N ** -theta[3] + B * D ** -theta[4])[0]

    theta = np.array([np.log(LAW[n]) if n in "EAB" else LAW[n] for n in names])
    slope = [(log_loss(theta + h) - log_loss(theta - h)) / 2e-6 for h in 1e-6 * np.eye(5)]
    assert gradient(LAW, N, D)[0] == pytest.approx(slope, rel=1e-6)


def test_joined_points_keep_their_trunks_apart():
    small, large = grid(2, 3, 1), grid(3, 2, 2)
    both = small.join(large)
    assert len(both) == 6 + 12 and len(set(both.trunk)) == 2 + 6
    assert both.cost(0.2) == pytest.approx(small.cost(0.2) + large.cost(0.2))
    nothing = small.keep(np.zeros(6, bool))
    assert nothing.join(large).cost(0.2) == pytest.approx(large.cost(0.2))


def test_every_downdate_is_the_variance_computed_anew():
    points, noise = grid(), Noise()
    left = Elimination(points, [LAW], 1e18, noise, 0.2, Rules(8, 4, 0))
    for _ in range(50):
        assert left.step()
        assert left.log_variance == pytest.approx(log_variance(points.keep(left.alive), LAW, 1e18, noise), abs=1e-6)


def test_the_rules_hold_to_the_end_and_what_is_trained_stays():
    points, fixed = grid(), np.arange(80) < 3
    left = Elimination(points, [LAW], 1e18, Noise(), 0.2, Rules(14, 6, 3), fixed)
    while left.step():
        pass
    kept = points.keep(left.alive)
    cells = np.unique(np.column_stack([kept.N, kept.D]), axis=0, return_counts=True)[1]
    assert len(kept) >= 14 and len(np.unique(kept.N)) >= 6 and (cells >= 2).sum() >= 3
    assert left.alive[:3].all()
    assert left.cost == pytest.approx(points.keep(left.alive & ~fixed).cost(0.2))


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_exchanges_better_a_design_within_its_budget_and_keep_the_rules(share):
    """Also from a start that costs up to twice the budget; the variance told is the one computed anew."""
    points, noise, rules, fixed = grid(), Noise(), Rules(14, 6, 2), np.arange(80) < 3
    left = Elimination(points, [LAW], 1e18, noise, 0.2, rules, fixed)
    while left.alive.sum() > 24 and left.step():
        pass
    start, budget = left.alive.copy(), share * left.cost
    alive, variance = exchange(points, [LAW], 1e18, noise, 0.2, rules, start, fixed, budget)
    kept = points.keep(alive)
    cells = np.unique(np.column_stack([kept.N, kept.D]), axis=0, return_counts=True)[1]
    assert points.keep(alive & ~fixed).cost(0.2) <= budget and alive[fixed].all()
    assert len(kept) >= 14 and len(np.unique(kept.N)) >= 6 and (cells >= 2).sum() >= 2
    assert variance == pytest.approx(log_variance(kept, LAW, 1e18, noise), abs=1e-6)
    assert share < 1 or variance < left.log_variance - 0.01
    assert (left.alive == start).all()


def test_a_budget_that_no_exchange_meets_is_said_to_be_missed():
    points = grid()
    alive = np.ones(80, dtype=bool)
    assert exchange(points, [LAW], 1e18, Noise(), 0.2, Rules(), alive, alive, 0.0)[1] < np.inf, "nothing is left to pay"
    assert exchange(points, [LAW], 1e18, Noise(), 0.2, Rules(), alive, ~alive, 1.0)[1] == np.inf


def test_a_trunk_is_paid_once_and_replicates_do_not_pay_for_ever():
    points = grid(sizes=1, lengths=3, seeds=1)
    assert points.cost(0.2) == pytest.approx(6e5 * (0.8 * 1e8 + 0.2 * points.D.sum()))
    few, many = grid(seeds=2), grid(seeds=20)
    believed, honest = Noise(kappa=0.0), Noise(kappa=4.0)
    assert half_width(many, LAW, 1e18, believed) < 0.4 * half_width(few, LAW, 1e18, believed)
    assert half_width(many, LAW, 1e18, honest) > 0.6 * half_width(few, LAW, 1e18, honest)


def test_points_that_determine_no_law_have_no_interval():
    assert half_width(grid(sizes=1, seeds=1), LAW, 1e18, Noise()) == np.inf


def test_the_simulation_meets_its_goals(capsys):
    """Interval efficiency under the assumed law: branches alone <= .60 of the grid's cost, optimal <= .30."""
    spec = importlib.util.spec_from_file_location("design_benchmark", REPOSITORY / "benchmarks" / "design.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    branched, base = benchmark.isoflop(shared=True), benchmark.isoflop(shared=False)
    assert branched.cost(benchmark.DECAY) <= 0.60 * (6 * base.N * base.D).sum()
    cost, interval = benchmark.optimal(Noise(), 100 * benchmark.C_MAX).split()[1:4:2]
    assert float(cost) <= 0.30 and float(interval) <= 1.0
