"""The test for the power law at the smallest runs: no refusal for power laws with noise, one for transients."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.asymptotics import pre_asymptotic, pre_asymptotic_reasons
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit, refit
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.table import load
from kleiber.studies.laws.transients import diagnose, transient, untestable_inputs

from .. import ladders


def plateau(N, D, height=0.5, until=2e6):
    """Loss before the induction drop: `height` nats on top, gone as (D/until)^-4."""
    return ladders.small_loss(N, D) + height / (1 + (D / until) ** 4)


def floorless(N, D):
    return 30 * N**-0.3 + 40 * D**-0.25


def diagnosed(law, table, loss, *options):
    return diagnose(NoiseModel.of(fit(law, table, loss, *options)))


def share(curve, count, sd=0.005):
    table = ladders.small()
    return (
        sum(
            bool(pre_asymptotic_reasons(diagnosed("chinchilla", table, ladders.noisy(curve(**table), s, sd))))
            for s in range(count)
        )
        / count
    )


@pytest.mark.slow
def test_a_few_ladders_are_told_apart():
    assert share(ladders.small_loss, 8) <= 2 / 8 and share(plateau, 8) >= 7 / 8


@pytest.mark.slow
@pytest.mark.parametrize("curve", [ladders.small_loss, floorless])
def test_power_law_with_noise_reads_asymptotic(curve):
    assert share(curve, 100) <= 0.10


@pytest.mark.slow
def test_a_transient_reads_pre_asymptotic():
    assert share(plateau, 100) >= 0.90


def test_steepening_slopes_are_named():
    table = ladders.small()
    bent = ladders.small_loss(**table) * np.exp(-0.05 * np.log(table["D"] / 1e6) ** 2)
    verdicts = pre_asymptotic(diagnosed("chinchilla", table, ladders.noisy(bent, 0)))
    assert [v.level for v in verdicts] == ["refuse"] and "steeper at D = " in verdicts[0].text


def test_an_exponent_that_moves_with_the_least_d_is_named():
    table = ladders.small()
    L = ladders.small_loss(**table) + 0.5 * np.exp(-table["D"] / 2e6)
    assert any(
        "beta changes from" in r
        for r in pre_asymptotic_reasons(diagnosed("chinchilla", table, ladders.noisy(L, 0, 0.002)))
    )


def test_a_floor_that_wants_to_be_negative_is_named():
    table = ladders.small()
    fitted = diagnosed("chinchilla", table, ladders.noisy(floorless(**table) - 0.8, 0, 0.001))
    assert any("E is at its bound 0, and would be -" in reason for reason in pre_asymptotic_reasons(fitted))


def test_the_transients_size_is_measured():
    """Half a nat at D -> 0 decaying over 4M bytes: exp(-1/4) of it, over a loss of 3.3, at the smallest D."""
    table = ladders.small()
    curve = ladders.small_loss(**table)
    L = ladders.noisy(curve + 0.5 * np.exp(-table["D"] / 4e6), 0, 0.001)
    fitted = transient(diagnosed("chinchilla", table, L, "squared"))
    assert fitted is not None and fitted.along == "D" and fitted.p_value < 0.01


def trunks(seed, seeds, correlation=0.9, sd=0.006, planted=0.0):
    """A ladder of trunks with noise that their branches share, as a fitted table with its trunks."""
    rng = np.random.default_rng(seed)
    table = {name: np.repeat(column, seeds) for name, column in ladders.small().items()}
    trunk = np.searchsorted(np.unique(table["N"]), table["N"]) * seeds + np.tile(np.arange(seeds), 30)
    shared = rng.normal(size=6 * seeds)[trunk]
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=len(trunk))
    loss = ladders.small_loss(**table) * np.exp(sd * noise) + planted * np.exp(-table["D"] / 2e6)
    frame = pd.DataFrame({**table, "loss": loss, "trunk": trunk})
    return fit_with_noise(load(frame, {"L": "loss"}), find("chinchilla"), None, 1e-3, None, "trunk")


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.slow
def test_noise_that_trunks_share_is_no_transient_in_size(seeds):
    """A trunk's noise is a function of N alone; with it taken for the rows' own, 77 to 90 % of these were refused."""
    refused = [bool(pre_asymptotic_reasons(diagnose(trunks(seed, seeds)))) for seed in range(10)]
    assert sum(refused) <= 2, refused


def test_a_transient_is_found_beside_the_noise_of_trunks():
    result = transient(diagnose(trunks(0, 2, planted=0.3)))
    assert result is not None and result.along == "D" and result.p_value < 0.01


def test_nothing_is_judged_along_size_with_too_few_trunks():
    model = trunks(0, 1)
    four = model.fit.problem.inputs["N"] > np.unique(model.fit.problem.inputs["N"])[1]
    clusters = model.clusters[four]
    few = diagnose(NoiseModel.of(refit(model.fit, four), clusters))
    assert untestable_inputs(few) == ["N"] and untestable_inputs(diagnose(model)) == []
    assert [v.code for v in pre_asymptotic(few)] == ["transient_not_tested"]
