"""Retrieval into the context: BM25 by its formula, the place of the text, and the room that it takes."""

import math
from collections import Counter

import numpy as np
import pytest
from topics.retrieval.stores import Copier, tiny_model

from kleiber.data.tokenizers import Bytes
from kleiber_topics.retrieval.in_context import (
    BM25Index,
    DenseIndex,
    Piece,
    answer_pieces,
    joined,
    retrieve_texts,
    score_with_texts,
    text_pieces,
    with_text,
    words,
)
from kleiber_topics.retrieval.scoring import ScoredRow, score_rows

TEXTS = ["the cat sat on the mat", "a dog and a cat", "the sea", "dog dog dog eats the fish"]


def ids(text: str) -> np.ndarray:
    return np.array(list(text.encode()), np.int64)


def row(text: str, first: int = 1) -> ScoredRow:
    return ScoredRow(ids(text), np.arange(len(text)) >= first, 0)


def bm25(query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The formula of Robertson and Zaragoza 2009 with the idf of Lucene."""
    documents = [Counter(words(text)) for text in TEXTS]
    mean = sum(sum(d.values()) for d in documents) / len(documents)
    scores = []
    for document in documents:
        norm, score = k1 * (1 - b + b * sum(document.values()) / mean), 0.0
        for term in words(query):
            df = sum(term in d for d in documents)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * document[term] / (document[term] + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["cat", "the dog", "fish eats cat"])
def test_bm25_ranks_by_its_formula_and_leaves_out_what_has_no_word_in_common(query):
    scores = bm25(query)
    expected = [i for i in sorted(range(len(TEXTS)), key=lambda i: -scores[i]) if scores[i] > 0]
    index = BM25Index([ids(text) for text in TEXTS], Bytes())
    assert index.search([ids(query)], 4)[0] == expected and index.num_bytes > 0
    assert index.search([ids("whale")], 4) == [[]]


def test_text_without_words_is_never_found():
    assert BM25Index([ids("..."), ids("--")], Bytes()).search([ids("a")], 1) == [[]]


def test_dense_retrieval_finds_the_text_that_is_the_query():
    index = DenseIndex(tiny_model(), [ids(text) for text in TEXTS], "torch", 1000)
    assert [places[0] for places in index.search([ids(text) for text in TEXTS], 2)] == [0, 1, 2, 3]


def test_pieces_cover_each_target_once_and_the_first_has_no_query():
    text = row("abcdefghijk")
    pieces = text_pieces([text], 4, 3)
    assert [(piece.start, piece.stop, bytes(piece.query.tolist()).decode()) for piece in pieces] == [
        (1, 5, ""), (5, 9, "cde"), (9, 11, "ghi"),
    ]  # fmt: skip
    unscored = ScoredRow(text.ids, np.arange(11) == 10, 0)
    assert [piece.start for piece in text_pieces([unscored], 4, 3)] == [9]
    (piece,) = answer_pieces([row("what is it", 7)])
    assert (piece.start, piece.stop, bytes(piece.query.tolist())) == (7, 10, b"what is")


def test_the_best_chunk_is_the_last_one():
    assert bytes(joined([ids("best"), ids("next")], ids("|")).tolist()) == b"next|best|"
    assert len(joined([], ids("|"))) == 0


def test_retrieved_text_takes_the_place_of_the_beginning():
    text, piece = row("0123456789"), Piece(0, 7, 10, ids("456"))
    assert bytes(with_text(text, piece, ids("abc"), 20, None).ids.tolist()) == b"abc0123456789"
    cut = with_text(text, piece, ids("abc"), 8, None)
    assert bytes(cut.ids.tolist()) == b"abc456789" and cut.scored.tolist() == [False] * 6 + [True] * 3
    kept = with_text(text, piece, ids("abc"), 8, ord("0"))
    assert bytes(kept.ids.tolist()) == b"0abc56789"


def test_a_piece_without_retrieved_text_keeps_its_scores_and_another_gets_those_behind_it():
    rows = [row("q?", 1), row("z?", 1)]
    pieces = answer_pieces(rows)
    index = BM25Index([ids("q?"), ids("other")], Bytes())
    texts = retrieve_texts(index, pieces, [ids("q?"), ids("other")], 1, ids("\n"))
    assert [bytes(text.tolist()) for text in texts] == [b"q?\n", b""]
    plain = score_rows(Copier(), rows, 100, "hidden", "")
    log_probs, greedy = score_with_texts(Copier(), rows, pieces, texts, plain, 100, None, "")
    assert greedy.tolist() == [True, False] and plain.greedy.tolist() == [False, False]
    assert log_probs[0] > -1e-6 and log_probs[1] == plain.log_probs[1]
