"""The optimum of each group: exact on a planted paraboloid, none at an edge of the grid or on a ridge."""

import numpy as np
import pytest

from kleiber.studies.laws.optima import EDGE, FEW, FLAT, INSIDE, Group, groups_of, optima_of
from tests.studies.laws.sweeps import planted_batch, planted_rate, sweep


def groups(table):
    columns = table[["params", "tokens", "rate", "batch", "loss"]].to_numpy(dtype=float).T
    return groups_of(columns[0], columns[1], [columns[2], columns[3]], columns[4])


def test_an_exact_surface_has_its_planted_optimum_and_curvature():
    found = optima_of(groups(sweep(noise=0.0)))
    assert len(found) == 12 and {fit.place for fit in found} == {INSIDE}
    for fit in found:
        truth = [planted_rate(fit.group.N, fit.group.D), planted_batch(fit.group.D)]
        np.testing.assert_allclose(np.exp(fit.log), truth, rtol=1e-6)
        np.testing.assert_allclose(fit.curvature, [[0.008, -0.003], [-0.003, 0.006]], rtol=1e-5)


def test_the_delta_method_is_the_spread_of_the_optimum():
    fits = [optima_of(groups(sweep(seed=seed, sizes=[1e7], ratios=[10], noise=3e-4)))[0] for seed in range(120)]
    error = [fit.log[0] - np.log(planted_rate(fit.group.N, fit.group.D)) for fit in fits]
    assert np.mean([fit.cov[0, 0] for fit in fits]) ** 0.5 == pytest.approx(np.std(error), rel=0.2)


def test_replicates_are_averaged_and_a_noisy_sweep_uses_a_wider_window():
    table = sweep(sizes=[1e7], ratios=[10])
    (group,) = groups(table)
    (twice,) = groups(table.loc[table.index.repeat(2)])
    assert set(twice.count) == {2.0} and len(twice.losses) == len(group.losses)
    quiet, loud = (sum(fit.used.sum() for fit in optima_of(groups(sweep(noise=noise)))) for noise in (1e-4, 1e-2))
    assert loud > 1.2 * quiet


@pytest.mark.parametrize("shift", [3.0, -3.0])
def test_a_least_loss_at_the_edge_is_no_optimum(shift):
    assert {fit.place for fit in optima_of(groups(sweep(shift=shift, noise=0.0)))} == {EDGE}


def test_a_ridge_and_too_few_runs_are_no_optimum():
    (group,) = groups(sweep(sizes=[1e7], ratios=[10], noise=0.0))
    u = group.points - group.points[group.best]
    dip = np.where(np.abs(u).max(1) < 1e-9, -0.008, 0.001 * u[:, 0] ** 2 - 5e-4 * u[:, 1] ** 2)
    assert optima_of([Group(1e7, 1e8, group.points, dip, group.count)])[0].place == FLAT
    few = Group(1e7, 1e8, group.points[:5], group.losses[:5], group.count[:5])
    assert optima_of([few])[0].place == FEW


def test_the_excess_of_a_choice_is_interpolated_in_the_sweep():
    (group,) = groups(sweep(sizes=[1e7], ratios=[10], noise=0.0))
    worst = group.losses.argmax()
    assert group.excess(group.points[worst]) == pytest.approx(np.expm1(group.losses[worst] - group.losses.min()))
    assert group.excess(group.points[group.best]) == pytest.approx(0, abs=1e-12)
    assert np.isnan(group.excess(group.points.max(0) + 1))
