"""The contract of evaluations: intervals of means, and the data that an evaluation accepts."""

from __future__ import annotations

import numpy as np
import pytest
from evals.subjects import table

from kleiber.evals import evaluation
from kleiber.evals.evaluation import (
    Evaluation,
    Score,
    flatten_numbers,
    mean_score,
    proportion_score,
    ratio_score,
    share_difference_score,
)


def test_the_interval_of_a_coin_is_that_of_the_binomial() -> None:
    score = mean_score([0.0, 1.0] * 200)
    assert score.lo is not None and score.hi is not None and score.n == 400
    assert (score.hi - score.lo) / 2 == pytest.approx(1.645 * 0.5 / np.sqrt(400), rel=0.1)


def test_equal_values_and_a_single_one_have_an_interval_of_no_width() -> None:
    assert mean_score([2.0, 2.0]) == Score(2.0, 2.0, 2.0, 2) and mean_score([True]) == Score(1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize(("items", "share"), [(4, 0.9), (20, 0.98), (128, 0.995), (20, 0.5)])
def test_the_interval_of_a_share_covers_the_truth_near_0_and_1_too(items: int, share: float) -> None:
    hits = np.random.default_rng(0).random((200, items)) < share
    for right in (hits, ~hits):
        for score_of, sign in ((proportion_score, 1), (share_difference_score, 1), (share_difference_score, -1)):
            scores = [score_of(sign * row.astype(float)) for row in right]
            truth = sign * abs(share - (right is not hits))
            assert np.mean([score.lo <= truth <= score.hi for score in scores]) > 0.87


def test_shares_of_items_that_tie_have_a_bootstrap_interval() -> None:
    ties = [0.0, 0.5, 1.0, 1.0]
    assert proportion_score(ties) == mean_score(ties)
    assert proportion_score([1, 1, 1, 1]).lo == pytest.approx(0.05 ** (1 / 4))


def test_the_interval_does_not_depend_on_how_many_resamples_are_held_at_once(monkeypatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = mean_score(values)
    monkeypatch.setattr(evaluation, "CHUNK", 50 * evaluation.RESAMPLES // 7)
    assert mean_score(values) == whole


def test_a_table_needs_all_columns_of_one_of_the_sets() -> None:
    class Pairs(Evaluation):
        columns = (("good", "bad"), ("ctx", "label"))

    assert Pairs().accepts(table("a", [{"good": 1, "bad": 2, "id": 3}]))
    assert not Pairs().accepts(table("a", [{"good": 1, "label": 2}]))
    assert Evaluation().accepts(table("a", [{"text": ""}])) and not Evaluation().accepts(table("a", [{"ctx": ""}]))


def test_numbers_of_nested_results_are_listed_by_path() -> None:
    results = {"a": {"loss": 1, "flag": True, "curve": [1, 2]}, "b": 0.5, "name": "x", "layers": {0: 2}}
    assert flatten_numbers(results) == {"a/loss": 1.0, "b": 0.5, "layers/0": 2.0}


def test_the_ratio_of_two_means_has_an_interval_over_items():
    same = ratio_score(np.ones(5), 2 * np.ones(5))
    assert (same.lo, same.value, same.hi, same.n) == (0.5, 0.5, 0.5, 5)
    varied = ratio_score(np.array([1.0, 3.0, 2.0]), np.array([2.0, 2.0, 8.0]))
    assert varied.value == 0.5 and varied.lo < 0.5 < varied.hi and ratio_score(np.ones(1), np.ones(1)).lo is None
