"""The tables of the transfer study: labels that another start would need, pairs of texts, means over tasks."""

import math

import pandas as pd
import pytest

from kleiber.studies.laws.uncertainty import student_quantile
from kleiber_topics.transfer.tables import equivalent_interval, equivalent_labels, factor_row, text_pairs, with_means


def test_labels_needed_are_read_off_the_curve_from_nothing():
    curve = {10.0: 0.5, 100.0: 0.7, 1000.0: 0.6, 10000.0: 0.9}
    assert equivalent_labels(curve, 0.6) == pytest.approx(10**1.5) and equivalent_labels(curve, 0.7) == pytest.approx(
        100
    )
    assert equivalent_labels(curve, 0.8) == pytest.approx(10**3.5), "its running maximum where it falls"
    assert (
        equivalent_labels(curve, 0.95) == math.inf
        and equivalent_labels(curve, 0.4) == 0.0
        and equivalent_labels(curve, 0.5) == 10.0
    )


def test_the_interval_of_labels_is_where_the_curves_do_not_differ_from_the_scores():
    curve = {0.01: 0.5, 0.1: 0.6, 1.0: 0.7}
    half = student_quantile(2, 0.9) * 0.01 / math.sqrt(3)  # of gaps -.01, 0 and .01
    low, high = equivalent_interval([curve] * 3, [0.59, 0.6, 0.61], 0.9)
    assert low == pytest.approx(0.1 * 10 ** (-half / 0.1), rel=0.02)
    assert high == pytest.approx(0.1 * 10 ** (half / 0.1), rel=0.02)
    assert equivalent_interval([curve] * 3, [0.79, 0.8, 0.81], 0.9) == (1.0, math.inf), "above the curves"
    assert equivalent_interval([curve] * 3, [0.39, 0.4, 0.41], 0.9) == (0.0, 0.01), "and below them"
    assert equivalent_interval([curve] * 3, [0.5, 0.6, 0.7], 0.9) == (0.0, math.inf), "noise leaves no bound"
    assert equivalent_interval([curve], [0.6], 0.9) is None


def test_a_score_below_the_curve_bounds_the_transferred_tokens_from_above():
    row = {"task": "a", "kind": "mlm", "start": "docs", "share": 0.1, "labelled tokens": 1000.0, "seeds": 3,
           "least": 0.1, "most": 10.0, "lo": 0.0, "hi": 2.0}  # fmt: skip
    below = factor_row({**row, "factor": 0.0, "transferred": -1000.0})
    assert (below["transferred tokens"], below["times the labels"]) == ("less than -900", "less than 0.1")
    assert factor_row({**row, "factor": 3.0, "transferred": 2000.0})["transferred tokens"] == "2,000"


def test_domains_are_compared_at_the_largest_size_and_sizes_within_a_domain():
    starts = ["code/1M", "docs/250k", "docs/1M", "code/250k"]
    assert text_pairs(starts) == [("code/1M", "docs/1M"), ("code/1M", "code/250k"), ("docs/1M", "docs/250k")]


def test_the_mean_over_tasks_needs_every_task():
    cell = {"kind": "mlm", "start": "docs/1M", "share": 1.0}
    rows = [{**cell, "task": task, "seed": seed, "score": score}
            for task, seed, score in (("a", 0, 0.5), ("b", 0, 0.7), ("a", 1, 0.9))]  # fmt: skip
    means = with_means(pd.DataFrame(rows))
    assert means.loc[means["task"] == "all tasks", ["seed", "score"]].to_numpy().tolist() == [[0, pytest.approx(0.6)]]
    assert len(with_means(pd.DataFrame(rows[:1]))) == 1, "a single task is its own mean"
