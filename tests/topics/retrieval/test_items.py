"""Rows of tables as prompts and answers, and scores from planted log-probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from topics.retrieval.stores import on_rows, on_text, tiny_model

from kleiber.data.tokenizers import Bytes
from kleiber_topics.retrieval.in_context import with_text
from kleiber_topics.retrieval.items import Items, read_items, scores_of, share_with_answer
from kleiber_topics.retrieval.scoring import Targets

ROWS = [{"prompt": "ab", "answer": "cd"}, {"prompt": "x ", "answer": "y"}, {"prompt": "u", "answer": "\nv"}]


def targets(items: list[int], log_probs: list[float], greedy: list[bool]) -> Targets:
    empty = torch.zeros(len(items), 1)
    ids = torch.zeros(len(items), dtype=torch.int64)
    return Targets(ids, torch.tensor(log_probs).double(), torch.tensor(greedy), np.array(items), empty, empty)


def test_an_answer_follows_a_space_unless_there_is_white_space():
    items = read_items(subject := on_rows(tiny_model(), ROWS, ["text"]), subject.data[0], 8, 4)
    texts = [bytes(row.ids.tolist()) for row in items.rows]
    assert texts == [b"ab cd", b"x y", b"u\nv"]
    assert [bytes(row.ids[row.scored].tolist()) for row in items.rows] == [b" cd", b" y", b"\nv"]
    assert items.is_table and items.count == 3


def test_the_columns_question_and_answer_are_a_table_too():
    subject = on_rows(tiny_model(), [{"question": "a", "answer": "b"}] * 2, ["text"])
    assert read_items(subject, subject.data[0], 8, 4).is_table


def test_too_long_answers_and_single_samples_are_refused():
    long = on_rows(tiny_model(), [{"prompt": "a", "answer": "b" * 40}] * 2, ["text"])
    with pytest.raises(ValueError, match=r"41 tokens, more than model\.context=32"):
        read_items(long, long.data[0], 8, 4)
    short = on_text(tiny_model(), ["a text"], ["text"])
    with pytest.raises(ValueError, match="needs two samples"):
        read_items(short, short.data[0], 8, 4)


def test_scores_of_a_text_are_means_over_targets_and_paired():
    items = Items("text", [], [], 2, False, np.array([1.0, 2.0]))
    plain = targets([0, 0, 1], [-1.0, -2.0, -3.0], [True, True, False])
    scores = scores_of(items, plain, plain.log_probs + 0.5, plain.greedy, np.ones(3, bool), plain)
    assert scores["loss"].value == pytest.approx(1.5) and scores["loss"].n == 3
    assert scores["bits_per_byte"].value == pytest.approx(1.5 / np.log(2))
    assert scores["difference"].value == pytest.approx(-0.5)
    assert scores["difference"].lo == scores["difference"].hi == pytest.approx(-0.5)  # though the losses differ
    plain.ids[2] = 1  # of two bytes
    half = scores_of(items, plain, plain.log_probs, plain.greedy, np.array([False, False, True]), plain)
    assert half["loss"].value == 3 and half["loss"].n == 1
    assert half["bits_per_byte"].value == pytest.approx(1.5 / np.log(2))
    whole = scores_of(items, plain, plain.log_probs, plain.greedy, np.ones(3, bool))["bits_per_byte"]
    assert (whole.value, whole.lo, whole.hi) == pytest.approx((1.5 / np.log(2),) * 3)


def test_the_bytes_of_the_tokens_of_a_text_add_up_to_it():
    subject = on_text(tiny_model(), ["a text of some words"] * 9, ["text"])
    items = read_items(subject, subject.data[0], 8, 4)
    counted = sum(items.token_bytes[row.ids[row.scored]].sum() for row in items.rows)
    assert counted == pytest.approx(subject.data[0].samples().num_bytes)


def test_a_row_matches_if_all_of_its_answer_does():
    items = Items("table", [], [], 2, True)
    plain = targets([0, 0, 1], [-1.0, -2.0, -3.0], [True, False, False])
    scores = scores_of(items, plain, plain.log_probs, torch.tensor([True, True, False]), np.ones(3, bool), plain)
    assert scores["exact_match"].value == 0.5 and scores["difference"].value == 0.5
    assert scores["log_prob"].value == -3 and scores["exact_match"].n == 2


def test_an_answer_is_retrieved_if_it_stands_in_the_text_with_any_white_space():
    texts = ["Paris is big.", "In\nParis", '"Paris"', "of: Paris.", "Pa ris", ""]
    row = {"prompt": "The capital is", "answer": "Paris"}
    items = read_items(subject := on_rows(tiny_model(), [row] * len(texts), ["text"]), subject.data[0], 8, 4)
    encoded = [np.array(Bytes().encode(text), np.int64) for text in texts]
    hits = [share_with_answer(items, encoded, np.arange(len(texts)) == i, Bytes()).value for i in range(len(texts))]
    assert hits == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("begin", [None, Bytes.eos])
def test_the_longest_answer_that_fits_is_scored_behind_the_chunks_and_a_longer_one_is_refused(begin):
    retrieved = 2 * (8 + 3)
    for length in (9, 10, 11):  # and a space; 32 - 22 = 10
        rows = [{"prompt": "what", "answer": "b" * (length - 1)}] * 2
        subject = on_rows(tiny_model(), rows, ["text"])
        if length > 10:
            with pytest.raises(ValueError, match=r"row 0 has 11 tokens.*behind 22 tokens.*evals\.retrieval\.chunks or"):
                read_items(subject, subject.data[0], 8, 4, retrieved)
            continue
        items = read_items(subject, subject.data[0], 8, 4, retrieved)
        row = replace(items.rows[0], ids=np.array([Bytes.eos, *items.rows[0].ids[1:]]))
        full = with_text(row, items.pieces[0], np.ones(retrieved, np.int64), 32, begin)
        assert len(full.ids) == 33 and full.scored.sum() == length and full.scored[-length:].all()
