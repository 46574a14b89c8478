"""Intervals: coverage on simulated tables, the kinds of resampling, noise shared within a trunk."""

import numpy as np
import pytest

from kleiber.studies.approaches import optimum
from kleiber.studies.bootstrap import bootstrap, interval, strata_of, within_cluster
from kleiber.studies.fit import fit

from . import ladders


def coverage(num_tables: int, draws: int) -> tuple[float, float]:
    """How often the 90 % intervals of the loss at 4x compute and of a_opt hold the truth (20 points, .5 % noise)."""
    table = ladders.twenty()
    truth = {name: np.array([value]) for name, value in ladders.TRUE.items()}
    N, D = optimum(truth, 4 * 6 * float((table["N"] * table["D"]).max()))
    target, at = ladders.loss(N, D)[0], {"N": N, "D": D}
    losses = exponents = 0
    for seed in range(num_tables):
        found = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), seed))
        sample = bootstrap(found, draws, seed)
        lo, hi = interval(sample.predict(at)[:, 0])
        losses += lo <= target <= hi
        lo, hi = interval(sample.derive()["a_opt"])
        exponents += lo <= ladders.A_OPT <= hi
    return losses / num_tables, exponents / num_tables


@pytest.mark.slow
def test_intervals_cover_on_200_tables():
    loss, exponent = coverage(200, 200)
    assert 0.84 <= loss <= 0.96 and 0.84 <= exponent <= 0.96, (loss, exponent)


def test_intervals_cover_on_a_few_tables():
    """12 tables: fewer than 7 hits has probability .0001 at 90 % coverage; an interval too narrow by half fails."""
    loss, exponent = coverage(12, 60)
    assert loss >= 7 / 12 and exponent >= 7 / 12, (loss, exponent)


def test_kind_follows_the_number_of_rows():
    table = ladders.twenty()
    found = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0))
    assert bootstrap(found, 5).kind == "parametric"
    many = {k: np.tile(v, 2) for k, v in table.items()}
    found = fit("chinchilla", many, ladders.noisy(ladders.loss(**many), 0))
    assert bootstrap(found, 5).kind == "pairs"
    assert bootstrap(found, 5, clusters=np.arange(40) // 2).kind == "clusters"
    with pytest.raises(ValueError, match="bootstrap kind 'jackknife'"):
        bootstrap(found, 5, kind="jackknife")


def test_pairs_keep_each_stratum_at_its_size():
    strata = strata_of(np.repeat([1e7, 1e8, 1e9], 4))
    assert strata.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not strata_of(np.geomspace(1e7, 1e9, 12)).any()
    from kleiber.studies.bootstrap import _counts

    weights = _counts(np.random.default_rng(0), 50, strata)
    np.testing.assert_array_equal(weights[:, :4].sum(1), 4)
    assert len(np.unique(weights, axis=0)) > 40


def test_noise_shared_within_a_trunk_widens_the_interval_of_a_size():
    """With correlation .86 a trunk is one sample, not five: the interval of a_opt must grow."""
    table = ladders.small()
    rng = np.random.default_rng(8)
    trunk = np.repeat(np.arange(6), 5)
    noise = 0.01 * (np.sqrt(0.86) * rng.normal(size=6)[trunk] + np.sqrt(0.14) * rng.normal(size=30))
    assert within_cluster(noise, trunk) > 0.5
    assert within_cluster(rng.normal(size=3000), np.repeat(np.arange(600), 5)) < 0.1
    found = fit("chinchilla_tied", table, ladders.small_loss(**table) * np.exp(noise))
    apart = bootstrap(found, 200, kind="parametric")
    together = bootstrap(found, 200, clusters=trunk)
    assert "correlation" in together.kind and apart.correlation == 0
    at = {"N": np.array([5e6]), "D": np.array([2e7])}
    width = [np.ptp(interval(sample.predict(at)[:, 0])) for sample in (apart, together)]
    assert within_cluster(found.residuals, trunk) == pytest.approx(together.correlation)
    assert width[1] > width[0]


def test_a_run_scatters_more_than_the_law():
    table = ladders.twenty()
    found = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0))
    sample = bootstrap(found, 200)
    at = {"N": np.array([1e8]), "D": np.array([2e9])}
    assert np.std(sample.predict_runs(at)) > 1.5 * np.std(sample.predict(at))
