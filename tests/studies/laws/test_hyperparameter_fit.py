"""Power laws of the optima, in two steps and jointly: planted exponents, weights, coverage, an independent fit."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from kleiber.studies.laws.hyperparameter_fit import draw, fit_jointly, fit_laws, power_law, values_of
from kleiber.studies.laws.optima import INSIDE, optima_of
from tests.studies.laws.sweeps import EXPONENTS, sweep
from tests.studies.laws.test_optima import groups

PLACES = [1, 2, 4]  # of the exponents among c, a, b, d, e
TRUTH = np.array(list(EXPONENTS.values()))


def fits(**options):
    inside = [fit for fit in optima_of(groups(sweep(**options))) if fit.place == INSIDE]
    return fit_laws(("lr", "batch"), inside), inside


def covered(tables: int, **options) -> np.ndarray:
    """Fraction of the tables whose 90 % interval contains each planted exponent."""
    hits = []
    for seed in range(tables):
        laws, inside = fits(seed=seed, **options)
        lo, hi = np.quantile(draw(laws, inside, 300, seed)[1][:, PLACES], [0.05, 0.95], axis=0)
        hits.append((lo <= TRUTH) & (hi >= TRUTH))
    return np.mean(hits, axis=0)


def test_planted_laws_are_recovered_in_two_steps_and_jointly():
    laws, inside = fits(noise=0.0)
    values = values_of(laws, [law.theta for law in laws])
    np.testing.assert_allclose(values[PLACES], TRUTH, atol=1e-6)
    np.testing.assert_allclose(values[[0, 3]], [20, 30], rtol=1e-4)
    laws, inside = fits(sizes=[1e7, 1e8], noise=1e-3)
    joint = fit_jointly(laws, inside, 0.9)
    np.testing.assert_allclose(joint.values[PLACES], TRUTH, atol=0.05)
    assert (joint.lo[PLACES] < joint.values[PLACES]).all() and (joint.values[PLACES] < joint.hi[PLACES]).all()


@pytest.mark.slow
def test_intervals_cover_planted_exponents_in_twenty_tables():
    assert covered(20, sizes=[1e7, 3e7, 1e8], rates=7, batches=5).mean() >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"scatter": 0.1}, {"noise": 4e-3}])
def test_intervals_cover_planted_exponents_in_200_tables(options):
    share = covered(200, **options)
    assert (share >= 0.84).all() and (share <= 0.96).all(), share


def test_scatter_is_estimated_and_an_uncertain_optimum_weighs_little():
    rng = np.random.default_rng(0)
    N, D = np.repeat([1e6, 1e7, 1e8, 1e9], 10), np.tile(np.geomspace(1e8, 1e11, 10), 4)
    log = 1 - 0.5 * np.log(N) + 0.3 * np.log(D) + 0.2 * rng.normal(size=40)
    law = power_law("lr", N, D, log, np.full(40, 1e-4))
    assert law.scatter == pytest.approx(0.2, rel=0.3) and law.determined
    variance = np.full(40, 1e-4)
    variance[0], log[0] = 100.0, 50.0
    np.testing.assert_allclose(power_law("lr", N, D, log, variance).theta[1:], law.theta[1:], atol=0.05)


def test_one_size_does_not_determine_the_exponent_of_the_size():
    law = power_law("lr", np.full(6, 1e6), np.geomspace(1e8, 1e10, 6), np.linspace(0, 1, 6), np.full(6, 1e-3))
    assert law.rank == 2 and not law.determined


def test_many_groups_are_resampled():
    laws, inside = fits(sizes=np.geomspace(1e6, 1e9, 7), batches=5)
    method, draws = draw(laws, inside, 200, 0)
    assert method == "cluster bootstrap" and np.isfinite(draws).all()
    np.testing.assert_allclose(draws[:, PLACES].mean(0), TRUTH, atol=0.03)


def paraboloid(at, a, b, c, d, e, f):
    x, y = at
    return a + b * x + c * y + d * x**2 + e * x * y + f * y**2


def independent(table, window: float) -> np.ndarray:
    """Exponents by scipy alone: a paraboloid around the best run of each group, then unweighted regressions."""
    best = []
    for (N, D), group in table.groupby(["params", "tokens"]):
        near = group[group["loss"] <= (1 + window) * group["loss"].min()]
        x, y, z = np.log(near["rate"]), np.log(near["batch"]), np.log(near["loss"])
        at = np.array([x - x.mean(), y - y.mean()])
        (_, b, c, d, e, f), _ = curve_fit(paraboloid, at, z, p0=np.zeros(6))
        step = np.linalg.solve([[2 * d, e], [e, 2 * f]], [-b, -c])
        best.append((np.log(N), np.log(D), step[0] + x.mean(), step[1] + y.mean()))
    n, d, rate, batch = np.array(best).T
    (_, lr_N, lr_D), *_ = np.linalg.lstsq(np.column_stack([np.ones(len(n)), n, d]), rate, rcond=None)
    return np.array([lr_N, lr_D, np.polyfit(d, batch, 1)[0]])


def test_an_independent_fit_agrees_on_the_published_sweep(shared):
    """Step Law's smaller models: the published exponents are -.713, .307 and .571, fitted to larger models too."""
    import pandas as pd

    table = pd.read_csv(shared / "laws/steplaw_small.csv")
    table = table.rename(columns={"N": "params", "D": "tokens", "lr": "rate", "batch_tokens": "batch"})
    inside = [fit for fit in optima_of(groups(table)) if fit.place == INSIDE]
    assert len(inside) == 12
    laws = fit_laws(("lr", "batch"), inside)
    exponents = values_of(laws, [law.theta for law in laws])[PLACES]
    np.testing.assert_allclose(exponents, independent(table, 0.01), atol=0.06)
    lo, hi = np.quantile(draw(laws, inside, 400, 0)[1][:, PLACES], [0.05, 0.95], axis=0)
    published = np.array([-0.713, 0.307, 0.571])
    assert ((lo < published) & (published < hi))[[0, 2]].all() and abs(exponents[1] - published[1]) < 0.1
