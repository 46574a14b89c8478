"""Prompts of texts, of questions and of files."""

from __future__ import annotations

import pytest
from evals.subjects import table
from evals.test_ood import letters

from kleiber.data.prompts import prompts_of, read_prompts
from kleiber.data.tokenizers import Bytes

STORIES = [
    {"text": "Once upon a time there was a dog. The dog was happy with it. End."},
    {"text": "Anna and Ben are twins. They run."},
]


def test_documents_come_before_sentences_and_prompts_end_with_a_whole_word():
    prompts, template = prompts_of(table("t", STORIES), Bytes(), 10, 18)
    assert template == "plain"
    assert prompts == ["Once upon a time", "Anna and Ben are", "The dog was happy"]
    assert prompts_of(table("t", STORIES), Bytes(), 1, 18)[0] == ["Once upon a time"]


def test_questions_are_in_the_template_of_conversations():
    rows = [
        {"prompt": "Why?", "chosen": "a", "rejected": "b"}, {"prompt": "Why?", "chosen": "c", "rejected": "d"},
        {"prompt": "How?", "chosen": "c", "rejected": "d"},
    ]  # fmt: skip
    assert prompts_of(table("t", rows), Bytes(), 5, 8) == (["Why?", "How?"], "chat")
    dialog = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("user", "r"))]
    with pytest.raises(ValueError, match="t has no prompts"):
        prompts_of(table("t", [{"messages": dialog}]), Bytes(), 5, 8)


def test_held_out_samples_of_a_text_have_beginnings():
    with pytest.raises(ValueError, match="has no prompts"):  # these have no spaces, so no whole words
        prompts_of(letters(0.5, "t"), Bytes(), 3, 12)


def test_prompts_of_a_file(tmp_path):
    lines, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("one\n\n two \none\n", encoding="utf-8-sig")  # with a byte order mark
    assert read_prompts(lines) == ["one", "two"]
    rows.write_text('{"prompt": "a\\nb"}\n{"prompt": "c"}\n')
    assert read_prompts(rows) == ["a\nb", "c"]
    rows.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match="must have an object with the column prompt"):
        read_prompts(rows)
    (tmp_path / "bad").write_bytes(b"\xff")
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path / "bad", "byte 0 is not UTF-8")):
        with pytest.raises(ValueError, match=message):
            read_prompts(path)
    lines.write_text("\n")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(lines)
