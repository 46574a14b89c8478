"""Calibration errors, their bias, and risk-coverage curves: planted cases, and the values of torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kleiber.evals.evaluation import proportion_score
from kleiber_topics.calibration.measures import (
    Outcomes,
    bin_numbers,
    coverage_rows,
    curve_values,
    error_scores,
    mean_of,
    reliability_rows,
    selective_scores,
    share_of,
)


def outcomes(confidence: np.ndarray, correct: np.ndarray, cluster: np.ndarray | None = None) -> Outcomes:
    zeros = np.zeros(len(confidence))
    numbers = np.arange(len(confidence)) if cluster is None else cluster
    return Outcomes(np.asarray(confidence, float), np.asarray(correct, float), zeros, zeros, numbers)


def draw(items: int, shift: float = 0.0, seed: int = 0) -> Outcomes:
    """Predictions that are right with the probability of their confidence less `shift`."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.4, 0.95, items)
    return outcomes(confidence, random.random(items) < confidence - shift)


def test_the_error_is_the_mean_gap_of_the_bins():
    case = outcomes(np.array([0.1, 0.15, 0.9, 0.95]), np.array([0, 1, 1, 1]))
    scores = error_scores(case, bins=2)
    gap = (abs(1 - 0.25) + abs(2 - 1.85)) / 4
    assert scores["ece"].value == pytest.approx(gap) and scores["ece_equal_width"].value == pytest.approx(gap)
    assert scores["ece"].n == 4


@pytest.mark.slow  # the import
def test_the_error_of_equal_widths_is_that_of_torchmetrics():
    from torchmetrics.functional.classification import binary_calibration_error

    case = draw(500, 0.1)
    theirs = binary_calibration_error(torch.tensor(case.confidence), torch.tensor(case.correct).long(), n_bins=15)
    assert error_scores(case, 15)["ece_equal_width"].value == pytest.approx(float(theirs), abs=1e-6)


def test_bins_have_equally_many_items_or_equal_width():
    confidence = np.linspace(0.0, 1.0, 101)[1:] ** 3
    assert np.bincount(bin_numbers(confidence, 4, equal_mass=True)).tolist() == [25] * 4
    width = bin_numbers(confidence, 4, equal_mass=False)
    assert all(i / 4 < c <= (i + 1) / 4 for c, i in zip(confidence, width, strict=True))
    assert set(bin_numbers(np.full(10, 0.3), 4, equal_mass=True).tolist()) == {0}  # equal confidences share a bin


def test_calibrated_predictions_have_the_error_of_chance_and_no_excess():
    scores = error_scores(draw(2000, seed=5), 15)
    assert scores["ece_calibrated"].lo <= scores["ece"].value <= scores["ece_calibrated"].hi
    assert scores["ece_excess"].lo < 0 < scores["ece_excess"].hi
    assert scores["ece"].value > 0.005  # which a naive reading takes for miscalibration


def test_the_bias_grows_with_bins_and_falls_with_items():
    bias = [
        error_scores(draw(items), bins)["ece_calibrated"].value for items, bins in ((300, 5), (300, 30), (2400, 30))
    ]
    assert bias[0] < bias[1] and bias[2] < bias[1] / 2


def test_planted_overconfidence_is_the_error():
    scores = error_scores(draw(1500, shift=0.2), 10)
    assert scores["ece"].value == pytest.approx(0.2, abs=0.04) and scores["ece_excess"].lo > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_intervals_cover_the_planted_error(shift):
    """At the level of 90 %, of 40 samples."""
    scores = [error_scores(draw(1500, shift, seed), 10) for seed in range(40)]
    excess = [score["ece_excess"].lo <= shift <= score["ece_excess"].hi for score in scores]
    error = [score["ece"].lo <= shift <= score["ece"].hi for score in scores]
    assert 0.8 <= np.mean(excess if shift == 0 else error) <= 1


def test_the_curve_is_that_of_the_definition():
    """Geifman and El-Yaniv 2017, equation 2, at every coverage."""
    confidence, correct = np.array([0.9, 0.5, 0.7, 0.6, 0.8]), np.array([1, 0, 0, 1, 1])
    order = np.argsort(-confidence)
    risks = [np.mean(1 - correct[order][: i + 1]) for i in range(5)]
    scores = selective_scores(outcomes(confidence, correct), [0.4, 0.6, 1.0])
    assert scores["aurc"].value == pytest.approx(np.mean(risks))
    accuracies = [scores[f"accuracy_at_{c}"].value for c in ("0.4", "0.6", "1")]
    assert accuracies == pytest.approx([1, 2 / 3, 3 / 5])
    best = np.mean([0, 0, 0, 1 / 4, 2 / 5])
    assert scores["excess_aurc"].value == pytest.approx(np.mean(risks) - best)
    perfect = selective_scores(outcomes(confidence, confidence > 0.55), [0.5])
    assert perfect["excess_aurc"].value == pytest.approx(0) and perfect["accuracy_at_0.5"].value == 1


def test_equal_confidences_are_in_random_order():
    """So a curve of ties is flat, whatever the order of the items."""
    case = outcomes(np.full(8, 0.5), np.array([1, 1, 1, 1, 0, 0, 0, 0]))
    scores = selective_scores(case, [0.25])
    assert scores["aurc"].value == pytest.approx(0.5) and scores["accuracy_at_0.25"].value == pytest.approx(0.5)
    assert {row["error"] for row in coverage_rows(case)} == {0.5}


def test_resamples_of_equal_confidences_vary_as_the_accuracy_does():
    correct = np.arange(200) % 5 < 3
    scores = selective_scores(outcomes(np.ones(200), correct), [0.5, 1.0])
    accuracy = mean_of(correct.astype(float), np.arange(200))
    for score in (scores["accuracy_at_0.5"], scores["accuracy_at_1"]):
        assert (score.lo, score.hi) == pytest.approx((accuracy.lo, accuracy.hi), abs=0.015)
    assert scores["aurc"].hi - scores["aurc"].lo == pytest.approx(accuracy.hi - accuracy.lo, abs=0.02)


def test_a_perfect_ranking_has_no_excess_in_any_resample():
    confidence = np.random.default_rng(0).random(60)
    scores = selective_scores(outcomes(confidence, confidence > 0.4, np.arange(60) // 2), [0.5])
    assert (scores["excess_aurc"].lo, scores["excess_aurc"].hi) == pytest.approx((0, 0), abs=1e-12)
    assert scores["aurc"].lo < scores["aurc"].hi


def test_a_resample_has_the_curve_of_its_items():
    """An item that is drawn twice counts as two of equal confidence."""
    random, confidence = np.random.default_rng(0), np.array([0.9, 0.8, 0.8, 0.8, 0.6, 0.5, 0.5, 0.2])
    errors, ties = np.array([0.0, 1, 0, 0, 1, 0.5, 1, 0]), np.array([0, 1, 4, 5, 7])
    weights = random.integers(0, 3, size=(5, 8))
    for row in weights:
        drawn = np.repeat(np.arange(8), row)
        means = [errors[drawn][confidence[drawn] == confidence[i]].mean() for i in drawn]
        risks = np.cumsum(means) / np.arange(1, len(drawn) + 1)
        values = curve_values(row[None].astype(float), errors, ties, [0.3, 1.0])[0]
        assert values[:3] == pytest.approx([risks[int(np.ceil(0.3 * len(drawn))) - 1], risks[-1], risks.mean()])


def test_clusters_of_equal_items_widen_the_intervals():
    random = np.random.default_rng(1)
    correct = np.repeat(random.random(100) < 0.6, 9).astype(float)
    confidence = np.repeat(random.uniform(0.3, 0.9, 100), 9)
    alone = outcomes(confidence, correct)
    together = outcomes(confidence, correct, np.repeat(np.arange(100), 9))
    for score in (
        lambda case: mean_of(case.correct, case.cluster),
        lambda case: error_scores(case, 5)["ece"],
        lambda case: selective_scores(case, [0.5])["aurc"],
    ):
        narrow, wide = score(alone), score(together)
        assert narrow.value == pytest.approx(wide.value)
        assert 2 < (wide.hi - wide.lo) / (narrow.hi - narrow.lo) < 4.5
    single = outcomes(confidence, correct, np.zeros(900, np.int64))
    assert error_scores(single, 5)["ece"].lo is None and selective_scores(single, [0.5])["aurc"].lo is None


def test_equal_items_leave_a_share_an_interval_over_clusters():
    correct, cluster = np.ones(40), np.repeat(np.arange(4), 10)
    score = share_of(correct, cluster)
    assert (score.value, score.hi, score.n) == (1, 1, 40) and score.lo == pytest.approx(0.05 ** (1 / 4))
    varied = correct - (np.arange(40) % 3 == 0)
    assert share_of(varied, cluster) == mean_of(varied, cluster)
    assert share_of(varied, np.arange(40)) == proportion_score(varied)


def test_the_points_of_the_diagram_have_wilsons_interval():
    rows = reliability_rows(outcomes(np.full(10, 0.7), np.array([1.0] * 10)), 5)
    (row,) = rows
    assert (row["items"], row["confidence"], row["accuracy"]) == (10, pytest.approx(0.7), 1.0)
    assert row["lo"] == pytest.approx(0.787, abs=1e-3) and row["hi"] == pytest.approx(1.0)


def test_chosen_items_have_their_clusters_numbered_anew():
    case = draw(6)
    chosen = Outcomes(case.confidence, case.correct, case.brier, case.nats, np.array([0, 0, 1, 1, 2, 2])).select(
        np.array([False, False, True, True, True, False])
    )
    assert chosen.cluster.tolist() == [0, 0, 1] and chosen.confidence.tolist() == case.confidence[2:5].tolist()
