"""Pairs of answers: one prompt for both sides, only the last answers marked, the longer one known."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tables import folder, jsonl

from kleiber.data.batches import HeldOutRows
from kleiber.data.chat import Turn
from kleiber.data.preference import PairRows, Preference, parse_pair, parse_transcript
from kleiber.data.tokenizers import Bytes


def pairs(count: int = 12) -> list[dict]:
    return [
        {"prompt": f"say {i}", "chosen": "yes" * (i % 3 + 1), "rejected": "no " * (i % 2 + 1)} for i in range(count)
    ]


def marked(ids, weights) -> bytes:
    kept = ids[weights > 0].tolist()
    assert kept[-1] == 256
    return bytes(kept[:-1])


def test_both_conversations_share_the_prompt_and_mark_their_answers(tmp_path: Path, cache: Path) -> None:
    table = pairs()
    train = Preference(folder(tmp_path / "p", train=table, validation=table)).prepare(64).train
    batch = train.gather(np.arange(12))
    other = batch.counterpart
    assert other is not None and batch.weights is not None and other.weights is not None
    for i, row in enumerate(table):
        assert marked(batch.tokens[i], batch.weights[i]) == row["chosen"].encode()
        assert marked(other.tokens[i], other.weights[i]) == row["rejected"].encode()
        ends = [int((side.weights[i] > 0).nonzero()[0]) for side in (batch, other)]  # type: ignore[index]
        assert batch.tokens[i, : ends[0]].tolist() == other.tokens[i, : ends[1]].tolist()
    assert batch.labels is not None
    lengths = [(len(row["chosen"]), len(row["rejected"])) for row in table]
    assert batch.labels.tolist() == [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths]


def test_forms_of_the_same_pair() -> None:
    asked = [Turn("user", "hi"), Turn("assistant", "yo"), Turn("user", "how?")]
    wanted = ([*asked, Turn("assistant", "fine")], [*asked, Turn("assistant", "bad")])
    begin = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: how?\n\nAssistant: "
    assert parse_pair({"chosen": f"{begin}fine", "rejected": f"{begin}bad"}) == wanted
    messages = [{"role": turn.role, "content": turn.content} for turn in asked]
    fine, bad = ([{"role": "assistant", "content": text}] for text in ("fine", "bad"))
    assert parse_pair({"prompt": messages, "chosen": fine, "rejected": bad}) == wanted
    assert parse_pair({"prompt": messages, "chosen": [*messages, *fine], "rejected": [*messages, *bad]}) == wanted
    assert parse_pair({"chosen": [*messages, *fine], "rejected": [*messages, *bad]}) == wanted
    with pytest.raises(ValueError, match="'just a text'"):
        parse_transcript("just a text")
    stripped = begin.lstrip()
    assert parse_pair({"chosen": f"{stripped}fine", "rejected": f"{stripped}bad"}) == wanted, "no turn is lost"
    system = {"role": "system", "content": "be kind"}
    for prompt in (messages, "hi"):
        whole = [system, *(messages if prompt is messages else messages[:1]), *fine]
        chosen, _ = parse_pair({"prompt": prompt, "chosen": whole, "rejected": [*whole[:-1], *bad]})
        assert [turn.content for turn in chosen] == [turn["content"] for turn in whole], "no turn is repeated"
    with pytest.raises(ValueError, match="rejected: 0"):
        parse_pair({"prompt": "1-1?", "chosen": "0", "rejected": 0})


def test_a_prompt_that_is_too_long_keeps_the_same_end_in_both_conversations(tmp_path: Path, cache: Path) -> None:
    table = [{"prompt": "".join(chr(97 + i % 26) for i in range(200)), "chosen": "A" * 8, "rejected": "B" * 20}] * 4
    train = Preference(folder(tmp_path / "p", train=table, validation=table)).prepare(63).train
    assert isinstance(train, PairRows) and train.truncated == 4
    (chosen, good), (rejected, bad) = train.side(0), train.side(1)
    assert len(rejected) == 64 and bytes(chosen[good == 1][:-1].tolist()) == b"A" * 8
    assert chosen[good == 0].tolist() == rejected[bad == 0].tolist()
    assert bytes(chosen[good == 0].tolist()).endswith(b"opqr\n<|assistant|>\n")


def test_an_answer_that_is_too_long_leaves_half_a_row_to_the_prompt(tmp_path: Path, cache: Path) -> None:
    table = [{"prompt": "p" * 100, "chosen": "A" * 300, "rejected": "B"}] * 4
    train = Preference(folder(tmp_path / "p", train=table, validation=table)).prepare(63).train
    assert isinstance(train, PairRows)
    ids, marks = train.side(0)
    assert (len(ids), int(marks.sum())) == (64, 32)


def test_pairs_of_equal_or_missing_answers_are_left_out(tmp_path: Path, cache: Path, caplog) -> None:
    useless = [{"prompt": "p", "chosen": "same", "rejected": "same"}, {"prompt": "p", "chosen": "", "rejected": "b"}]
    with caplog.at_level(logging.INFO):
        corpus = Preference(folder(tmp_path / "p", train=pairs() + useless, validation=pairs(4))).prepare(64)
    assert len(corpus.train) == 12
    assert corpus.manifest["p"]["splits"]["train"]["useless"] == 2
    assert "12 pairs" in caplog.text and "66.7%" in caplog.text  # of the chosen answers are the longer one
    with pytest.raises(ValueError, match=r"column rejected.* prompt, chosen"):
        table = [{"prompt": "p", "chosen": "c"}] * 5
        Preference(folder(tmp_path / "q", train=table, validation=table)).prepare(64)


class Words(Bytes):
    """A token for each word, and none for white space."""

    def encode(self, text: str) -> list[int]:
        return [sum(each.encode()) % 256 for each in text.split()]

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int64) for text in texts]


def test_an_answer_that_continues_the_last_word_of_its_prompt_has_the_token_of_both() -> None:
    """An answer without a token would have no mean log-probability, and is left out."""
    answers = [("the dog", "s"), ("dog", "s"), ("the dog", " ")]
    table = [{"prompt": p, "chosen": c, "rejected": " ran", "template": "plain"} for p, c in answers]
    split = Preference("p").encode_split(Dataset.from_list(table), Words())
    assert split.counts["useless"] == 1 and split.arrays["labels"].tolist() == [0, 0]
    assert split.arrays["answers"].tolist() == [1] * 4 and [len(ids) for ids in split.ids] == [2, 3, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("transcripts", [False, True])
def test_no_prompt_is_both_trained_on_and_held_out(tmp_path: Path, cache: Path, transcripts: bool) -> None:
    """In a table without splits: otherwise held-out answers would be to questions that were trained on."""
    table = [{"prompt": f"say {i // 5}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(100)]
    if transcripts:
        before = [f"\n\nHuman: {row['prompt']}\n\nAssistant: " for row in table]
        table = [{k: b + row[k] for k in ("chosen", "rejected")} for b, row in zip(before, table, strict=True)]
    corpus = Preference(jsonl(tmp_path / "p.jsonl", table)).prepare(64)
    prompts = []
    for rows in (corpus.train, corpus.rows()["validation"]):
        assert isinstance(rows, PairRows)
        sides = [rows.side(i) for i in range(2 * len(rows))]
        prompts.append({bytes(ids[marks == 0][1:].tolist()) for ids, marks in sides})
    assert (len(corpus.train), len(prompts[0] | prompts[1])) == (95, 20) and not prompts[0] & prompts[1]
    alone = [{"prompt": "", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(100)]
    assert len(Preference(jsonl(tmp_path / "q.jsonl", alone)).prepare(64).train) == 95


@pytest.mark.slow
def test_known_tables(shared: Path, cache: Path) -> None:
    corpus = Preference(str(shared / "data/hh_rlhf")).prepare(256)
    held = corpus.validation["hh_rlhf"]
    assert isinstance(held, HeldOutRows) and isinstance(held.samples, PairRows)
    assert len(corpus.train) > 1480 and len(held) > 245
    assert 0.3 < held.samples.labels.mean() < 0.6
    conversational = Preference(str(shared / "data/dpo_en_sample")).prepare(256)
    assert len(conversational.train) + len(conversational.validation["dpo_en_sample"]) == 300


def test_a_pair_without_an_answer_is_left_out_and_a_row_that_cannot_be_read_is_named(tmp_path, cache) -> None:
    good = [{"chosen": f"Human: {i}\n\nAssistant: a", "rejected": f"Human: {i}\n\nAssistant: b"} for i in range(4)]
    gap = [{**good[0], "chosen": None}]
    corpus = Preference(folder(tmp_path / "gap", train=[*good, *gap], validation=good)).prepare(64)
    assert len(corpus.train) == 4
    broken = folder(tmp_path / "broken", train=[*good, {**good[0], "rejected": "b"}], validation=good)
    with pytest.raises(ValueError, match=r"broken, train row 4: .*'b'"):
        Preference(broken).prepare(64)
