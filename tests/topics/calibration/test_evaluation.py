"""The evaluation on planted questions and texts: what each key changes, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evals.planted import planted, subject
from evals.subjects import table
from evals.test_ood import letters

from kleiber.evals.exact_match import Answers
from kleiber_topics.calibration import Calibration, evaluation

QUESTIONS = [{"ctx": "a", "endings": ["a", "b"], "label": str((i % 3 == 0 and 1) or 0)} for i in range(30)]


def questions(**keys) -> dict:
    return Calibration(**keys).evaluate(subject(planted(a=0.5, b=0.25), [table("q", QUESTIONS)])).scores["q"]


def test_the_confidence_of_an_ending_is_its_probability_among_the_endings():
    scores = questions()
    assert scores["accuracy"].value == pytest.approx(2 / 3) and scores["accuracy"].n == 30
    assert scores["confidence"].value == pytest.approx(2 / 3, abs=1e-3)
    assert scores["brier"].value == pytest.approx((2 * 2 / 9 + 2 * 4 / 9) / 3 + 2 / 9, abs=0.3)
    assert scores["nats"].value == pytest.approx((2 * math.log(1.5) + math.log(3)) / 3, abs=1e-3)
    assert abs(scores["overconfidence"].value) < 1e-3 and scores["ece"].value < 1e-3


@pytest.mark.slow
def test_each_key_has_an_effect():
    assert {"accuracy_at_0.5", "accuracy_at_0.8"} < set(questions())
    assert {"accuracy_at_0.25"} < set(questions(coverages=[0.25])) and "accuracy_at_0.5" not in questions(
        coverages=[1.0]
    )
    assert "temperature" in questions() and "temperature" not in questions(scaled=False)
    text = [letters(0.3, "t")]
    errors = [
        Calibration(bins=bins).evaluate(subject(planted(a=0.5, b=0.25), text)).scores["t"]["ece_equal_width"].value
        for bins in (2, 50)
    ]
    assert errors[0] == pytest.approx(errors[1])  # all confidences are equal
    with pytest.raises(ValueError, match=r"coverages=1.5 must lie in \(0, 1\]"):
        Calibration(coverages=[1.5])


def test_the_number_of_bins_is_that_of_the_diagram(monkeypatch):
    random = np.random.default_rng(0)
    rows = [{"ctx": "a", "endings": ["a" * int(n), "b"], "label": "0"} for n in random.integers(1, 9, 60)]
    for bins in (2, 5):
        results = Calibration(bins=bins).evaluate(subject(planted(a=0.5, b=0.25), [table("q", rows)]))
        assert len(results.details["q"]["reliability"]) == bins


def test_next_tokens_of_text_are_scored_up_to_the_tokens_of_the_command():
    model = planted(a=0.5, b=0.25)
    scores = Calibration().evaluate(subject(model, [letters(0.1, "t")], tokens=320)).scores["t"]
    assert Calibration(tokens=64).evaluate(subject(model, [letters(0.1, "t")])).scores["t"]["accuracy"].n == 64
    assert scores["accuracy"].n == 320 and scores["accuracy"].value == pytest.approx(0.9, abs=0.06)
    assert scores["confidence"].value == pytest.approx(0.5, abs=1e-3)
    assert scores["ece_excess"].lo > 0.2  # underconfident: it gives .5 to what is right in 9 of 10 cases
    assert scores["temperature"].value < 1
    assert scores["scaled/nats_change"].hi < 0 and scores["scaled/ece_change"].hi < 0


def test_what_has_no_outcomes_is_refused():
    masked = planted(False, a=0.5)
    with pytest.raises(ValueError, match="questions of q needs a causal model"):
        Calibration().evaluate(subject(masked, [table("q", QUESTIONS)]))
    data = replace(letters(0.1, "t"), of_run=True)
    from kleiber.types.contracts import Objective

    with pytest.raises(ValueError, match="objective=Objective predicts neither on t"):
        Calibration().evaluate(replace(subject(planted(a=0.5), [data]), objective=Objective()))


def test_generated_answers_have_their_mean_token_probability_as_confidence(monkeypatch):
    prompts = [[*b"aa"], [*b"ab"]]
    monkeypatch.setattr(evaluation, "numeric_questions", lambda *_: (prompts, ["1", "2"]))
    monkeypatch.setattr(
        evaluation, "match_answers", lambda *_, **__: Answers([True, False][: len(_[2])], ["ab", "b"][: len(_[2])])
    )
    results = Calibration(answers=2).evaluate(subject(planted(a=0.5, b=0.25), [letters(0.3, "t")]))
    scores = results.scores["t"]
    assert scores["answers/accuracy"].value == 0.5 and scores["answers/accuracy"].n == 2
    assert scores["answers/confidence"].value == pytest.approx((math.sqrt(0.125) + 0.25) / 2, abs=1e-3)
    assert set(results.details) == {"t", "t, answers"}
    few = Calibration(answers=1).evaluate(subject(planted(a=0.5, b=0.25), [letters(0.3, "t")]))
    assert few.scores["t"]["answers/accuracy"].n == 1


@pytest.mark.slow
def test_the_figures_have_a_panel_for_each_data_set():
    results = Calibration().evaluate(subject(planted(a=0.5, b=0.25), [table("q", QUESTIONS), letters(0.3, "t")]))
    charts = Calibration().figures({"details": results.details}, None)
    assert list(charts) == ["reliability", "risk_coverage"]
    assert [panel["title"] for panel in charts["reliability"].to_dict()["concat"]] == ["q", "t"]


@pytest.mark.slow
def test_a_classification_is_scored_before_and_after_it_is_learned(launch, tmp_path: Path):
    """A run that starts from trained weights is evaluated before its first step too."""
    from kleiber.records.summary_file import read_summary

    data = ["data=labelled", f"data.path={Path(__file__).parents[2] / 'data/labelled.jsonl'}", "data.text=text"]
    keys = ["objective=classify", "evals=[calibration]", "evals.calibration.bins=5", "name=classes"]
    first = launch("name=start", "data.tokenizer=bytes")
    run = launch(*data, "data.label=label", *keys, "init=checkpoint", f"init.path={first}")
    stage = read_summary(run)["stages"][-1]
    names = [name for name in stage["metrics"] if name.startswith("eval/calibration/") and name.endswith("/ece")]
    assert names and set(names) <= set(stage["start_metrics"])
