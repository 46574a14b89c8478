"""The record of a fitted law: what each option adds to it, what its steps agree on, and when it is accepted."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.analysis import Options, accepted, analyze, fit_briefly, identified
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.laws_json import SCHEMA, without_nonfinite
from kleiber.studies.laws.table import load

from .. import ladders

LAW = find("chinchilla")


def table(**columns):
    """Twenty noisy rows of the law, with C = 6 N D."""
    rows = ladders.twenty()
    return load(pd.DataFrame({**rows, "L": ladders.noisy(ladders.loss(**rows), 1, 0.002), **columns}), {})


@pytest.fixture(scope="module")
def record():
    return analyze(table(), LAW, Options(bootstrap=60))


@pytest.mark.slow
def test_a_record_satisfies_the_schema(record):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(without_nonfinite(record), json.loads(SCHEMA.read_text()))


def test_the_parameters_lie_in_their_intervals_and_near_the_law(record):
    for name, truth in ladders.TRUE.items():
        entry = record["params"][name]
        assert entry["lo"] < entry["value"] < entry["hi"] and entry["value"] == pytest.approx(truth, rel=0.5)
    assert identified(record) and accepted(record)
    assert record["n"] == 20 and record["domain"]["N"] == pytest.approx([1e7, 1e9])
    assert record["residual_rms"] == pytest.approx(0.002, rel=0.6)


@pytest.mark.slow
def test_a_brief_record_has_the_same_estimates(record):
    short = fit_briefly(table(), LAW, Options(bootstrap=60))
    assert short.keys() == {"n", "params", "derived"}
    assert all(short[name] == record[name] for name in short)


@pytest.mark.slow
def test_the_ranking_and_the_hold_outs_are_made_on_request(record):
    assert not {"ranking", "holdouts", "with_without", "at"} & record.keys()
    ranked = analyze(table(), LAW, Options(bootstrap=0, rank=True, backtest=[]))
    assert len(ranked["ranking"]) == 5 and ranked["holdouts"] and ranked["backtests"] == []


def test_a_backtest_at_a_cut_needs_compute_or_size():
    Lx = np.linspace(2.0, 4.0, 9)
    rows = load(pd.DataFrame({"Lx": Lx, "L": 3 - 0.5 * Lx}), {"Lx": "Lx"})
    with pytest.raises(ValueError, match=r"--backtest.*--map C="):
        analyze(rows, find("forgetting_line"), Options(bootstrap=0, backtest=[1e19]))


@pytest.mark.parametrize(("changed", "passes"), [({}, True), ({"refused": True}, False), ({"A": False}, False)])
def test_a_law_is_accepted_when_it_is_identified_and_not_refused(changed, passes):
    entries = {name: {"identified": changed.get(name, True)} for name in "EAB"}
    assert accepted({"params": entries, "refused": changed.get("refused", False)}) is passes


def test_the_draws_of_every_refit_are_enough_for_the_level():
    for level in (0.5, 0.9, 0.995, 0.999):
        few = Options(bootstrap=4000, level=level).resamples_per_fit
        assert few >= 200 and few * (1 - level) / 2 >= 1 - 1e-9
    assert Options(bootstrap=50).resamples_per_fit == 50


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 0.0}, {"exclude": "outlier"}])
def test_options_outside_their_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"--{next(iter(options))}"):
        Options(**options)
