"""Suspect rows: the rules that flag them, and the fit with and without them."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.analysis import Options, analyze
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.table import load
from kleiber.studies.laws.verdicts import diverged, undertuned, unfinished, without_suspects

from .. import ladders

LAW = find("chinchilla")


def table(changes=None, **columns):
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 0, 0.002)
    for row, factor in (changes or {}).items():
        L[row] *= factor
    return load(pd.DataFrame({**rows, "loss": L, **columns}), {"L": "loss"})


def record(rows, **options):
    return analyze(rows, LAW, Options(bootstrap=20, backtest=(), **options))


@pytest.mark.slow
def test_clean_rows_are_no_suspects():
    assert without_suspects(table(), LAW).excluded == []
    result = record(table())
    assert result["suspects"] == [] and "with_without" not in result


def test_diverged_and_undertuned_runs_are_recorded_by_rule():
    kept = without_suspects(table({5: 1.04, 18: 2.0}), LAW)
    assert kept.excluded == [{"row": 18, "rule": "diverged"}, {"row": 5, "rule": "undertuned"}]


def test_an_unfinished_run_is_a_suspect_and_a_better_run_is_not():
    status = ["finished"] * 19 + ["failed"]
    assert unfinished(table(status=status)).nonzero()[0].tolist() == [19]
    assert not diverged(table({5: 0.95}), LAW).any() and not undertuned(table({5: 0.95}), LAW).any()


def test_many_bad_rows_are_the_laws_fault():
    assert not undertuned(table(dict.fromkeys((0, 6, 9, 15), 1.05)), LAW).any()


def test_a_row_known_to_be_noisy_is_not_undertuned():
    rows = table({5: 1.04}, se=np.where(np.arange(20) == 5, 0.1, 0.005))
    assert undertuned(rows, LAW)[5]
    rows.columns["sigma"] = rows.frame["se"].to_numpy(dtype=float)
    assert not undertuned(rows, LAW)[5]


@pytest.mark.slow
def test_suspects_stay_unless_asked_and_either_fit_stands_beside_the_other():
    every = table({5: 1.04, 18: 2.0})
    kept, left = record(every), record(every, exclude="suspects")
    rules = [{"row": 18, "rule": "diverged"}, {"row": 5, "rule": "undertuned"}]
    assert kept["suspects"] == left["suspects"] == left["excluded"] == rules
    assert (kept["n"], kept["excluded"], left["n"]) == (20, [], 18)
    for result in (kept, left):
        beside = {row["suspects"]: row for row in result["with_without"]}
        assert (beside["with"]["n"], beside["without"]["n"]) == (20, 18)
        assert beside["with"]["alpha"]["value"] == pytest.approx(kept["params"]["alpha"]["value"], rel=1e-9)
        assert beside["without"]["a_opt"]["value"] == pytest.approx(left["derived"]["a_opt"]["value"], rel=1e-9)
    assert kept["params"]["alpha"]["value"] != left["params"]["alpha"]["value"]


@pytest.mark.slow
def test_the_fit_that_was_asked_for_has_one_interval_of_each_number():
    result = record(table({5: 1.04}))
    row = next(row for row in result["with_without"] if row["suspects"] == "with")
    assert row["alpha"] == result["params"]["alpha"] and row["a_opt"] == result["derived"]["a_opt"]


@pytest.mark.slow
def test_the_verdict_names_the_rows_by_rule_and_at_most_ten_of_them():
    marked = table(run=[f"run-{i}" for i in range(20)], status=["finished"] * 8 + ["killed"] * 12)
    (verdict_row,) = [verdict for verdict in record(marked)["verdicts"] if verdict["code"] == "suspects"]
    assert (
        verdict_row["level"] == "warn" and "12 unfinished" in verdict_row["text"] and "8 (run-8)" in verdict_row["text"]
    )
    assert verdict_row["text"].count("run-") == 10 and "2 others" in verdict_row["text"]
    assert record(marked, find_suspects=False)["suspects"] == []


@pytest.mark.slow
def test_a_fit_that_leaves_too_few_rows_is_refused_when_asked_for_and_else_told():
    foreign = table(status=["ok"] * 20)
    with pytest.raises(ValueError, match=r"leaves 0 rows.* 5 parameters.*20 rows"):
        record(foreign, exclude="suspects")
    result = record(foreign)
    assert result["n"] == 20 and result["with_without"] == []
    assert any(
        verdict["code"] == "suspects" and "a fit without them fails" in verdict["text"]
        for verdict in result["verdicts"]
    )


def test_only_none_and_suspects_can_be_excluded():
    with pytest.raises(ValueError, match="'outlier' must be one of none, suspects"):
        Options(exclude="outlier")
