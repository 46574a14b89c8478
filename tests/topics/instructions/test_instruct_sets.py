"""Several tables of conversations: every training row once, and each table held out under its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tables import folder, jsonl

from kleiber.data.instruct import Conversations, PackedConversations
from kleiber_topics.instructions.instruct_sets import InstructSets


def parts(tmp_path: Path) -> dict[str, dict[str, str | None]]:
    sums = [{"question": f"{i}+{i}?", "answer": f"{2 * i}"} for i in range(12)]
    tasks = [{"ask": f"repeat {i}", "say": f"{i}"} for i in range(7)]
    return {
        "sums": {"path": folder(tmp_path / "a", train=sums, validation=sums[:4])},
        "tasks": {"path": folder(tmp_path / "b", train=tasks, test=tasks[:3]), "prompt": "ask", "response": "say"},
    }


def test_all_rows_are_trained_on_and_each_table_is_scored_by_its_name(tmp_path: Path, cache: Path) -> None:
    corpus = InstructSets(parts(tmp_path), pack=False).prepare(64)
    rows = corpus.train
    assert isinstance(rows, Conversations) and len(rows) == 19
    answers = [bytes(rows.question(i)[1]).decode() for i in range(19)]
    assert answers == [*(str(2 * i) for i in range(12)), *map(str, range(7))]
    assert {name: len(part) for name, part in corpus.validation.items()} == {"sums": 4, "tasks": 3}
    assert corpus.num_answers == sum(map(len, answers)) + 19 and corpus.config == "sums+tasks"


@pytest.mark.slow
def test_the_keys_have_their_effect(tmp_path: Path, cache: Path) -> None:
    tables = parts(tmp_path)
    packed, loose = (InstructSets(tables, pack=pack).prepare(64) for pack in (True, False))
    assert isinstance(packed.train, PackedConversations) and len(packed.train) < len(loose.train)
    assert packed.num_tokens == loose.num_tokens and packed.hash != loose.hash
    assert InstructSets(tables, max_bytes=30).prepare(64).num_tokens < packed.num_tokens
    learned = InstructSets(tables, tokenizer="bpe", vocab_size=300).prepare(64)
    assert learned.tokenizer.name == "bpe" and learned.num_tokens < packed.num_tokens
    assert learned.train.gather(np.array([0])).weights is not None
    with pytest.raises(ValueError, match=r"data\.parts=\{\}"):
        InstructSets({}).prepare(64)
    with pytest.raises(ValueError, match=r"data\.parts\.sums=.*config, prompt, response"):
        InstructSets({"sums": {"path": "x", "answer": "y"}}).prepare(64)


@pytest.mark.slow
def test_the_shared_sets_are_read(shared: Path, cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    corpus = InstructSets(max_bytes=40_000).prepare(512)
    assert [*corpus.validation] == ["alpaca", "dolly", "self_instruct"] and corpus.num_answers > 10_000


def test_no_prompt_is_both_trained_on_and_held_out(tmp_path: Path, cache: Path) -> None:
    """In a table without splits: otherwise held-out answers would be to questions that were trained on."""
    path = jsonl(tmp_path / "several.jsonl", [{"prompt": f"say {i // 5}", "response": f"yes {i}"} for i in range(100)])
    corpus = InstructSets({"a": {"path": path}}, pack=False).prepare(64)
    (held_out,) = corpus.validation.values()
    prompts = [{bytes(part.question(i)[0][1:]) for i in range(len(part))} for part in (corpus.train, held_out)]
    assert (len(corpus.train), len(prompts[0] | prompts[1])) == (95, 20) and not prompts[0] & prompts[1]
