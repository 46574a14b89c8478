"""Verdicts on identifiability: narrow inputs, dropped terms, no replicates."""

import numpy as np
import pytest

from kleiber.studies.laws import verdicts
from kleiber.studies.laws.asymptotics import beta_stability
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.lack_of_fit import lack_of_fit
from kleiber.studies.laws.laws_json import parameters
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.transients import diagnose

from .. import ladders


def judged(fitted):
    model = NoiseModel.of(fitted)
    params = parameters(model, None, model.profiles(None, 0.9), 0.9)
    return verdicts.identifiability(fitted, params)


def codes(fitted):
    return {verdict.code for verdict in judged(fitted)}


@pytest.mark.slow
def test_a_wide_ladder_raises_nothing():
    table = ladders.twenty()
    assert codes(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 1, 0.002))) == set()


@pytest.mark.slow
def test_sizes_within_a_decade_are_named():
    N = np.repeat(np.geomspace(1e8, 8e8, 5), 4)
    table = {"N": N, "D": N * np.tile(np.geomspace(5, 80, 4), 5)}
    fitted = fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0))
    assert {"narrow_input", "not_identified"} <= codes(fitted)
    assert any(v.code == "narrow_input" and "0.90" in v.text for v in judged(fitted))


@pytest.mark.slow
def test_a_dropped_floor_is_not_identified():
    table = ladders.twenty()
    fitted = fit("chinchilla", table, 20 * table["N"] ** -0.1 + 15 * table["D"] ** -0.1 - 0.6)
    assert any(v.code == "not_identified" and v.text.startswith("E is not identified") for v in judged(fitted))


def settling(table, seed=0, sd=0.0002):
    fitted = fit("chinchilla", table, ladders.noisy(ladders.small_loss(**table), seed, sd))
    return [v for v in beta_stability(diagnose(NoiseModel.of(fitted))) if "settled" in v.code]


def test_beta_has_settled_only_where_a_move_is_excluded():
    table = ladders.small()
    (verdict,) = settling(table)
    assert verdict.code == "settled"
    (verdict,) = settling(table, sd=0.01)
    assert verdict.code == "not_settled" and "is not excluded" in verdict.text


def test_two_values_of_d_above_the_least_tell_no_beta_of_their_own():
    table = ladders.small()
    few = table["D"] <= 4e6
    (verdict,) = settling({name: values[few] for name, values in table.items()})
    assert verdict.code == "not_settled" and verdict.level == "warn"


def test_lack_of_fit_speaks_only_with_replicates():
    def code(fitted):
        model = NoiseModel.of(fitted)
        return verdicts.misfit(model, lack_of_fit(model)).code

    table = ladders.twenty()
    assert code(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0))) == "no_replicates"
    twice = {k: np.tile(v, 2) for k, v in table.items()}
    bent = ladders.loss(**twice) * (1 + 0.01 * np.sin(3 * np.log(twice["N"])))
    assert code(fit("chinchilla", twice, ladders.noisy(bent, 0, 0.001))) == "lack_of_fit"


def test_rows_that_repeat_another_with_its_loss_are_told_and_seeds_are_not():
    table = ladders.twenty()
    loss = ladders.noisy(ladders.loss(**table), 0)
    twice = {k: np.tile(v, 2) for k, v in table.items()}
    seeds = np.concatenate([loss, ladders.noisy(ladders.loss(**table), 1)])
    assert verdicts.copies(fit("chinchilla", twice, seeds)) == []
    (verdict,) = verdicts.copies(fit("chinchilla", twice, np.tile(loss, 2)))
    assert verdict.code == "copies" and verdict.text.startswith("20 of 40 rows ")
