"""Verifiers accept right answers in every form, and nothing else, whatever a model writes."""

from __future__ import annotations

from fractions import Fraction

import pytest

from kleiber.config.extensions import import_offer, offers
from kleiber_topics.rewards.verifiers import (
    arithmetic,
    countdown,
    evaluate,
    format_score,
    length,
    number,
    sorting,
)

ODD = ["", " ", "\x00", "½", "-", "1e999", "9" * 5000, "(" * 150, "2**9**9**9", "__import__('os')", "\ud800", "٣"]


@pytest.mark.parametrize(
    ("reward", "row", "right", "wrong"),
    [
        (arithmetic, {"answer": "632"}, ["632", " 632 ", "7+5=12 632"], ["0632", "632 1", "6 32", "-632"]),
        (sorting, {"answer": "7 21 53"}, ["7 21 53", "7  21 53 "], ["7 53 21", "7 21", "7 21 53 53", "72153"]),
        (number, {"answer": "#### 1,000"}, ["1000", "so 1,000.00", "3 #### 1000"], ["100", "1000 and 2", "none"]),
        (number, {"answer": "8"}, ["8", "8.0", "It is 8."], ["9", "-8"]),
        (
            countdown, {"answer": "3*7+2", "numbers": [3, 7, 2], "target": 23}, ["3*7+2", "2 + 7*3", "(3*7)+2"],
            ["23", "3*7+2+0", "3*7", "7*3-2", "3*7+2;1", "3*7+02.0"],
        ),
        (format_score, {"answer": "7 21 53"}, ["1 2 3", "53 21 7"], ["1 2", "a 2 3", "-1 2 3"]),
    ],
)  # fmt: skip
def test_right_answers_score_1_and_others_0(reward, row, right, wrong):
    answers = [*right, *wrong, *ODD]
    scores = reward(["?"] * len(answers), answers, [row] * len(answers))
    assert [*scores] == [1.0] * len(right) + [0.0] * (len(wrong) + len(ODD))


def test_expressions_have_exact_values_and_no_other_meaning():
    assert evaluate("1/3+2/3") == 1 and evaluate("(8-2)/4") == Fraction(3, 2)
    assert [evaluate(text) for text in ("1/0", "2**3", "x", "1,2", "7//2", "")] == [None] * 6


def test_every_offer_can_be_called_by_its_name():
    for name in ("arithmetic", "countdown", "format", "length", "number", "sorting"):
        reward = import_offer("REWARDS", name, "objective.reward")
        row = {"answer": "1", "numbers": [1], "target": 1}
        assert len(list(reward(["?"], ["1"], [row]))) == 1 and name in offers("REWARDS")  # type: ignore[call-overload]
    assert length(["?"], ["a" * 50], [{}]) == [0.5]
