"""Approaches 1, 2 and 3 recover the exponent of a known law, and report a disagreement."""

import numpy as np
import pytest

from kleiber.studies.laws.allocation import (
    Exponent,
    Noise,
    allocation,
    disagreement,
    envelope,
    expected_half_width,
    log_loss_gradient,
    optimum,
    regress,
    vertices,
)
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel

from .. import ladders


def test_optimum_is_the_least_loss_at_fixed_compute():
    values = {k: np.array([v]) for k, v in ladders.TRUE.items()}
    N, D = optimum(values, 1e20)
    assert pytest.approx(1e20) == 6 * N * D
    sizes = N * np.geomspace(0.5, 2, 2001)
    assert sizes[np.argmin(ladders.loss(sizes, 1e20 / 6 / sizes))] == pytest.approx(N[0], rel=2e-3)


@pytest.mark.parametrize("centre", [12.0, 1 / 12])
def test_an_edge_minimum_is_no_minimum(centre):
    N, D, C = ladders.isoflop(centre=centre)
    assert vertices(N, C, ladders.loss(N, D, **ladders.TIED)) == []
    sizes = np.repeat(np.array([1.0, 1.1, 1.2]) * centre**2 * 1e9, 6)  # the best of these is always the outermost
    tokens = np.tile(np.geomspace(1e9, 4e9, 6), 3)
    assert envelope(sizes, 6 * sizes * tokens, ladders.loss(sizes, tokens, **ladders.TIED)) == []


def test_a_vertex_is_where_the_loss_is_least_on_a_grid_off_centre():
    N, D, C = ladders.isoflop(spread=2.0, centre=1.4)
    result = vertices(N, C, ladders.loss(N, D, **ladders.TIED))
    best = [optimum({k: np.array([v]) for k, v in ladders.TIED.items()}, row.compute)[0][0] for row in result]
    assert len(result) == 6 and np.exp([row.log_n for row in result]) == pytest.approx(best, rel=0.1)


def test_sizes_without_common_budgets_are_interpolated_to_some():
    """Every size has token counts of its own, so that no two runs have the same compute."""
    N = np.repeat(np.geomspace(1e7, 3e8, 8), 12)
    D = np.tile(np.geomspace(2e8, 6e10, 12), 8) * np.repeat(1 + 0.05 * np.arange(8), 12)
    found = vertices(N, 6 * N * D, ladders.loss(N, D, **ladders.TIED))
    best = [optimum({k: np.array([v]) for k, v in ladders.TIED.items()}, one.compute)[0][0] for one in found]
    assert len(found) >= 3 and np.exp([one.log_n for one in found]) == pytest.approx(best, rel=0.1)


def test_disagreement_is_a_sentence():
    close = [Exponent("1 envelope", 0.5, 0.4, 0.6, 0.0), Exponent("3 parametric", 0.52, 0.45, 0.6, 0.0)]
    assert disagreement(close) is None
    apart = [close[0], Exponent("3 parametric", 0.65, 0.55, 0.7, 0.0)]
    assert "0.500" in str(disagreement(apart)) and "0.650" in str(disagreement(apart))


def test_allocation_bands_hold_the_truth_and_spend_the_budget():
    table = ladders.twenty()
    sample = NoiseModel.of(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0, 0.002))).draws(200, 0)
    assert sample is not None
    row = allocation(sample, np.array([1e20]))[0]
    true_n = optimum({k: np.array([v]) for k, v in ladders.TRUE.items()}, 1e20)[0][0]
    assert row["N_lo"] < true_n < row["N_hi"] and 6 * row["N"] * row["D"] == pytest.approx(1e20)


def test_a_law_of_other_terms_has_no_allocation_by_the_closed_form():
    table = ladders.twenty()
    sample = NoiseModel.of(fit("interaction", table, ladders.noisy(ladders.loss(**table), 0, 0.002))).draws(20, 0)
    assert sample is not None and len(sample.values) and allocation(sample, np.array([1e20])) == []


def test_a_vertex_has_a_t_interval_of_the_asked_level():
    C = np.repeat(np.geomspace(1e18, 1e20, 4), 6)
    N = np.sqrt(C / 6) * np.tile(np.geomspace(0.03, 0.4, 6), 4)
    D = C / (6 * N)
    points = vertices(N, C, ladders.noisy(ladders.loss(N, D), 0, 0.001))
    wide, narrow = (regress("2", points, level) for level in (0.99, 0.9))
    assert wide is not None and narrow is not None
    width = [np.log(row.points[0]["hi"] / row.points[0]["lo"]) for row in (wide, narrow)]
    assert points[0].df == 3 and width[0] / width[1] == pytest.approx(5.8409 / 2.3534, rel=1e-4)


@pytest.mark.parametrize("sizes", [4, 7])
def test_the_interval_of_a_vertex_covers_the_optimum_as_often_as_its_level_says(sizes):
    rng, x = np.random.default_rng(0), np.linspace(-1, 1, sizes)
    held = []
    for _ in range(80):
        C = np.repeat(np.geomspace(1e15, 8e15, 4), sizes)
        N = np.sqrt(C) * np.exp(np.tile(x, 4))
        loss = 2 + 0.05 * np.tile(x, 4) ** 2 + 1e-3 * rng.standard_normal(len(C))
        fitted = regress("2 isoflop", vertices(N, C, loss))
        assert fitted is not None
        held += [point["lo"] <= point["C"] ** 0.5 <= point["hi"] for point in fitted.points]
    assert np.mean(held) == pytest.approx(0.9, abs=0.05)


LAW = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28}


def planned(sizes=8, lengths=5, seeds=2):
    """Sizes, tokens and trunks of a grid; the lengths of a size and seed are branches of one trunk."""
    N = np.tile(np.repeat(np.geomspace(1e5, 1e7, sizes), lengths), seeds)
    D = np.tile(np.geomspace(1e6, 1e8, lengths), sizes * seeds)
    return N, D, np.repeat(np.arange(sizes * seeds), lengths)


def test_the_gradient_is_that_of_the_log_loss():
    N, D = np.array([1e6]), np.array([3e7])

    def log_loss(theta):
        E, A, B = np.exp(theta[:3])
        return np.log(E + A * N ** -theta[3] + B * D ** -theta[4])[0]

    theta = np.array([np.log(LAW[name]) if name in "EAB" else LAW[name] for name in LAW])
    slope = [(log_loss(theta + h) - log_loss(theta - h)) / 2e-6 for h in 1e-6 * np.eye(5)]
    assert log_loss_gradient(LAW, N, D)[0] == pytest.approx(slope, rel=1e-6)


def test_the_expected_interval_is_that_of_fits_to_simulated_losses():
    """Generalized least squares on losses with the assumed noise: its error at the optimum has the expected spread."""
    N, D, trunk = planned()
    noise = Noise(s=1e-4)
    basis, errors = log_loss_gradient(LAW, N, D), np.random.default_rng(0)
    covariance = noise.covariance(N, D, trunk)
    scale = np.linalg.norm(basis, axis=0)
    estimator = np.linalg.solve(
        (basis / scale).T @ np.linalg.solve(covariance, basis / scale), np.linalg.solve(covariance, basis / scale).T
    )
    drawn = np.linalg.cholesky(covariance) @ errors.standard_normal((len(N), 4000)) * noise.s
    best = optimum({name: np.array([value]) for name, value in LAW.items()}, 1e18)
    predicted = (log_loss_gradient(LAW, *best)[0] / scale) @ estimator @ drawn
    expected = expected_half_width(N, D, trunk, LAW, 1e18, noise)
    assert expected == pytest.approx(float(np.quantile(np.abs(predicted), 0.9)), rel=0.05)


def test_replicates_do_not_narrow_the_expected_interval_for_ever():
    few, many = planned(seeds=2), planned(seeds=20)
    for noise, ratio in ((Noise(kappa=0.0), (0.0, 0.4)), (Noise(kappa=4.0), (0.6, 1.0))):
        narrowed = expected_half_width(*many, LAW, 1e18, noise) / expected_half_width(*few, LAW, 1e18, noise)
        assert ratio[0] < narrowed < ratio[1]


def test_points_that_determine_no_law_have_no_expected_interval():
    assert expected_half_width(*planned(sizes=1, seeds=1), LAW, 1e18) == np.inf
