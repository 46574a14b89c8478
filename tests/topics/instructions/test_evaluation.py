"""Planted models: who follows has a lift, who answers everything alike has none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from evals.subjects import subject_on_tables, table, values
from html_elements import adds_no_element

from kleiber.data.evaluation_sets import open_sets
from kleiber.data.tokenizers import Bytes
from kleiber.evals.measure import explain_refusal, plan_measurements
from kleiber.models.transformer import Transformer
from kleiber_topics.instructions import evaluation as module
from kleiber_topics.instructions.evaluation import YES, Instructions

ROWS = [
    {"prompt": f"{topic} {sentence}", "instruction_id_list": [name], "kwargs": [options]}
    for topic in ("Sea?", "Friend?")
    for sentence, name, options in (
        ("Say blue.", "keywords:existence", {"keywords": ["blue"]}),
        ("No commas.", "punctuation:no_comma", {}),
        ("Shout.", "change_case:english_capital", {}),
    )
]


def answers(reply):
    """In place of a model: what `reply` returns for the text of each prompt."""

    def continuations(model, prompts, tokens, eos):
        return [list(reply(Bytes().decode(prompt)).encode()[:tokens]) for prompt in prompts]

    return continuations


def obey(prompt: str) -> str:
    return "so blue, so deep" if "blue" in prompt else "a, b; no" if "Shout" not in prompt else "LOUD, VERY"


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return subject_on_tables(Transformer(272, depth=1, width=32, context=128), t=ROWS)


def test_a_model_that_follows_two_of_three_instructions(subject, monkeypatch):
    monkeypatch.setattr(module, "continuations", answers(obey))
    results = Instructions(data=None).evaluate(subject)
    found = values(results.scores["t"])
    assert found["accuracy"] == found["lift"] == pytest.approx(2 / 3) and found["unasked"] == 0
    kinds = {kind: found[f"{kind}/lift"] for kind in ("keywords", "punctuation", "change_case")}
    assert kinds == {"keywords": 1, "punctuation": 0, "change_case": 1}
    assert found["words"] == pytest.approx((4 + 3 + 2) / 3) and results.scores["t"]["lift"].n == 6
    assert [row["follows"] for row in results.details["t"]] == [True, False, True] * 2


def test_a_model_that_answers_everything_alike_follows_without_lift(subject, monkeypatch):
    monkeypatch.setattr(module, "continuations", answers(lambda _: "VERY BLUE"))
    found = values(Instructions(data=None).evaluate(subject).scores["t"])
    assert found["accuracy"] == found["unasked"] == 1 and found["lift"] == 0


def test_the_keys_have_their_effect(subject, monkeypatch):
    monkeypatch.setattr(module, "continuations", answers(obey))
    results = Instructions(tokens=2, shown=1, data=None).evaluate(subject)
    assert [row["answer"] for row in results.details["t"]] == ["so"]


def test_the_built_in_prompts_are_answered_by_a_real_model(subject):
    (data,) = open_sets("builtin/instructions", Bytes(), 128)
    assert Instructions().accepts(data)
    scores = Instructions(tokens=3).evaluate(replace(subject, data=[data], limit=22)).scores["builtin/instructions"]
    assert scores["accuracy"].n == 22 and scores["lift"].lo <= scores["lift"].value <= scores["lift"].hi
    with pytest.raises(ValueError, match="no text: use it with evals=instructions"):
        data.samples()


def test_a_named_table_replaces_the_built_in_prompts(subject):
    def planned(*named):
        (measurement,) = plan_measurements({"x": Instructions()}, subject.model, Bytes(), [], named)
        return [data.name for data in measurement.data]

    assert planned() == ["builtin/instructions"] and planned(*subject.data) == ["t"]
    with pytest.raises(ValueError, match=r"--data u has the columns text"):
        planned(table("u", [{"text": "a"}]))


def test_the_figure_and_the_page_show_the_kinds_and_escaped_answers(subject, monkeypatch):
    monkeypatch.setattr(module, "continuations", answers(lambda _: "<script>x</script>"))
    evaluation = Instructions(data=None)
    results = evaluation.evaluate(subject)
    page = evaluation.page({"details": results.details})
    assert "&lt;script&gt;" in page and "<script>" not in page
    scores = {"t": {name: score.to_json() for name, score in results.scores["t"].items()}}
    chart = evaluation.figures({"scores": scores}, None)["accuracy"].to_dict()
    assert "change case" in str(chart) and "all instructions" in str(chart)


def test_rows_that_cannot_be_read_are_refused(subject, monkeypatch):
    monkeypatch.setattr(module, "continuations", answers(obey))
    alone = subject_on_tables(subject.model, t=ROWS[:1])
    with pytest.raises(ValueError, match="every prompt needs another prompt"):
        Instructions(data=None).evaluate(alone)
    broken = subject_on_tables(subject.model, t=[{**ROWS[0], "kwargs": []}])
    with pytest.raises(ValueError, match="kwargs as many entries, not 0"):
        Instructions(data=None).evaluate(broken)
    other = subject_on_tables(subject.model, u=[{"text": "a"}]).data[0]
    assert not Instructions().accepts(other)
    assert "prompt, instruction_id_list and kwargs" in explain_refusal("instructions", Instructions(), other)


def answer_page(text: str) -> str:
    rows = [{"prompt": text, "answer": text, "follows": follows} for follows in YES]
    return Instructions.page(SimpleNamespace(), {"details": {text: rows}})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(answer_page)
