"""Answers do not depend on the other prompts, and their log-probabilities are those of a planted model."""

from __future__ import annotations

import math

import pytest
from evals.planted import planted

from kleiber.data.chat import PLAIN, Turn
from kleiber.data.tokenizers import Bytes
from kleiber.runs.answers import Answers

MODEL = Answers(planted(a=0.4, b=0.4), Bytes(), "planted")


def prompt(text: str, role: str = PLAIN) -> list[Turn]:
    return [Turn(role, text)]


def test_an_answer_depends_on_its_own_prompt_number_and_the_seed():
    prompts = [prompt("aab"), prompt("b"), prompt("ab ab ab")]
    answers = MODEL.write(prompts, 2, 12, seed=3)
    assert [len(pair) for pair in answers] == [2, 2, 2] and all(len(text) == 12 for pair in answers for text in pair)
    assert set("".join(text for pair in answers for text in pair)) == set("ab ")
    assert MODEL.write(prompts[1:2], 2, 12, seed=3, first=1) == answers[1:2]
    assert answers[0][0] != answers[0][1] and MODEL.write(prompts, 2, 12, seed=4) != answers


def test_temperature_and_top_p_are_those_of_sampling():
    greedy = Answers(planted(a=0.9, b=0.05), Bytes(), "greedy")
    assert greedy.write([prompt("b")], tokens=5, temperature=0.0) == [["aaaaa"]]
    assert greedy.write([prompt("b")], tokens=5, top_p=0.5) == [["aaaaa"]]


def test_log_probabilities_are_of_the_last_answer():
    plain = [Turn(PLAIN, "a"), Turn("assistant", "ab")]
    chat = [Turn("user", "a"), Turn("assistant", "ab")]
    values = MODEL.log_probs([plain])
    assert values.tolist() == [[pytest.approx(2 * math.log(0.4), abs=1e-3), 2.0]]
    assert MODEL.log_probs([chat])[0, 1] == 3  # with the end of text
