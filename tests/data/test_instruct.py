"""Conversations in rows: packed or not, the same samples with the same targets, and what is lost is counted."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tables import folder, jsonl

from kleiber.data.batches import HeldOutRows
from kleiber.data.instruct import Conversations, Instruct, PackedConversations


def sums(count: int = 30) -> list[dict]:
    return [{"question": f"{i}+{i}?", "answer": "so " * (i % 5) + f"#### {2 * i}"} for i in range(count)]


def corpus(tmp_path: Path, context: int = 128, **options):
    return Instruct(folder(tmp_path / "sums", train=sums(), validation=sums(5)), **options).prepare(context)


def test_packed_rows_hold_every_sample_once_and_the_same_targets(tmp_path: Path, cache: Path) -> None:
    loose, tight = corpus(tmp_path, pack=False).train, corpus(tmp_path).train
    assert isinstance(loose, Conversations) and isinstance(tight, PackedConversations)
    assert len(tight) < len(loose) == 30
    packed = []
    batch = tight.gather(np.arange(len(tight)))
    assert batch.segments is not None and batch.weights is not None and batch.real is not None
    assert (batch.segments == -1).equal(~batch.real)
    for ids, segments, weights in zip(batch.tokens, batch.segments, batch.weights, strict=True):
        for segment in range(int(segments.max()) + 1):
            here = segments == segment
            packed.append((ids[here].tolist(), weights[here].tolist()))
    wanted = [tuple(part.tolist() for part in loose.row(i)) for i in range(30)]
    assert sorted(packed) == sorted((ids, [float(m) for m in marks]) for ids, marks in wanted)
    assert tight.num_tokens == loose.num_tokens == int(batch.real.sum())
    assert tight.samples.num_answers == int(batch.weights.sum())


def test_targets_are_the_answers(tmp_path: Path, cache: Path) -> None:
    loose = corpus(tmp_path, pack=False)
    batch = loose.train.gather(np.array([7]))
    assert batch.weights is not None and batch.real is not None
    assert loose.tokenizer.decode(batch.tokens[0].tolist()) == "<|user|>\n7+7?\n<|assistant|>\nso so #### 14"
    assert batch.tokens[0][batch.weights[0] > 0].tolist() == [*b"so so #### 14", 256]
    assert isinstance(loose.train, Conversations)
    asked, answer = loose.train.question(7)
    assert (loose.tokenizer.decode(asked), bytes(answer)) == ("<|user|>\n7+7?\n<|assistant|>\n", b"so so #### 14")


def test_conversations_that_do_not_fit_are_cut_or_left_out_and_counted(tmp_path: Path, cache: Path, caplog) -> None:
    table = [*sums(10), {"question": "?", "answer": ""}, {"question": "x" * 90, "answer": "never read"}]
    with caplog.at_level(logging.INFO):
        train = Instruct(folder(tmp_path / "t", train=table, validation=sums(5)), pack=False).prepare(44).train
    assert isinstance(train, Conversations)
    assert len(train) == 10 and train.gather(np.arange(10)).tokens.shape[1] == 45
    assert train.truncated == 3 and len(train.ids) == 11  # one row has no answer, and that of another was cut off
    assert "; 3 cut to model.context=44" in caplog.text
    with pytest.raises(ValueError, match=r"model\.context=8"):
        Instruct(folder(tmp_path / "t", train=table, validation=sums(5))).prepare(8)


def test_no_prompt_is_both_trained_on_and_held_out(tmp_path: Path, cache: Path) -> None:
    """In a table without splits: otherwise held-out answers would be to questions that were trained on."""
    path = jsonl(tmp_path / "several.jsonl", [{"prompt": f"say {i // 5}", "response": f"yes {i}"} for i in range(100)])
    corpus = Instruct(path, pack=False).prepare(64)
    (held_out,) = corpus.validation.values()
    prompts = [{bytes(part.question(i)[0][1:]) for i in range(len(part))} for part in (corpus.train, held_out)]
    assert (len(corpus.train), len(prompts[0] | prompts[1])) == (95, 20) and not prompts[0] & prompts[1]


def test_the_prompt_of_a_conversation_ends_before_its_last_answer() -> None:
    messages = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    texts = [Instruct("t").prompt_texts({"messages": messages[:n]}) for n in (2, 3, 4)]
    assert texts == [None, ["s", "u"], ["s", "u"]]


def test_other_columns_are_listed_in_the_error_and_can_be_set(tmp_path: Path, cache: Path) -> None:
    table = [{"ask": row["question"], "say": row["answer"]} for row in sums()]
    path = folder(tmp_path / "t", train=table, validation=table)
    with pytest.raises(ValueError, match="ask, say"):
        Instruct(path).prepare(64)
    with pytest.raises(ValueError, match=r"data\.response=sigh.*ask, say"):
        Instruct(path, prompt="ask", response="sigh").prepare(64)
    with pytest.raises(ValueError, match=r"data.prompt=ask and data.response=None"):
        Instruct(path, prompt="ask").prepare(64)
    renamed, usual = Instruct(path, prompt="ask", response="say").prepare(64), corpus(tmp_path, 64)
    assert np.array_equal(renamed.train.gather(np.array([0])).tokens, usual.train.gather(np.array([0])).tokens)


@pytest.mark.slow
def test_known_tables(shared: Path, cache: Path) -> None:
    alpaca = Instruct(str(shared / "data/alpaca"), "sample").prepare(512)
    held = alpaca.validation["alpaca-sample"]
    assert isinstance(held, HeldOutRows) and isinstance(alpaca.train, PackedConversations)
    assert len(held) + len(alpaca.train.samples) > 980
    assert alpaca.num_tokens / (len(alpaca.train) * 513) > 0.9  # of the rows is text, not padding
    dolly = Instruct(str(shared / "data/dolly_hhrlhf")).prepare(512)
    assert 100 > len(dolly.validation["dolly_hhrlhf"]) > 50
