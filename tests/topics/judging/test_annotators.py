"""Simulated annotators prefer what their utility prefers, but for the noise and biases that are planted."""

from __future__ import annotations

import numpy as np
import pytest

from kleiber_topics.judging.annotators import Annotator, Variety, WordShare
from kleiber_topics.judging.judgments import Comparison, agreement, krippendorff_alpha

HAPPY = WordShare(["happy", "friend"])
GOOD, BAD = "The happy dog met a friend.", "The dog was sad and alone."
ITEMS = 600


def share_of_left(**keys) -> float:
    annotator = Annotator(HAPPY, **keys)
    return float(np.mean([annotator.choose(i, GOOD, BAD) == "left" for i in range(ITEMS)]))


def test_utilities_are_rules_on_words():
    assert HAPPY.utility("A HAPPY day, my friend's friend") == pytest.approx(10 * 2 / 6)
    assert HAPPY.utility("...") == 0 and Variety().utility("one") == 0
    assert Variety(2).utility("a b a b") == pytest.approx(10 * 2 / 3) and Variety(1).utility("a b a b") == 5


def test_without_noise_the_better_answer_always_wins():
    assert share_of_left() == 1
    assert all(Annotator(HAPPY).choose(i, BAD, GOOD) == "right" for i in range(20))
    assert Annotator(HAPPY, noise=1.0).choose(0, BAD, BAD) == "tie"


def test_noise_is_the_share_of_opposite_choices():
    assert share_of_left(noise=0.2) == pytest.approx(0.8, abs=0.05) and share_of_left(noise=1.0) == 0


def test_biases_outweigh_the_utility():
    difference = HAPPY.utility(GOOD) - HAPPY.utility(BAD)
    assert share_of_left(first=-difference - 0.1) == 0 and share_of_left(first=-difference + 0.1) == 1
    longer = Annotator(HAPPY, longer=10.0)
    assert longer.choose(0, GOOD, BAD + " " * 50) == "right" and longer.choose(0, GOOD, BAD) == "left"


def test_disagreement_lowers_the_agreement_of_annotators():
    """Two answers are judged by three annotators each time; without disagreement they say the same."""
    pairs = [Comparison(i, "p", *((GOOD, BAD) if i % 2 else (BAD, GOOD)), "a", "b") for i in range(200)]
    alphas = []
    for sigma in (0.0, 2.0, 50.0):
        judges = [Annotator(HAPPY, disagreement=sigma, number=n) for n in range(3)]
        estimate = agreement([judge.judge(pair) for judge in judges for pair in pairs])
        assert estimate is not None
        alphas.append(estimate.value)
    assert alphas[0] == 1 and 0.1 < alphas[1] < 0.9 and abs(alphas[2]) < 0.12


def test_a_choice_depends_on_seed_number_and_item_alone():
    def choices(**keys) -> list[str]:
        return [Annotator(HAPPY, noise=0.5, **keys).choose(i, GOOD, BAD) for i in range(50)]

    assert choices() == choices() != choices(seed=1) and choices() != choices(number=1)
    random = krippendorff_alpha([list(pair) for pair in zip(choices(), choices(number=1), strict=True)])
    assert abs(random) < 0.3
