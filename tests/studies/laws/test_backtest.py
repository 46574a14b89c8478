"""Backtests: the gap around a cut, the naive predictors, and a law that is worse than they are."""

import numpy as np
import pytest

from kleiber.studies.laws.backtest import (
    LARGEST_ERROR,
    backtests,
    default_cuts,
    holdouts,
    naive_predictions,
    rank,
)
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.prediction import Misfit
from kleiber.studies.laws.verdicts import backtest_verdicts

from .. import ladders


def fitted(L=None, seed=0):
    table = ladders.twenty()
    L = ladders.noisy(ladders.loss(**table), seed) if L is None else L
    fit_result, C = fit("chinchilla", table, L), 6 * table["N"] * table["D"]
    return NoiseModel.of(fit_result, columns={"C": C}), C


def test_the_cut_leaves_a_guard_band():
    fit_result, C = fitted()
    cut = 1.1 * float(np.sort(C)[12])  # a row sits in the band, below the cut
    test = backtests(fit_result, [cut], draws=50)[0][0]
    assert (test.n_train, test.n_test) == ((0.85 * cut > C).sum(), (1.2 * cut < C).sum())
    assert test.n_train + test.n_test < len(C)
    with pytest.raises(ValueError, match="0 above"):
        backtests(fit_result, [1e30])
    assert all((0.85 * cut > C).sum() >= 7 and (1.2 * cut < C).any() for cut in default_cuts(C, 5))


def test_a_cut_leaves_enough_rows_after_its_rounding():
    """Three budgets of five sizes: the middle row over .85 is 1.005e16, and the cut of 1e16 leaves five rows below."""
    C = 1e15 * np.array([1.0, 1.01, 1.02, 1.03, 1.04, 8.51, 8.53, 8.5504, 8.56, 8.57, 72.0, 72.1, 72.2, 72.3, 72.4])
    assert all((0.85 * cut > C).sum() >= 7 and (1.2 * cut < C).any() for cut in default_cuts(C, 5))


def test_a_table_without_compute_is_cut_along_its_sizes():
    """Experts X in place of tokens: N is cut, the guard band included, and the record says so."""
    N, X = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), 2.0 ** np.arange(5)))
    law, values = find("routed"), np.array([[-0.087, -0.136, 0.012, 1.157, 4.2, 478.0]])
    fit_result = fit(law, {"N": N, "X": X}, ladders.noisy(law.predict({"N": N, "X": X}, values)[0], 0, 0.001))
    model = NoiseModel.of(fit_result)
    assert model.compute is None and model.along is not None and model.along[0] == "N"
    test = backtests(model, [2e8], draws=20)[0][0]
    assert (test.along, test.n_train, test.n_test) == ("N", (N < 1.7e8).sum(), (N > 2.4e8).sum())
    assert backtests(fitted()[0], [1e19], draws=0)[0][0].along == "C", "compute is the cut where it is known"
    with pytest.raises(ValueError, match="range of N, 1e"):
        backtests(model, [1e30])


@pytest.mark.slow
def test_a_true_law_beats_the_naive_and_has_no_bias():
    fit_result, _ = fitted()
    tests, _ = backtests(fit_result, [1e19, 5e19], draws=100)
    assert all(test.beats_naive and test.mare < 0.02 for test in tests)
    assert "no_law" not in {verdict.code for verdict in backtest_verdicts(tests)}


def test_naive_predictors_by_hand():
    """On L = N^-.1 the straight line is exact and the last rung is off by the step."""
    N, D = np.array([1e7, 1e8, 1e9]), np.full(3, 1e10)
    train = fit("power_floor", {"C": N, "N": N, "D": D}, N**-0.1).problem
    combined = {"N": np.r_[N, N], "D": np.r_[D, 2 * D]}
    train = fit("no_floor", combined, np.r_[N, N] ** -0.1).problem
    test = train.rows(np.array([0]))
    test.inputs["N"][:] = 1e10
    guess = naive_predictions(train, test, 6 * combined["N"] * combined["D"], np.array([6e20]))
    assert guess["line"][0] == pytest.approx(1e10**-0.1) and guess["last_rung"][0] == pytest.approx(1e9**-0.1)


@pytest.mark.parametrize("row", [7, 14])
def test_errors_next_to_a_loss_of_nearly_0_are_finite(row):
    """In order of compute: a line through row 7 leads to infinity, and row 14 is predicted 1e299 times too high."""
    table = ladders.twenty()
    L = ladders.loss(**table)
    L[np.argsort(table["N"] * table["D"])[row]] = 1e-300
    model, C = fitted(L)
    tests = backtests(model, default_cuts(C, 5), draws=0)[0]
    errors = [error for test in tests for error in (test.mare, test.bias, *test.naive.values())]
    assert np.isfinite(errors).all() and 1000 < max(map(abs, errors)) <= LARGEST_ERROR


def test_a_wrong_law_that_loses_to_the_line_is_no_law():
    """A law with a floor, fitted to an unbroken power law with a dip, predicts worse than the line."""
    table = ladders.twenty()
    N, D = table["N"], table["D"]
    broken = np.where(N < 2e8, 4 * N**-0.02, 4 * 2e8**-0.02 * (N / 2e8) ** -0.3)
    fit_result, _ = fitted(broken * (D / 1e9) ** -0.05)
    verdicts = backtest_verdicts(backtests(fit_result, [2e19], draws=50)[0])
    assert "no_law" in {v.code for v in verdicts} and next(v for v in verdicts if v.code == "no_law").level == "refuse"
    assert [v.code for v in backtest_verdicts([])] == ["no_backtest"]


def test_ranking_puts_the_true_form_before_the_floorless():
    fit_result, C = fitted()
    table = rank([find("no_floor"), find("chinchilla"), find("overtraining")], fit_result.fit, C)
    assert [entry["law"] for entry in table] == ["chinchilla", "no_floor"]


def test_ranking_holds_out_every_row_of_the_largest_budget():
    """With five rows at each of four nominal budgets, no row lies above the quantile of the compute."""
    fit_result, C = fitted()
    budgets = np.repeat([1e18, 3e18, 1e19, 3e19], len(C) // 4)[np.argsort(np.argsort(C))]
    (entry,) = rank([find("chinchilla")], fit_result.fit, budgets)
    assert entry["n_test"] == len(C) // 4


@pytest.mark.parametrize("exponent", [-0.1, 0.5])
def test_along_compute_the_line_is_exact_on_a_power_of_either_sign(exponent):
    C = np.geomspace(1e17, 1e20, 8)
    problem = fit("power", {"C": C}, 3 * C**exponent).problem
    guess = naive_predictions(problem.rows(np.arange(6)), problem.rows(np.arange(6, 8)), C[:6], C[6:])
    np.testing.assert_allclose(guess["line"], 3 * C[6:] ** exponent)
    np.testing.assert_allclose(guess["last_rung"], 3 * C[5] ** exponent)


def test_points_of_equal_compute_to_a_percent_are_one_rung():
    """A line through a good and a better point .3 % dearer would rise beyond all numbers."""
    C = np.geomspace(1e17, 1e20, 8)
    twice, loss = np.r_[C, 1.003 * C], np.r_[3.1 * C**-0.1, 3 * C**-0.1]
    problem = fit("power", {"C": twice}, loss).problem
    early, late = np.r_[0:6, 8:14], np.r_[6:8, 14:16]
    guess = naive_predictions(problem.rows(early), problem.rows(late), twice[early], twice[late])
    np.testing.assert_allclose(guess["line"], 3 * np.r_[C[6:], 1.003 * C[6:]] ** -0.1, rtol=1e-3)


@pytest.mark.slow
def test_each_holdout_leaves_out_what_it_says():
    fit_result, C = fitted()
    N = fit_result.fit.problem.inputs["N"]
    by_name = {entry["name"]: entry for entry in holdouts(fit_result, Misfit(), draws=50)}
    assert by_name["largest size"]["n_test"] == (N.max() == N).sum()
    assert by_name["two largest sizes"]["n_test"] == (np.unique(N)[-2] <= N).sum()
    assert by_name["top 4x of compute"]["n_train"] == (C.max() / 4 >= C).sum()
    assert all(entry["mare"] < 0.03 for entry in by_name.values())
