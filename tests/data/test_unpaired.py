"""Labeled answers: each beside the same prompt with another row's answer, which is always the same one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tables import folder, jsonl

from kleiber.data.chat import Turn
from kleiber.data.unpaired import Unpaired, UnpairedCorpus, parse_label


def answers(count: int = 12) -> list[dict]:
    return [{"prompt": f"say {i}", "completion": f"word{i}" * (i % 3 + 1), "label": i % 3 == 0} for i in range(count)]


def prepared(tmp_path: Path, table: list[dict], context: int = 64) -> UnpairedCorpus:
    corpus = Unpaired(folder(tmp_path / "p", train=table, validation=table[:4])).prepare(context)
    assert isinstance(corpus, UnpairedCorpus)
    return corpus


def read(ids, marks) -> tuple[str, str]:
    """Prompt and answer."""
    return tuple(bytes(i for i in ids[marks == m].tolist() if i < 256).decode() for m in (0, 1))  # type: ignore


def test_each_answer_has_its_label_and_a_mismatched_answer_to_its_prompt(tmp_path: Path, cache: Path) -> None:
    table = answers()
    corpus = prepared(tmp_path, table)
    batch = corpus.train.gather(np.arange(12))
    assert batch.labels.tolist() == [float(row["label"]) for row in table]  # type: ignore[union-attr]
    rows = corpus.rows()["train"]
    others = []
    for i, row in enumerate(table):
        (prompt, answer), (again, other) = (read(*rows.side(2 * i + j)) for j in (0, 1))
        assert (prompt, answer) == (f"<|user|>\n{row['prompt']}\n<|assistant|>\n", row["completion"])
        assert again == prompt and other != answer
        others.append(other)
    assert sorted(others) == sorted(row["completion"] for row in table), "each answer is another one's once"
    assert np.array_equal(batch.tokens, corpus.train.gather(np.arange(12)).tokens)


def others(corpus: UnpairedCorpus) -> list[tuple[str, str, str]]:
    """Prompt, answer and mismatched answer of each training sample."""
    rows = corpus.rows()["train"]
    return [(*read(*rows.side(2 * i)), read(*rows.side(2 * i + 1))[1]) for i in range(len(rows))]


@pytest.mark.slow
def test_no_answer_is_paired_with_itself_or_with_one_to_its_prompt(tmp_path: Path, cache: Path) -> None:
    """Also where a row is alone behind the thousands, and where prompts have several answers."""
    samples = others(prepared(tmp_path, answers(1001)))
    assert all(answer != other for _, answer, other in samples) and len({other for *_, other in samples}) == 1001
    table = [{"prompt": f"p{i // 7}", "chosen": f"good{i // 7}", "rejected": f"bad{i // 7}"} for i in range(42)]
    for prompt, _, other in others(prepared(tmp_path / "pairs", table)):
        assert re.search(r"p(\d+)", prompt)[1] != re.search(r"\d+", other)[0]  # type: ignore[index]


def test_answers_to_one_prompt_are_paired_with_another_row_if_there_is_one(tmp_path: Path, cache: Path) -> None:
    table = [{"prompt": "p", "chosen": f"good{i}", "rejected": f"bad{i}"} for i in range(9)]
    samples = others(prepared(tmp_path, table))
    assert len(samples) == 18 and all(answer[-1] != other[-1] for _, answer, other in samples)
    with pytest.raises(ValueError, match="the answers of one row alone"):
        prepared(tmp_path / "lone", table[:1])


def test_mismatched_answers_are_not_counted(tmp_path: Path, cache: Path) -> None:
    corpus = prepared(tmp_path, answers())
    batch = corpus.train.gather(np.arange(12))
    assert batch.real is not None
    assert corpus.num_tokens == int(batch.real.sum()) and corpus.train.sides == 1  # type: ignore[attr-defined]


def test_rows_without_an_answer_are_left_out_and_messages_are_read(tmp_path: Path, cache: Path) -> None:
    turns = [Turn("user", "hi"), Turn("assistant", "yo"), Turn("user", "how?")]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    completion = [{"role": "assistant", "content": "fine"}]
    corpus = prepared(tmp_path, [{"prompt": messages, "completion": completion, "label": 1}] * 4)
    assert read(*corpus.rows()["train"].side(0))[1] == "fine"
    corpus = prepared(tmp_path / "more", [*answers(), {"prompt": "p", "completion": "", "label": True}])
    assert len(corpus.train) == 12 and corpus.manifest["p"]["splits"]["train"]["useless"] == 1
    table = [{"prompt": f"{i // 5}", "completion": f"yes {i}", "label": i % 2 == 0} for i in range(100)]
    split = Unpaired(jsonl(tmp_path / "lone.jsonl", table)).prepare(64).rows()
    asked = [{read(*rows.side(2 * i))[0] for i in range(len(rows))} for rows in split.values()]
    assert len(asked[0]) == 19 and not asked[0] & asked[1], "no prompt is both trained on and held out"


def test_invalid_and_missing_labels_are_refused(tmp_path: Path, cache: Path) -> None:
    assert [parse_label(value) for value in (True, False, 1, 0)] == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="label='good'"):
        parse_label("good")
    table = [{"prompt": "p", "completion": "c"}] * 4
    with pytest.raises(ValueError, match="column label"):
        prepared(tmp_path, table)
