"""Exclusion by recorded rule: what is found, what is left alone, and what the table shows."""

import pandas as pd
import pytest

from kleiber.studies.exclusion import diverged, exclude, undertuned, with_and_without
from kleiber.studies.fit import fit
from kleiber.studies.law import find
from kleiber.studies.table import load

from . import ladders

LAW = find("chinchilla")


def table(changes=None, **columns):
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 0, 0.002)
    for row, factor in (changes or {}).items():
        L[row] *= factor
    return load(pd.DataFrame({**rows, "loss": L, **columns}), {"L": "loss"})


def test_clean_rows_stay():
    assert exclude(table(), LAW).excluded == []


def test_diverged_and_undertuned_runs_are_recorded_by_rule():
    kept = exclude(table({5: 1.04, 18: 2.0}), LAW)
    assert kept.excluded == [{"row": 18, "rule": "diverged"}, {"row": 5, "rule": "undertuned"}]


def test_status_excludes_and_a_better_run_does_not():
    status = ["finished"] * 19 + ["failed"]
    assert diverged(table(status=status), LAW).nonzero()[0].tolist() == [19]
    assert not undertuned(table({5: 0.95}), LAW).any()


def test_many_bad_rows_are_the_laws_fault():
    assert not undertuned(table(dict.fromkeys((0, 6, 9, 15), 1.05)), LAW).any()


def test_rules_can_be_switched_off_and_unknown_ones_are_refused():
    assert exclude(table({18: 2.0}), LAW, ()).excluded == []
    with pytest.raises(ValueError, match="'outlier': one of diverged, undertuned"):
        exclude(table(), LAW, ("outlier",))


def test_with_and_without_show_what_the_exclusion_did():
    every = table({5: 1.04})
    kept = exclude(every, LAW)
    shown = with_and_without(fit(LAW, kept.inputs(LAW), kept.target), every, LAW)
    assert [row["n"] for row in shown] == [20, 19] and shown[0]["a_opt"]["value"] != shown[1]["a_opt"]["value"]
    for row in shown:
        assert row["alpha"]["lo"] < row["alpha"]["value"] < row["alpha"]["hi"]
