"""Texts that a model generates for a task: its scores and those of rules, examples, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evals.subjects import subject_of
from retention.toys import Language
from tables import folder

from kleiber.data.task import Task, task_rows
from kleiber.data.tokenizers import Bytes
from kleiber.evals import generation as generation_module
from kleiber.evals.generation import Generation, pick_examples
from kleiber.evals.measure import to_json
from kleiber.models.generation import continuations
from kleiber.models.transformer import Transformer
from kleiber.objectives.sft import SFT

TRAIN = [{"en": f"a dog number {i}. It runs.", "de": f"ein Hund {i}"} for i in range(5)] + [
    {"en": "two cats", "de": ["zwei Katzen", "ein Hund 1"]},
    {"en": "old two cats", "de": ["ein Hund 1"]},
]
TRAIN = [{**row, "de": row["de"] if isinstance(row["de"], list) else [row["de"]]} for row in TRAIN]
HELD_OUT = [
    {"en": "a dog number 9. It sleeps.", "de": ["ein Hund 9"]},
    {"en": "two black cats", "de": ["zwei schwarze Katzen", "zwei Katzen"]},
]


@pytest.fixture
def subject(tmp_path, monkeypatch):
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    path = folder(tmp_path / "t", train=TRAIN, validation=HELD_OUT)
    corpus = Task(path, prompt="{en} =", target="{de}").prepare(128)
    torch.manual_seed(0)
    return subject_of(Transformer(272, depth=1, width=32, context=128), corpus, SFT(corpus))


def test_right_answers_have_the_best_scores_and_rules_write_what_they_say(subject, monkeypatch):
    right = {row["en"]: row["de"][-1] for row in HELD_OUT}
    decode = Bytes().decode

    def oracle(model, prompts, tokens, eos, **options):
        return [[*f" {right[decode(prompt).removesuffix(' =')]} ".encode()] for prompt in prompts]

    monkeypatch.setattr(generation_module, "continuations", oracle)
    results = Generation().evaluate(subject)
    scores = {name: score.value for name, score in results.scores["t"].items()}
    assert scores["chrf"] == pytest.approx(100) and scores["exact_match"] == scores["f1"] == scores["rougeL"] == 1
    rows, order = task_rows(subject.samples("t"))
    texts = generation_module.baseline_texts(rows, [rows.texts_of(i) for i in order])
    by_input = {rows.texts_of(i).inputs["en"]: {rule: texts[rule][k] for rule in texts} for k, i in enumerate(order)}
    assert by_input["a dog number 9. It sleeps."] == {
        "copy": "a dog number 9. It sleeps.", "lead": "a dog number 9.", "frequent": "ein Hund 1",
        "neighbor": by_input["a dog number 9. It sleeps."]["neighbor"],
    }  # fmt: skip
    assert by_input["two black cats"]["neighbor"] in ("zwei Katzen", "ein Hund 1")
    assert scores["copy/exact_match"] == 0 and 0 < scores["frequent/f1"] < 1
    assert {row["text"] for row in results.details["t"]} == {*right.values()}
    items = to_json(results)["items"]["t"]
    assert len({*items["contents"]}) == 2 and items["values"]["exact_match"] == [1, 1]
    assert np.mean(items["values"]["chrf"]) == pytest.approx(100) and "copy/chrf" not in items["values"]
    page = Generation().page({"scores": {}, "details": results.details})
    assert "zwei Katzen" in page and "two black cats" in page


def test_the_model_writes_what_it_continues_each_prompt_with_alone(subject):
    rows, order = task_rows(subject.samples("t"))
    for beams in (1, 3):
        prompts = [rows.question(i)[0] for i in order.tolist()]
        written = generation_module.write_texts(subject, prompts, 6, "generation", beams=beams)
        for i, text in zip(order.tolist(), written, strict=True):
            ids = continuations(subject.model, [rows.question(i)[0]], 6, Bytes.eos, beams=beams)[0]
            assert text == Bytes().decode(ids).strip()
    assert Generation(limit=1).evaluate(subject).scores["t"]["f1"].n == 1


def test_rows_that_may_not_be_shown_are_not_in_the_details(subject):
    rows, _ = task_rows(subject.samples("t"))
    object.__setattr__(rows.task, "examples", False)
    results = Generation(metrics=["f1"]).evaluate(subject)
    assert results.details == {"t": []} and Generation().page({"details": results.details}) == ""
    assert results.scores["t"].keys() == {"f1", "copy/f1", "lead/f1", "frequent/f1", "neighbor/f1"}


def test_examples_are_the_best_the_worst_and_others(subject):
    rows, order = task_rows(subject.samples("t"))
    item = rows.texts_of(int(order[0]))
    texts = [item.references[0][:length] for length in range(11)]
    examples = pick_examples([item] * 11, texts)
    kinds = [row["kind"] for row in examples]
    assert kinds == ["most like a reference"] * 4 + ["least like a reference"] * 4 + ["random"] * 3
    assert examples[0]["chrf"] == max(row["chrf"] for row in examples)
    assert len({row["text"] for row in examples}) == 11


def test_what_is_no_task_and_what_does_not_fit_is_refused(subject):
    with pytest.raises(ValueError, match=r"evals.generation.tokens=120 and a prompt of \d+ tokens"):
        Generation(tokens=120).evaluate(subject)
    with pytest.raises(ValueError, match=r"metrics=\[\]"):
        Generation(metrics=[])
    from evals.subjects import own_sets

    other = subject_of(subject.model, subject.corpus, subject.objective)
    object.__setattr__(other, "data", own_sets({"text": Language(1, rows=3)}))
    with pytest.raises(ValueError, match=r"--evals generation needs a task .*, and text is none"):
        Generation().evaluate(other)
