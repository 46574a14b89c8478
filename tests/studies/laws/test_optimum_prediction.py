"""Predictions of optimal hyperparameters: planted optima inside their bands, costs of a choice, and refusals."""

import numpy as np
import pytest

from kleiber.studies.fitted_law import FittedLaw, fit
from kleiber.studies.laws.hyperparameter_record import read_groups
from kleiber.studies.laws.optimum_prediction import compare_with_sweep, predict, prediction_line
from tests.studies.laws.sweeps import ROLES, planted_batch, planted_rate, sweep


@pytest.fixture(scope="module")
def law() -> FittedLaw:
    return fit(sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 80]), "hyperparameter", map=ROLES, bootstrap=60)


def test_planted_optima_are_inside_their_bands(law):
    at = law.predict(N=1e9, D=1e11)
    assert at["lr"]["lo"] <= planted_rate(1e9, 1e11) <= at["lr"]["hi"]
    assert at["batch"]["run_lo"] <= planted_batch(1e11) <= at["batch"]["run_hi"]
    assert at["value"] == at["lr"]["value"] and at["run_lo"] <= at["lo"]
    assert law.predict(N=1e9, M=100)["lr"] == law.predict(C=6e20, D=1e11)["lr"] == at["lr"]


def test_a_choice_costs_what_the_curvature_of_the_nearest_group_says(law):
    best = law.predict(N=1e8, D=8e9)
    rate, batch = best["lr"]["value"], best["batch"]["value"]
    chosen = law.predict(N=1e8, D=8e9, lr=rate * np.e, batch=batch)["excess"]
    assert chosen["value"] == pytest.approx(np.expm1(0.008), rel=0.25) and chosen["lo"] < chosen["value"] < chosen["hi"]
    assert "excess loss" in prediction_line(law.predict(N=1e8, D=8e9, lr=rate, batch=batch), 0.9)


@pytest.mark.parametrize(
    ("at", "message"),
    [({"N": 1e8}, "add D="), ({"N": 1e8, "D": 1e9, "X": 8}, "X is no input"), ({"N": 1e8, "D": -1}, "D=-1 must be"),
     ({"N": 1e8, "D": 1e9, "lr": 0.1}, "add batch"), ({"N": 1e8, "D": 1e9, "M": 500}, "M=500 contradicts D=1e")],
)  # fmt: skip
def test_a_wrong_point_is_refused(law, at, message):
    with pytest.raises(ValueError, match=message):
        predict(law.record, law.form, at)
    assert "refused" in predict(law.record, law.form, {"N": 1e15, "D": 1e9})


def test_choices_in_a_sweep_that_was_not_fitted_cost_little(law):
    from kleiber.studies.fitted_law import select_rows

    rows = select_rows(sweep(sizes=[3e8], seed=1), ROLES, (), law.form)
    _, groups, _ = read_groups(rows, law.form)
    found = compare_with_sweep(law.record, law.form, groups)
    with pytest.raises(ValueError, match=r"N=3e\+08, D=3e\+09: 0.5 decades outside"):
        compare_with_sweep(law.record, law.form, groups, max_decades=0.4)
    assert len(found["groups"]) == 3 and found["worst"] < 0.004 and 0 <= found["coverage"] <= 1
