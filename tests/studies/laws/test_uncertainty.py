"""Intervals: coverage on simulated tables, the kinds of resampling, noise shared within a trunk."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from kleiber.studies.laws.allocation import optimum
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.uncertainty import Draws, bootstrap, interval, strata_of, student_quantile

from .. import ladders


def coverage(num_tables: int, draws: int) -> tuple[float, float]:
    """How often the 90 % intervals of the loss at 4x compute and of a_opt hold the truth (20 points, .5 % noise)."""
    table = ladders.twenty()
    truth = {name: np.array([value]) for name, value in ladders.TRUE.items()}
    N, D = optimum(truth, 4 * 6 * float((table["N"] * table["D"]).max()))
    target, at = ladders.loss(N, D)[0], {"N": N, "D": D}
    losses = exponents = 0
    for seed in range(num_tables):
        fit_result = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), seed))
        sample = NoiseModel.of(fit_result).draws(draws, seed)
        lo, hi = interval(sample.predict(at)[:, 0])
        losses += lo <= target <= hi
        lo, hi = interval(sample.derive()["a_opt"])
        exponents += lo <= ladders.A_OPT <= hi
    return losses / num_tables, exponents / num_tables


@pytest.mark.slow
@pytest.mark.long
def test_intervals_cover_on_200_tables():
    loss, exponent = coverage(200, 200)
    assert 0.84 <= loss <= 0.96 and 0.84 <= exponent <= 0.96, (loss, exponent)


@pytest.mark.slow
def test_intervals_cover_on_a_few_tables():
    """12 tables: fewer than 7 hits has probability .0001 at 90 % coverage; an interval too narrow by half fails."""
    loss, exponent = coverage(12, 60)
    assert loss >= 7 / 12 and exponent >= 7 / 12, (loss, exponent)


@pytest.mark.slow
def test_the_method_follows_the_rows():
    """Noise is drawn where rows or trunks are few, and resampled where they are many."""
    model = fitted(ladders.twenty())
    assert resampled(model) == ("bootstrap", False)
    many = {k: np.tile(v, 2) for k, v in ladders.twenty().items()}
    assert resampled(fitted(many)) == ("bootstrap", True)
    assert resampled(fitted(many, np.arange(40) // 2)) == ("cluster bootstrap", True)
    assert resampled(fitted(many, np.arange(40) % 8)) == ("cluster t", False)
    with pytest.raises(ValueError, match="bootstrap method 'jackknife'"):
        drawn(model, method="jackknife")
    with pytest.raises(ValueError, match="needs clusters"):
        drawn(model, method="cluster t")


def fitted(table, clusters=None, seed=0, sd=0.005):
    return NoiseModel.of(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), seed, sd)), clusters)


def drawn(model, count=5, method=None):
    noise = model.components()
    return bootstrap(model.fit, count, 0, noise, model.layout, None, model.clusters, method)


def resampled(model):
    """The method, and whether tables were resampled: then refits depend on the rows alone, and not on the noise."""
    noise = model.components()
    larger = replace(noise, within=4 * noise.within, between=4 * noise.between)
    combined = [bootstrap(model.fit, 5, 0, row, model.layout, None, model.clusters) for row in (noise, larger)]
    return combined[0].method, bool(np.allclose(combined[0].values, combined[1].values))


def test_pairs_keep_each_stratum_at_its_size():
    strata = strata_of(np.repeat([1e7, 1e8, 1e9], 4))
    assert strata.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not strata_of(np.geomspace(1e7, 1e9, 12)).any()
    from kleiber.studies.laws.uncertainty import _counts

    weights = _counts(np.random.default_rng(0), 50, strata)
    np.testing.assert_array_equal(weights[:, :4].sum(1), 4)
    assert len(np.unique(weights, axis=0)) > 40


@pytest.mark.slow
def test_noise_shared_within_a_trunk_widens_the_interval_of_a_size():
    """With correlation .86 a trunk is one sample, not five: the interval of the loss at a size must grow."""
    table = ladders.small()
    rng = np.random.default_rng(8)
    trunk = np.repeat(np.arange(6), 5)
    noise = 0.01 * (np.sqrt(0.86) * rng.normal(size=6)[trunk] + np.sqrt(0.14) * rng.normal(size=30))
    fit_result = fit("chinchilla_tied", table, ladders.small_loss(**table) * np.exp(noise))
    apart, together = (NoiseModel.of(fit_result, clusters).draws(200, 0) for clusters in (None, trunk))
    at = {"N": np.array([5e6]), "D": np.array([2e7])}
    width = [np.ptp(interval(sample.predict(at)[:, 0])) for sample in (apart, together)]
    assert width[1] > width[0]


def test_a_run_scatters_more_than_the_law():
    table = ladders.twenty()
    fit_result = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0))
    sample = NoiseModel.of(fit_result).draws(200, 0)
    at = {"N": np.array([1e8]), "D": np.array([2e9])}
    assert np.std(sample.predict_runs(at)) > 1.5 * np.std(sample.predict(at))


def test_the_interval_of_a_run_with_a_larger_error_is_as_much_wider():
    rows = ladders.twenty()
    fit_result = fit("chinchilla", rows, ladders.noisy(ladders.loss(**rows), 1, 0.01))
    noise = NoiseModel.of(fit_result).components()
    assert noise is not None
    draws = Draws(fit_result, np.repeat(fit_result.values, 4000, axis=0), "bootstrap", replace(noise, slope=0.0))
    lo, hi = interval(np.log(draws.predict_runs(rows, 0, np.where(np.arange(20) == 7, 10.0, 1.0))))
    width = hi - lo
    assert width[7] / np.delete(width, 7).mean() == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("df", [1, 3, 40])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_quantile_of_student_holds_the_level(df, level):
    assert 1 - 2 * stats.t.sf(student_quantile(df, level), df) == pytest.approx(level)


def test_without_degrees_of_freedom_there_is_no_quantile():
    assert math.isnan(student_quantile(0, 0.9))
