"""The answers of two models, on random sides, kept beside the judgments so that a killed judge goes on with them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kleiber_topics.judging import comparisons
from kleiber_topics.judging.comparisons import (
    Settings,
    answers_file,
    arrange,
    default_template,
    find_prompts,
    load_or_answer,
)

PROMPTS = [f"p{i}" for i in range(40)]
PAIRS = [(f"one {i}", f"two {i}") for i in range(40)]


def test_sides_are_random_by_the_seed_and_named():
    rows = arrange(PROMPTS, PAIRS, ("a", "b"), "plain", 0)
    first_left = [row.left_model == "a" for row in rows]
    assert 10 < sum(first_left) < 30
    assert all(row.left.startswith("one") == left for row, left in zip(rows, first_left, strict=True))
    assert all({row.left_model, row.right_model} == {"a", "b"} for row in rows)
    assert arrange(PROMPTS, PAIRS, ("a", "b"), "plain", 0) == rows != arrange(PROMPTS, PAIRS, ("a", "b"), "plain", 1)


def test_equal_answers_are_left_out():
    rows = arrange(PROMPTS[:2], [("x", "x"), ("x", "y")], ("a", "b"), "chat", 0)
    assert [row.item for row in rows] == [1] and rows[0].template == "chat"
    with pytest.raises(ValueError, match="a and b gave the same answer to every prompt"):
        arrange(PROMPTS[:1], [("x", "x")], ("a", "b"), "plain", 0)


def test_answers_are_kept_and_other_settings_are_refused(tmp_path, monkeypatch):
    rows, calls = arrange(PROMPTS, PAIRS, ("a", "b"), "plain", 0), []
    monkeypatch.setattr(comparisons, "answer", lambda settings: calls.append(settings) or rows)
    out = tmp_path / "j.jsonl"
    assert load_or_answer(Settings(("a", "b")), out) == rows == load_or_answer(Settings(("a", "b")), out)
    assert len(calls) == 1 and answers_file(out).name == "j.answers.json"
    with pytest.raises(ValueError, match=r"was begun with limit=50 \(now 9\), seed=0 \(now 1\)"):
        load_or_answer(Settings(("a", "b"), limit=9, seed=1), out)


def run(config: dict, objective: str | None = None, folder=None) -> SimpleNamespace:
    return SimpleNamespace(config=config, record={"objective": objective}, folder=folder, tokenizer=None)


def test_the_template_is_that_of_the_training(tmp_path):
    assert (
        default_template(run({"data": {}}, "clm")) == "plain" and default_template(run({"data": {}}, "sft")) == "chat"
    )
    assert default_template(run({}, folder=tmp_path)) == "plain"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "..."}')
    assert default_template(run({}, folder=tmp_path)) == "chat"


def test_prompts_of_a_file_are_in_the_template_of_the_model_or_the_command(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\nthree\n")
    settings = Settings(("a", "b"), prompts=str(path), limit=2)
    assert find_prompts(settings, run({"data": {}}, "sft")) == (["one", "two"], "chat")
    plain = Settings(("a", "b"), prompts=str(path), template="plain")
    assert find_prompts(plain, run({"data": {}}, "sft"))[1] == "plain"
