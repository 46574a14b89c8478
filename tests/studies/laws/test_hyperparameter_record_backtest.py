"""Backtests of optimal hyperparameters: choices outside a sweep are counted, and rivals compared in equal groups."""

import numpy as np
import pytest

from kleiber.studies.fitted_law import fit
from kleiber.studies.laws.hyperparameter_record import backtest_verdicts
from kleiber.studies.optimum_report import headline, lines
from tests.studies.laws.sweeps import ROLES, sweep


@pytest.fixture(scope="module")
def law():
    """A law whose choice lies outside the sweep of one of the three largest groups, where other rates are best."""
    table = sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 40, 160])
    other = (table["params"] == 1e8) & (table["tokens"] == 4e9)
    return fit(
        table.assign(rate=table["rate"].where(~other, 60 * table["rate"])), "hyperparameter", map=ROLES, bootstrap=60
    )


def test_choices_outside_their_sweeps_are_counted(law):
    test = law.record["backtests"][0]
    excess = [row["excess"] for row in test["chosen"] if row["excess"] is not None]
    assert (test["n_test"], test["n_scored"]) == (3, 2) and test["mare"] == pytest.approx(np.mean(excess))
    counted = "; choices outside their sweeps: 1 of 3"
    assert "for 2 larger groups" in headline(law.record) and counted in headline(law.record)
    assert any(counted in line for line in lines(law.record))


def test_law_and_unchanged_optimum_are_compared_in_the_groups_that_have_both(law):
    test = law.record["backtests"][0]
    assert test["n_paired"] <= test["n_scored"] and test["mare_paired"] is not None
    rivals = {**test, "mare": 0.01, "mare_paired": 0.03, "n_paired": 1, "naive": {"unchanged": 0.02}}
    (verdict,) = backtest_verdicts([rivals])
    assert verdict.code == "no_better_than_unchanged" and "3.00%" in verdict.text
    assert backtest_verdicts([{**rivals, "mare": 0.03, "mare_paired": 0.01}]) == []
    entry = {**law.record, "backtests": [rivals]}
    assert any("2.00% in 1 group, where the law's choice costs 3.00%" in line for line in lines(entry))
