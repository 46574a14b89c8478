"""Metrics against matrices worked out by hand, and against numbers that Avalanche 0.6 gave for the same matrix."""

import math

import numpy as np
import pytest

from kleiber.studies import sequence_metrics as metrics

SCORES = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.15], [0.5, 0.7, 0.85]]
NAMES = ["a", "b", "c"]


def score_record(scores=SCORES, higher=True, baseline=(0.1, 0.1, 0.1)):
    return {
        "tasks": NAMES, "stages": ["one", "two", "three"], "matrix": scores, "baseline": list(baseline),
        "metric": {}, "higher_is_better": dict.fromkeys(NAMES, higher),
    }  # fmt: skip


def test_a_matrix_worked_out_by_hand():
    computed = metrics.summary(metrics.matrix(score_record()))
    assert computed["ACC"] == pytest.approx((0.5 + 0.7 + 0.85) / 3)
    assert computed["LA"] == pytest.approx((0.9 + 0.8 + 0.85) / 3)
    assert computed["BWT"] == pytest.approx(((0.5 - 0.9) + (0.7 - 0.8)) / 2)
    assert computed["FWT"] == pytest.approx(((0.2 - 0.1) + (0.15 - 0.1)) / 2)
    assert computed["max_forgetting"] == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2)


def test_the_numbers_that_avalanche_gave():
    """One a task, the last one counted: BWT -.4, -.1, 0; Forgetting .4, .1, 0; FWT of tasks 1 and 2 .1, .05."""
    r = metrics.matrix(score_record())
    assert metrics.forgetting_by_task(r).tolist() == pytest.approx([0.4, 0.1, 0.0])
    assert (-metrics.forgetting_by_task(r)).mean() == pytest.approx(-0.5 / 3), "Avalanche's mean divides by T"
    assert metrics.summary(r)["BWT"] == pytest.approx(-0.25), "GEM's divides by T - 1"
    assert metrics.summary(r)["FWT"] == pytest.approx(np.mean([0.1, 0.05]))


def test_losses_are_turned_round():
    scores = (-np.array(SCORES)).tolist()
    assert metrics.summary(metrics.matrix(score_record(scores, False, (-0.1,) * 3))) == pytest.approx(
        metrics.summary(metrics.matrix(score_record()))
    )


def test_the_best_score_need_not_be_the_first():
    scores = [[0.9, 0, 0], [0.95, 0.8, 0], [0.5, 0.7, 0.85]]
    r = metrics.matrix(score_record(scores))
    assert metrics.forgetting_by_task(r)[0] == pytest.approx(0.4)
    assert metrics.max_forgetting_by_task(r).tolist() == pytest.approx([0.45, 0.1, 0.0])


def test_a_task_that_was_best_before_it_was_learned_tells_the_two_maxima_apart():
    """Task b scores .9 after stage one, .8 after its own, .6 at the end: .3 forgotten by the paper, .2 since then."""
    r = metrics.matrix(score_record([[0.9, 0.9, 0], [0.95, 0.8, 0], [0.5, 0.6, 0.85]]))
    assert metrics.chaudhry_forgetting_by_task(r).tolist() == pytest.approx([0.45, 0.3, 0.0])
    assert metrics.max_forgetting_by_task(r).tolist() == pytest.approx([0.45, 0.2, 0.0])
    metrics_by_name = metrics.summary(r)
    assert metrics_by_name["chaudhry_forgetting"] == pytest.approx(0.375) and metrics_by_name[
        "max_forgetting"
    ] == pytest.approx(0.325)


def test_the_paper_has_no_maximum_where_an_earlier_score_was_not_taken():
    r = metrics.matrix(score_record([[0.9, None, None], [0.7, 0.8, None], [0.5, 0.7, 0.85]]))
    assert math.isnan(metrics.summary(r)["chaudhry_forgetting"])
    assert metrics.summary(r)["max_forgetting"] == pytest.approx(0.25)


def test_tasks_that_no_stage_trained_are_scored_and_not_averaged():
    r = metrics.matrix(
        {**score_record([[0.9, 0.2, 0.1], [0.7, 0.8, 0.15]]), "stages": ["one", "two"]}, trained_by=[0, 1, None]
    )
    assert metrics.summary(r)["ACC"] == pytest.approx(0.75) and metrics.summary(r)["BWT"] == pytest.approx(-0.2)
    assert math.isnan(metrics.max_forgetting_by_task(r)[2]) and math.isnan(metrics.chaudhry_forgetting_by_task(r)[2])


def test_unknown_scores_stay_unknown():
    r = metrics.matrix(score_record([[0.9, None, None], [0.7, 0.8, None], [0.5, 0.7, 0.85]], baseline=(None,) * 3))
    assert math.isnan(metrics.summary(r)["FWT"]) and metrics.summary(r)["BWT"] == pytest.approx(-0.25)


def test_intransigence_is_what_a_joint_model_knows_better():
    assert metrics.intransigence(metrics.matrix(score_record()), [0.95, 0.8, 0.8]).tolist() == pytest.approx(
        [0.05, 0, -0.05]
    )


def test_a_matrix_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="3 stages and 3 tasks"):
        metrics.matrix(score_record([[0.9, 0.2], [0.7, 0.8], [0.5, 0.7]]))


def test_savings_compare_relearning_with_learning():
    scratch, again = {0: 5.0, 100: 3.0, 200: 2.0}, {0: 4.0, 20: 2.5}
    assert metrics.steps_to(scratch, 2.5) == pytest.approx(150)
    assert metrics.savings(again, 2.5, scratch) == pytest.approx(1 - 20 / 150)
    assert metrics.savings({0: 2.0}, 2.5, scratch) == 1.0, "nothing was erased"
    assert math.isnan(metrics.savings({0: 4.0}, 2.5, scratch))
    assert math.isnan(metrics.savings({0: 2.0}, 5.5, scratch)), "nothing was to be learned"
