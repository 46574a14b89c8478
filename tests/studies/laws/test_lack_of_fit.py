"""Lack of fit: replicates of independent rows, means and slopes of trunks, and what is not testable."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_run import REPOSITORY

from kleiber.records.catalog import read_runs
from kleiber.studies.laws import verdicts
from kleiber.studies.laws.analysis import Options, analyze
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.lack_of_fit import MEANS, REPLICATES, SLOPES, lack_of_fit
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.problem import relative_sigma
from kleiber.studies.laws.table import load
from kleiber.studies.report import study_of
from kleiber.studies.scaling import at_least, finished_rows

from .. import ladders

LAW = find("chinchilla")


def branches(bend=0.0, sizes=6, seeds=2, shared=0.005, single=0.001, seed=0):
    """A ladder of trunks of four branches; the slope along D is off by `bend` to -`bend` over the sizes."""
    rng = np.random.default_rng(seed)
    N = np.repeat(np.geomspace(3e4, 9e5, sizes), 4 * seeds)
    D = np.tile(2e6 * 2.0 ** np.arange(4), sizes * seeds)
    trunk = np.repeat(np.arange(sizes * seeds), 4)
    tilt = bend * np.linspace(1, -1, sizes)[trunk // seeds] * (np.log2(D) - np.log2(D).mean())
    noise = shared * rng.normal(size=sizes * seeds)[trunk] + single * rng.normal(size=len(N))
    return pd.DataFrame({"N": N, "D": D, "loss": ladders.small_loss(N, D) * np.exp(tilt + noise), "trunk": trunk})


def strata_of(rows, cluster="trunk"):
    return lack_of_fit(fit_with_noise(load(rows, {"L": "loss"}), LAW, None, 1e-3, None, cluster))


def p_values(test):
    return {stratum.name: stratum.p_value for stratum in test.strata}


@pytest.mark.slow
@pytest.mark.parametrize("name, statistic, p_value", [("golden", 60.8, 3.8e-6), ("results/golden_tuned", 103, 4.9e-7)])
def test_slopes_of_recorded_trunks_differ_by_size(name, statistic, p_value):
    """The figures of an independent one-way analysis of the slopes of the 14 trunks of both recorded ladders."""
    folder = REPOSITORY / "multirun" / name
    runs = list(read_runs(folder))
    study = study_of(folder, runs)
    rows = at_least(finished_rows(runs), 1.9e6)
    test = lack_of_fit(fit_with_noise(study.loaded(rows), LAW, None, 1e-3, None, "trunk"))
    slopes = next(stratum for stratum in test.strata if stratum.name == SLOPES)
    assert (slopes.df_misfit, slopes.df_noise) == (5, 8)
    assert slopes.statistic == pytest.approx(statistic, rel=2e-3) and slopes.p_value == pytest.approx(p_value, rel=2e-2)
    assert p_values(test)[MEANS] > 0.5 and test.failed == [slopes]
    assert [row["slope"] > 0 for row in test.slopes] == [True] * 3 + [False] * 3


def test_a_misfit_of_slopes_is_found_and_located_though_the_noise_of_trunks_is_larger():
    test = strata_of(branches(bend=0.004))
    assert [stratum.name for stratum in test.failed] == [SLOPES]
    assert test.misfit == pytest.approx(0.003, abs=0.001), "0.4% times the spread of sizes and of tokens"
    assert test.slopes[0]["slope"] > 0.002 and test.slopes[-1]["slope"] < -0.002
    assert sum(cell["runs"] for cell in test.cells) == 48


def test_a_misfit_of_sizes_is_found_in_the_means_of_trunks():
    rows = branches(shared=0.0005)
    bent = rows.assign(loss=rows["loss"] * (1 + 0.02 * np.sin(3 * np.log(rows["N"]))))
    assert MEANS in [stratum.name for stratum in strata_of(bent).failed]


@pytest.mark.slow
def test_an_exact_law_fits_within_noise():
    assert not any(strata_of(branches(seed=seed)).failed for seed in range(5))


def test_branches_are_no_replicates_of_each_other():
    """As independent rows, the noise that branches share would look like misfit of an exact law."""
    rows = branches(shared=0.008)
    assert strata_of(rows, cluster=None).failed and not strata_of(rows).failed


@pytest.mark.parametrize(
    "rows, why",
    [
        (branches(sizes=6, seeds=1), "only 0 sizes"),
        (branches().query("trunk not in (1, 3, 5, 7)"), "only 2 sizes"),
    ],
)
def test_trunks_of_fewer_than_three_sizes_are_not_testable(rows, why):
    model = fit_with_noise(load(rows, {"L": "loss"}), LAW, None, 1e-3, None, "trunk")
    verdict = verdicts.misfit(model, lack_of_fit(model))
    assert verdict.code == "no_replicates" and why in verdict.text


def test_slopes_of_fewer_than_three_sizes_are_not_tested():
    """Four of the six sizes have trunks of one row each."""
    rows = branches().query("trunk < 4 or D < 3e6")
    assert [stratum.name for stratum in strata_of(rows).strata] == [MEANS]


@pytest.mark.slow
def test_the_record_tells_where_and_keeps_the_prediction_with_the_misfit_in_its_band():
    rows = branches(bend=0.004)
    at = {"N": 9e5, "D": 1.6e7}
    options = Options(bootstrap=40, cluster="trunk", backtest=(), predict=[at])
    record = analyze(load(rows, {"L": "loss"}), LAW, options)
    misfit = record["lack_of_fit"]
    assert misfit["found"] and len(misfit["cells"]) == 24 and len(misfit["slopes"]) == 6
    (verdict,) = [v for v in record["verdicts"] if v["code"] in ("lack_of_fit", "fits_within_noise")]
    assert verdict["code"] == "lack_of_fit" and "per doubling of D" in verdict["text"]
    assert record["residual_sd"] >= np.hypot(misfit["noise"], misfit["misfit"])
    (answer,) = record["predictions"]
    assert answer["run_lo"] < ladders.small_loss(**at) * np.exp(-0.004 * 1.5) < answer["run_hi"]
    exact = analyze(load(branches(), {"L": "loss"}), LAW, replace(options, predict=()))
    assert not exact["lack_of_fit"]["found"] and "cells" not in exact["lack_of_fit"]


def replicated(count=3, bend=0.0):
    table = {name: np.repeat(column, count) for name, column in ladders.twenty().items()}
    loss = ladders.loss(**table) * (1 + bend * np.sin(3 * np.log(table["N"])))
    return lack_of_fit(NoiseModel.of(fit("chinchilla", table, ladders.noisy(loss, 6, 0.002), "squared")))


def test_the_noise_of_independent_replicates_is_measured_and_a_true_law_passes():
    test = replicated()
    (stratum,) = test.strata
    assert (stratum.name, stratum.df_noise) == (REPLICATES, 40) and test.noise == pytest.approx(0.002, rel=0.3)
    assert stratum.p_value > 0.02 and not test.failed


def test_a_bent_law_fails_and_without_replicates_nothing_is_claimed():
    assert replicated(bend=0.01).strata[0].p_value < 1e-4
    assert replicated(count=1) is None


def test_misfit_of_a_cell_is_no_noise_of_its_replicates():
    """Two replicates a cell, one with ten times the error of the other, and cells that are 3 % off the law."""
    rows = {name: np.repeat(column, 2) for name, column in ladders.twenty().items()}
    rng, error = np.random.default_rng(3), np.tile([0.0005, 0.005], 20)
    misfit = np.repeat(rng.normal(0, 0.03, 20), 2)
    L = ladders.loss(rows["N"], rows["D"]) * np.exp(rng.normal(size=40) * error + misfit)
    fitted = fit("chinchilla", rows, L, "squared", scale=relative_sigma(error * L, L, "log"))
    test = lack_of_fit(NoiseModel.of(fitted))
    assert p_values(test)[REPLICATES] < 1e-6
    assert test.noise == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.35)
