"""Variance components: known variances are recovered, draws and variances agree, degrees of freedom are those of t."""

import numpy as np
import pytest
from scipy.stats import chi2, t

from kleiber.studies.laws.variance_components import Layout, VarianceComponents, estimate, without_outliers

BRANCHES = 5


def design(num_sizes, seeds=1):
    """Gradient of a Chinchilla law, trunk and log N of a ladder of sizes x 5 numbers of tokens x seeds."""
    N, D, seed = (
        column.ravel()
        for column in np.meshgrid(
            np.geomspace(1e8, 1e10, num_sizes), 2e9 * 2.0 ** np.arange(BRANCHES), np.arange(seeds), indexing="ij"
        )
    )
    by_size, by_tokens = N**-0.35, D**-0.37
    columns = [np.ones(len(N)), by_size, by_size * np.log(N), by_tokens, by_tokens * np.log(D)]
    return np.column_stack(columns), np.unique(N, return_inverse=True)[1] * seeds + seed, np.log(N)


def noisy(jacobian, trunk, log_size, between, within, slope=0.0, seed=0):
    """Least-squares residuals of noise with these variances at the mean of log N."""
    rng = np.random.default_rng(seed)
    shared = np.sqrt(between) * rng.normal(size=trunk.max() + 1)[trunk]
    noise = (shared + np.sqrt(within) * rng.normal(size=len(trunk))) * np.exp(-slope * (log_size - log_size.mean()))
    unit = jacobian / np.linalg.norm(jacobian, axis=0)
    return noise - unit @ np.linalg.lstsq(unit, noise, rcond=None)[0]


def estimated(num_sizes, seeds, between, within, slope=0.0, seed=0):
    jacobian, trunk, log_size = design(num_sizes, seeds)
    return estimate(jacobian, noisy(jacobian, trunk, log_size, between, within, slope, seed), trunk, log_size)


def components(between=0.6, within=0.4, df_between=1e9, df_within=1e9, slope=0.0, log_size=0.0):
    df_trunks = df_between
    return VarianceComponents(between, within, df_between, df_within, df_trunks, slope, log_size, float(BRANCHES))


def layout(num_trunks=4, averaged=1.0):
    trunk = np.repeat(np.arange(num_trunks), BRANCHES)
    return Layout(trunk, np.full(len(trunk), averaged), trunk / num_trunks)


@pytest.mark.parametrize(("between", "within", "slope"), [(0.9, 0.1, 0.0), (0.5, 0.5, 0.0), (0.9, 0.1, 0.4)])
def test_known_variances_are_recovered(between, within, slope):
    """1200 trunks of 5 branches: the estimates have relative standard errors of 4 and 2 %, the slope one of .02."""
    noise = estimated(600, 2, between, within, slope)
    assert noise.between == pytest.approx(between, rel=0.12)
    assert noise.within == pytest.approx(within, rel=0.06)
    assert noise.slope == pytest.approx(slope, abs=0.05)
    assert noise.correlation == pytest.approx(between / (between + within), abs=0.04)


@pytest.mark.slow
def test_small_ladders_are_unbiased_between_trunks():
    """6 trunks of one seed: the mean over 300 tables of 3 degrees of freedom each has a standard error of 5 %."""
    between = [estimated(6, 1, 0.9, 0.1, seed=seed).between for seed in range(300)]
    assert np.mean(between) == pytest.approx(0.9, rel=0.2)


def test_the_order_and_the_numbers_of_trunks_mean_nothing():
    jacobian, trunk, log_size = design(6, 2)
    residuals = noisy(jacobian, trunk, log_size, 0.9, 0.1, 0.3)
    there = estimate(jacobian, residuals, trunk, log_size)
    rng = np.random.default_rng(1)
    order, renumbered = rng.permutation(len(trunk)), rng.permutation(12)[trunk] * 7
    back = estimate(jacobian[order], residuals[order], renumbered[order], log_size[order])
    np.testing.assert_allclose(list(vars(back).values()), list(vars(there).values()), rtol=1e-9)


def test_uncorrelated_rows_are_pooled():
    """The F test pools 75 % of tables without noise of trunks, and none of those with a correlation of .9."""
    apart = [estimated(6, 2, 0.0, 1.0, seed=seed) for seed in range(80)]
    pooled = [noise for noise in apart if noise.between == 0]
    assert 0.6 < len(pooled) / len(apart) < 0.9
    assert all(noise.df_between == noise.df_within == noise.df == 60 - 6 for noise in pooled)
    assert all(noise.df_trunks < 10 for noise in pooled)
    assert all(estimated(6, 2, 0.9, 0.1, seed=seed).between > 0 for seed in range(20))


def test_one_row_a_trunk_leaves_nothing_to_tell_apart():
    jacobian, _, log_size = design(6)
    trunk = np.arange(30)
    noise = estimate(jacobian, noisy(jacobian, trunk, log_size, 0.0, 1.0), trunk, log_size)
    assert noise.between == 0 and noise.df == 30 - 6
    assert estimate(jacobian[:6], np.ones(6), trunk[:6], log_size[:6]) is None


@pytest.mark.parametrize("seed", range(5))
def test_an_outlier_counts_for_little(seed):
    jacobian, trunk, log_size = design(6, 2)
    noise = np.random.default_rng(seed).normal(size=(2, 60)) * np.sqrt([[0.9], [0.1]])
    residuals = noise[0][trunk] + noise[1]
    there = estimate(jacobian, residuals, trunk, log_size)
    residuals[np.random.default_rng(seed + 100).integers(60)] += 30
    hit = estimate(jacobian, residuals, trunk, log_size)
    assert hit.between == pytest.approx(there.between, rel=0.1)
    assert hit.within == pytest.approx(there.within, rel=0.1)


def test_outliers_are_judged_within_their_trunk():
    """A trunk that is far away as a whole is noise of trunks; a far row goes to the middle of its own."""
    residuals, trunk = np.tile([-1.0, -0.5, 0.0, 0.5, 1.0], 3), np.repeat(np.arange(3), 5)
    residuals[5:10] += 100
    np.testing.assert_array_equal(without_outliers(residuals, trunk), residuals)
    outlier = residuals.copy()
    outlier[9] = 200.0
    np.testing.assert_array_equal(without_outliers(outlier, trunk)[:9], residuals[:9])
    assert without_outliers(outlier, trunk)[9] == 100.0
    assert without_outliers(np.array([-1.0, -0.5, 0.0, 0.5, 50.0]))[-1] == 0.0
    assert not without_outliers(np.zeros(4)).any()


@pytest.mark.parametrize("noise", [components(), components(between=0.0), components(slope=0.7, log_size=0.2)])
def test_variances_are_those_of_the_covariance(noise):
    rows = layout(averaged=2.0)
    contrasts = np.random.default_rng(0).normal(size=(3, 20))
    variance, _ = noise.variance(contrasts, rows)
    expected = np.diag(contrasts @ noise.covariance(rows) @ contrasts.T)
    np.testing.assert_allclose(variance, expected, rtol=1e-12)


def test_draws_have_that_covariance():
    """30,000 draws of known variances: the standard error of a covariance is at most sqrt(2 / 30,000)."""
    noise, rows = components(slope=0.7, log_size=0.2), layout(2, averaged=2.0)
    draws = noise.draw(np.random.default_rng(0), 30_000, rows)
    expected = noise.covariance(rows)
    np.testing.assert_allclose(draws.T @ draws / len(draws), expected, atol=5 * expected.max() * np.sqrt(2 / 30_000))


def test_redrawn_variances_are_chi_square_pivots():
    noise = components(0.9, 0.1, 7.0, 40.0)
    between, within = noise.redraw(np.random.default_rng(0), 40_000)
    mean_square = within + BRANCHES * between
    for drawn, square, df in ((within, 0.1, 40.0), (mean_square, 0.1 + BRANCHES * 0.9, 7.0)):
        expected = square * df / chi2.ppf([0.9, 0.5, 0.1], df)
        np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), expected, rtol=0.03)
    assert not components(between=0.0).redraw(np.random.default_rng(0), 5)[0].any()


@pytest.mark.parametrize(("alike", "df"), [(True, 4.0), (False, 12.0)])
def test_percentiles_of_draws_are_t_intervals(alike, df):
    """Of means of trunks with the degrees of freedom between, of differences within a trunk with those within."""
    noise, rows = components(0.9, 0.1, 4.0, 12.0), layout()
    within_trunk = np.ones(BRANCHES) / BRANCHES if alike else np.array([1.0, -1.0, 0.0, 0.0, 0.0])
    contrast = np.kron([1.0, -1.0, 0.0, 0.0], within_trunk)[None]
    variance, degrees = noise.variance(contrast, rows)
    assert degrees[0] == pytest.approx(df)
    draws = noise.draw(np.random.default_rng(0), 40_000, rows) @ contrast[0]
    np.testing.assert_allclose(np.quantile(draws, 0.95) / np.sqrt(variance[0]), t.ppf(0.95, df), rtol=0.04)


def test_degrees_of_freedom_of_mixtures_lie_between():
    """Satterthwaite: at least those of the part that has fewer, at most those of both parts together."""
    noise, rows = components(0.5, 0.5, 3.0, 20.0), layout()
    means, differences = np.kron([1.0, 0, -1, 0], np.ones(5)), np.kron([0, 1.0, 0, 0], [1.0, -1, 0, 0, 0])
    shares = np.linspace(0, 1, 21)[:, None]
    _, df = noise.variance(shares * means + (1 - shares) * 5 * differences, rows)
    assert df[0] == pytest.approx(20) and df[-1] == pytest.approx(3)
    assert ((df > 3 - 1e-9) & (df < 23)).all() and np.ptp(df) > 10


@pytest.mark.parametrize("seeds", [1, 2])
def test_three_parameters_of_a_chinchilla_law_belong_to_trunks(seeds):
    """E, A and alpha are told by trunks alone: what is left of 30 or 60 rows, 5 parameters and a slope is within."""
    noise = estimated(6, seeds, 0.9, 0.1)
    assert noise.df_between == noise.df_trunks == pytest.approx(6 * seeds - 3, abs=0.01)
    assert noise.df_within == pytest.approx(24 * seeds - 3, abs=0.01)
    assert noise.rows_per_trunk == pytest.approx(BRANCHES)
