"""The law of task scores: both routes, the choice by backtests, tasks without signal, and published tables."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.table_laws import Settings, compare
from kleiber_topics.task_scores.law import backtests, bootstrap, downstream, fit_route, lines, misfit
from kleiber_topics.task_scores.prediction import predict_rows
from kleiber_topics.task_scores.runs import read_runs

from .tables import scores

ROLES = {"floor": "0.25"}
QUICK = Settings(bootstrap=60)


@pytest.fixture(scope="module")
def record():
    return downstream().fit_table(scores(), ROLES, QUICK)


def test_the_route_is_that_of_the_smaller_error_above_the_cuts(record):
    errors = {route: np.mean([test["mae"][route] for test in record["backtests"]]) for route in ("chained", "direct")}
    assert record["chosen_by"] == "backtests" and record["route"] == min(errors, key=errors.__getitem__)
    assert len(record["backtests"]) == 3 and record["n"] == 20 and not record["refused"]
    assert any("backtest C <" in line for line in lines(record))


def test_a_route_is_taken_as_named():
    record = downstream().fit_table(scores(), ROLES, Settings(route="direct", bootstrap=0))
    assert record["route"] == "direct" and record["loss"] is None and record["score"]["law"] == "direct"
    assert record["chosen_by"] == "user"
    with pytest.raises(ValueError, match="--route 'both'"):
        downstream().fit_table(scores(), ROLES, Settings(route="both"))
    with pytest.raises(ValueError, match="--form 'ridge'"):
        downstream().fit_table(scores(), ROLES, Settings(form="ridge"))


def test_both_routes_predict_larger_models():
    frame = scores(noise=0.002)
    large = frame["N"] > 1e9
    runs = read_runs(frame[~large], ROLES)
    held = read_runs(frame[large], ROLES, fitted=False)
    for route in ("chained", "direct"):
        assert np.abs(fit_route(runs, route, "sigmoid").predict(held) - held.acc).max() < 0.03


@pytest.mark.parametrize("acc", ["noise", "falling"])
def test_a_task_without_signal_is_not_predictable(acc):
    frame, rng = scores(), np.random.default_rng(0)
    values = 0.25 + rng.normal(0, 0.01, 20) if acc == "noise" else 1.2 - frame["acc"]
    record = downstream().fit_table(frame.assign(acc=values), ROLES, Settings(bootstrap=20))
    assert record["refused"] and "not_predictable" in {verdict["code"] for verdict in record["verdicts"]}


def test_few_runs_have_no_backtest_and_are_chained():
    record = downstream().fit_table(scores()[::3], ROLES, Settings(bootstrap=20))
    assert record["backtests"] == [] and record["route"] == "chained" and record["chosen_by"] == "default"
    assert "no_backtest" in {verdict["code"] for verdict in record["verdicts"]}


def test_residuals_of_a_run_are_drawn_together():
    runs = read_runs(scores(), ROLES)
    model = fit_route(runs, "chained", "sigmoid")
    refits = bootstrap(model, runs, 50, 0)
    assert refits.residuals.shape == (20, 2) and refits.loss is not None
    assert len(refits.loss) == len(refits.score) == len(refits.noise) == 50
    assert refits.residuals[:, 1].std() == pytest.approx(0.004, rel=0.5)


def test_the_misfit_follows_the_errors_of_the_backtests():
    tests = backtests(read_runs(scores(), ROLES), "sigmoid")
    assert misfit([], "direct") == pytest.approx(0.15)
    worse = [test | {"logit_error": {"direct": 2.0, "chained": 2.0}} for test in tests]
    assert misfit(worse, "direct") > 1 > misfit(tests, "chained")


@pytest.mark.slow
def test_a_ladder_up_to_760m_predicts_eight_tasks_at_1b(shared):
    path = shared / "laws" / "olmo_ladder" / "final_mean_last5.csv"
    if not path.is_file():
        pytest.skip("needs ../shared/laws beside the checkout")
    frame = pd.read_csv(path)
    tasks = {
        "mmlu_other_test": 0.25, "hellaswag_val": 0.25, "arc_easy_test": 0.25, "arc_challenge_test": 0.25,
        "csqa_val": 0.2, "openbookqa_test": 0.25, "piqa_val": 0.5, "socialiqa_val": 0.3333,
    }  # fmt: skip
    errors, covered = [], []
    for task, chance in tasks.items():
        roles = {"loss": f"bpb:{task}", "acc": f"acc:{task}", "floor": str(chance)}
        record = downstream().fit_table(frame[frame["N"] < 1e9], roles, Settings(bootstrap=200))
        answer = compare(*predict_rows(record, frame[frame["N"] > 1e9], roles))
        assert not record["refused"]
        errors.append(answer["mae"])
        covered.append(answer["coverage"] >= 0.75)
    assert np.mean(errors) < 0.012 and sum(covered) >= 7
