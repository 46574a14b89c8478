"""Estimates in laws.json: one interval and one method each, and reasons for missing ones."""

from dataclasses import replace

import numpy as np
import pytest

from kleiber.studies.laws import laws_json
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.uncertainty import interval

from .. import ladders

TRUNK = np.repeat(np.arange(12), 3)


def two_seeds(correlation=0.9, sd=0.004, seed=0):
    """Six sizes of two trunks with three branches each; most of the noise is common to a trunk."""
    table = {"N": np.repeat(np.geomspace(1e7, 1e9, 6), 6), "D": np.tile(1e9 * 16.0 ** np.arange(3), 12)}
    rng = np.random.default_rng(seed)
    shared, single = rng.normal(size=12)[TRUNK], rng.normal(size=36)
    noise = sd * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * single)
    return fit("chinchilla", table, ladders.loss(**table) * np.exp(noise))


def numbers(model, draws=None, level=0.9):
    """Parameters and derived quantities by name."""
    profiled = model.profiles(draws, level)
    return {
        **laws_json.parameters(model, draws, profiled, level),
        **laws_json.derived(model.fit, draws, profiled, level),
    }


def log_width(entry):
    return np.log(entry["hi"] / entry["lo"])


@pytest.fixture(scope="module")
def model():
    return NoiseModel.of(two_seeds(), TRUNK)


@pytest.fixture(scope="module")
def draws(model):
    return model.draws(100, 0)


@pytest.fixture(scope="module")
def refitted(model, draws):
    return numbers(model, draws)


@pytest.fixture(scope="module")
def without(model):
    return numbers(model)


@pytest.mark.slow
def test_a_number_has_one_interval_which_is_that_of_the_refits(model, draws, refitted):
    lo, hi = interval(draws.values)
    for j, name in enumerate(model.fit.law.params):
        assert (refitted[name]["lo"], refitted[name]["hi"]) == (lo[j], hi[j])
    for name, values in draws.derive().items():
        assert [refitted[name]["lo"], refitted[name]["hi"]] == [float(end) for end in interval(values)]
    assert {entry["method"] for entry in refitted.values()} == {"cluster t"}
    assert all(entry["lo"] < entry["value"] < entry["hi"] for entry in refitted.values())


@pytest.mark.slow
def test_without_refits_trunks_widen_the_interval_and_its_method_says_so(model, without):
    apart = numbers(NoiseModel.of(model.fit))
    assert without["alpha"]["method"] == "cluster t" and apart["alpha"]["method"] == "profile"
    for name in ("alpha", "A"):  # which are determined between trunks
        assert log_width(without[name]) > 1.3 * log_width(apart[name])


@pytest.mark.slow
def test_a_derived_quantity_without_refits_has_no_interval_and_stays_identified(without):
    entry = without["a_opt"]
    assert (entry["identified"], entry["lo"], entry["hi"]) == (True, None, None) and "method" not in entry
    flat = numbers(alike_sizes(1))
    assert not flat["E"]["identified"] and not flat["a_opt"]["identified"]


def test_without_refits_the_interval_is_near_that_of_the_refits(without, refitted):
    for name in ("alpha", "beta"):
        assert log_width(without[name]) == pytest.approx(log_width(refitted[name]), rel=0.4)


@pytest.mark.slow
def test_the_level_reaches_every_interval(model, draws, refitted, without):
    for sample, wide in ((None, without), (draws, refitted)):
        narrow = numbers(model, sample, 0.5)
        names = [name for name, entry in narrow.items() if entry["lo"] is not None]
        assert {"alpha", "beta", "E"} <= set(names) and ("a_opt" in names) == (sample is not None)
        for name in names:
            assert wide[name]["lo"] < narrow[name]["lo"] < narrow[name]["hi"] < wide[name]["hi"]


def alike_sizes(seed):
    """Three sizes within 5 %, which tell little of alpha; 12 rows as few published sets have."""
    table = {"N": np.repeat([1e8, 1.025e8, 1.05e8], 4), "D": np.tile(np.geomspace(1e9, 6e10, 4), 3)}
    return NoiseModel.of(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), seed, 0.002)))


@pytest.mark.slow
def test_a_flat_parameter_leaves_what_it_moves_unidentified():
    """a_opt depends on alpha, whose profile is flat, so it gets no interval."""
    model = alike_sizes(2)
    sample = model.draws(60, 0)
    entries = numbers(model, sample)
    assert not entries["alpha"]["identified"] and not entries["a_opt"]["identified"]
    assert (entries["a_opt"]["lo"], entries["a_opt"]["hi"]) == (None, None) and "method" not in entries["a_opt"]
    assert entries["a_opt"]["reason"].startswith("it depends on A, alpha")
    assert entries["beta"]["identified"] and entries["b_opt"]["lo"] is None


@pytest.mark.slow
def test_a_flat_profile_is_found_though_refits_stay_near_the_fit():
    model = alike_sizes(2)
    sample = model.draws(60, 0)
    entry = numbers(model, sample)["alpha"]
    assert not entry["identified"] and (entry["lo"], entry["hi"]) == (None, None) and "method" not in entry


@pytest.mark.slow
def test_a_flat_parameter_that_moves_nothing_leaves_the_rest_identified(model, draws):
    """The path of a flat profile decides: along one on which a_opt stays, a_opt is identified."""
    profiled = model.profiles(draws, 0.9)
    path = np.repeat(model.fit.values, 3, axis=0)
    path[:, list(model.fit.law.params).index("E")] *= [0.5, 1.0, 2.0]
    still = {**profiled, "E": replace(profiled["E"], reason="flat profile", path=path)}
    assert laws_json.derived(model.fit, draws, still, 0.9)["a_opt"]["identified"]
    path[:, list(model.fit.law.params).index("alpha")] *= [0.5, 1.0, 2.0]
    moved = {**profiled, "E": replace(profiled["E"], reason="flat profile", path=path)}
    assert not laws_json.derived(model.fit, draws, moved, 0.9)["a_opt"]["identified"]


def test_a_term_whose_interval_begins_at_0_is_not_identified(model, draws):
    profiled = model.profiles(draws, 0.9)
    values = draws.values.copy()
    values[:8, list(model.fit.law.params).index("A")] = 0.0
    entries = laws_json.parameters(model, replace(draws, values=values), profiled, 0.9)
    assert not entries["A"]["identified"] and entries["A"]["lo"] == 0.0 and entries["A"]["hi"] is not None
    assert entries["B"]["identified"] and entries["alpha"]["identified"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_numbers_of_tokens_identify_no_exponent_of_tokens(seed):
    """E, B and beta move along a curve that changes no residual; refits stay at the fit, so their spread is no error.

    The profile of beta rises all the same, where B overflows.
    """
    table = {"N": np.repeat(np.geomspace(1e5, 1e7, 6), 2), "D": np.tile([4e6, 8e6], 6)}
    noisy = ladders.noisy(ladders.loss(**table), seed, 0.01)
    model = NoiseModel.of(fit("chinchilla", table, noisy), np.repeat(np.arange(6), 2))
    entries = laws_json.parameters(model, draws := model.draws(50, 0), model.profiles(draws, 0.9), 0.9)
    unknown = {name for name, entry in entries.items() if not entry["identified"]}
    assert {"B", "beta"} <= unknown and "alpha" not in unknown
    assert entries["beta"]["lo"] is None and entries["beta"]["hi"] is None


def test_a_dropped_term_leaves_the_other_estimates_without_intervals():
    """They hold only if the term is 0: the interval of beta then covers the truth in half of such tables."""
    table = {"N": np.repeat(np.geomspace(1e5, 8e6, 6), 3), "D": np.tile([2e6, 4e6, 8e6], 6)}
    model = NoiseModel.of(fit("chinchilla", table, ladders.noisy(ladders.loss(**table), 0, 0.02), loss_fn="squared"))
    assert model.fit.dropped == ["E"]
    entries = laws_json.parameters(model, draws := model.draws(50, 0), model.profiles(draws, 0.9), 0.9)
    assert not any(entry["identified"] for entry in entries.values())
    assert {name for name, entry in entries.items() if entry["lo"] is None} == {"A", "B", "alpha", "beta"}
