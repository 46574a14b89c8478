"""Multiple choice: questions in the words of lm-eval, and scores of planted log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evals.planted import planted, subject
from evals.subjects import table

from kleiber.evals import Choice
from kleiber.evals.choice import clean_wikihow, margins, parse_question, shares_of_best

ROWS = [
    {"ctx": "a", "endings": ["aaaa", "b"], "label": "0"},
    {"ctx": "a", "endings": ["aaaa", "b"], "label": "1"},
    {"ctx": "a", "endings": ["a", "a"], "label": 1},
]


def test_scores_are_those_of_planted_log_probabilities():
    """p(a) = 1/2, p(b) = p(space) = 1/4, whatever comes before."""
    results = Choice().evaluate(subject(planted(a=0.5, b=0.25), [table("t", ROWS)]))
    scores = results.scores["t"]
    half, nats = np.log(0.5), {"aaaa": 4 * np.log(0.5), "b": np.log(0.25)}
    assert scores["accuracy"].value == pytest.approx((0 + 1 + 0.5) / 3)
    difference = nats["b"] - nats["aaaa"]
    assert scores["margin"].value == pytest.approx((-difference + difference + 0) / 3, abs=5e-4)
    per_byte = {ending: (value + np.log(0.25)) / len(ending) for ending, value in nats.items()}
    assert per_byte["aaaa"] > per_byte["b"] and half < 0
    assert scores["accuracy_per_byte"].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert scores["chance"].value == 0.5 and scores["chance"].lo is None
    assert scores["accuracy"].n == 3 and scores["accuracy"].lo <= scores["accuracy"].value <= scores["accuracy"].hi


def test_the_limit_is_a_number_of_rows():
    scores = Choice().evaluate(subject(planted(a=0.5, b=0.25), [table("t", ROWS)], limit=1)).scores["t"]
    assert scores["accuracy"].n == 1 and scores["accuracy"].value == 0
    assert scores["accuracy"].hi == pytest.approx(0.95)  # a single wrong answer says little
    assert scores["margin"].lo == scores["margin"].hi


def test_a_group_has_the_scores_of_all_items():
    parts = [table("g/x", ROWS[:1], "g"), table("g/y", ROWS[1:], "g"), table("h", ROWS)]
    scores = Choice().evaluate(subject(planted(a=0.5, b=0.25), parts)).scores
    assert set(scores) == {"g/x", "g/y", "h", "g"} and scores["g"] == scores["h"]


def test_questions_have_the_words_of_lm_eval():
    hellaswag = {
        "activity_label": "Dancing",
        "ctx": "unused",
        "ctx_a": "A man [header] sings.",
        "ctx_b": "he  then",
        "endings": [" dances. [title] End ", "b"],
        "label": "1",
    }
    question = parse_question(hellaswag, "t")
    assert question.context == "Dancing: A man sings. He then"
    assert question.endings == ["dances.. End", "b"] and question.label == 1
    arc = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert parse_question(arc, "t").context == "Question: Why?\nAnswer:" and parse_question(arc, "t").label == 1
    piqa = {"goal": "Go", "sol1": "x", "sol2": "y", "label": 0}
    assert parse_question(piqa, "t").context == "Question: Go\nAnswer:"
    assert parse_question(piqa, "t").endings == ["x", "y"]
    assert parse_question({"context": "c", "endings": [" x", "y"], "label": 0}, "t").endings == ["x", "y"]
    assert clean_wikihow("a [step] b") == "a b"


@pytest.mark.parametrize("label", ["", "B", None, 2, -1])
def test_a_label_that_is_none_of_an_ending_is_named(label):
    with pytest.raises(ValueError, match=f"t: label='{label}' must be"):
        parse_question({"ctx": "a", "endings": ["b", "c"], "label": label}, "t")


def test_rows_that_are_no_question_are_refused():
    with pytest.raises(ValueError, match="t has the columns text"):
        parse_question({"text": "a"}, "t")
    with pytest.raises(ValueError, match="at least two endings"):
        parse_question({"ctx": "a", "endings": ["b"], "label": 0}, "t")


def test_columns_decide_which_tables_are_accepted():
    assert Choice().accepts(table("t", ROWS)) and not Choice().accepts(table("t", [{"text": "a"}]))
    assert Choice.causal


def test_ties_divide_the_accuracy_and_margins_are_to_the_best_other_ending():
    scores = [np.array([1.0, 1.0, 0.0]), np.array([3.0, 5.0, 4.0]), np.array([-2.0, -2.0])]
    assert shares_of_best(scores, [0, 2, 1]).tolist() == [0.5, 0, 0.5]
    assert margins(scores, [0, 1, 1]).tolist() == [0, 1, 0]


def test_a_tie_of_an_untrained_model_is_chance():
    model = planted(a=0.5, b=0.25)
    torch.nn.init.zeros_(model.head.weight)
    rows = [{"ctx": "a", "endings": ["ab", "ba"], "label": 0}] * 4
    assert Choice().evaluate(subject(model, [table("t", rows)])).scores["t"]["accuracy"].value == 0.5
