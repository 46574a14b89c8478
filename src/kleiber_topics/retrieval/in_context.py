"""Retrieval into the context: chunks of a datastore stand in front of the text (Ram et al. 2023, arXiv:2302.00083).

The targets of a text are scored in pieces of `stride` tokens. In front of each piece stand the chunks that its last
tokens call for, and as much of the text before it as fits into the context with them, so that retrieval pays for the
context that it takes. The first piece of a sample has nothing to look for, and is scored without.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.records import activity
from kleiber.types import Model, Tokenizer, device_of
from kleiber_topics.retrieval.neighbors import nearest
from kleiber_topics.retrieval.scoring import ScoredRow, Targets, mean_states, score_rows

WORD = re.compile(r"\w+")

Ids = Int[np.ndarray, "_"]
Places = list[list[int]]  # numbers of chunks for each query, the best one first


@dataclass(frozen=True)
class Piece:
    """Consecutive targets of a row that are scored together.

    row          number of the row
    start, stop  positions of the targets in it
    query        the tokens by which chunks are looked for; empty for none
    """

    row: int
    start: int
    stop: int
    query: Ids


def text_pieces(rows: Sequence[ScoredRow], stride: int, query_tokens: int) -> list[Piece]:
    """Cuts the rows of a text into pieces; those without targets are left out."""
    pieces = []
    for number, row in enumerate(rows):
        for start in range(1, len(row.ids), stride):
            stop = min(start + stride, len(row.ids))
            if row.scored[start:stop].any():
                query = row.ids[max(0, start - query_tokens) : start] if start > 1 else row.ids[:0]
                pieces.append(Piece(number, start, stop, query))
    return pieces


def answer_pieces(rows: Sequence[ScoredRow]) -> list[Piece]:
    """The answer of each row as a piece, with the prompt as its query."""
    starts = [int(row.scored.argmax()) for row in rows]
    return [
        Piece(i, start, len(row.ids), row.ids[:start]) for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


class Index:
    """Base class of what finds chunks of a datastore.

    num_bytes  of the index, without the chunks
    """

    num_bytes: int

    def search(self, queries: Sequence[Ids], count: int) -> Places:
        """The `count` best chunks of each query, the best one first; fewer where fewer fit the query at all."""
        raise NotImplementedError


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case, which are the terms of BM25."""
    return WORD.findall(text.lower())


class BM25Index(Index):
    """Okapi BM25 over the words of chunks (k1 = 1.5, b = .75, as Lucene counts documents), by bm25s.

    Raises ValueError without the extra `retrieval`.
    """

    def __init__(self, chunks: Sequence[Ids], tokenizer: Tokenizer) -> None:
        try:
            import bm25s
        except ImportError:
            raise ValueError(
                "evals.retrieval.methods=[bm25] needs bm25s: pip install 'kleiber[retrieval]', or set "
                "evals.retrieval.methods=[knn]"
            ) from None
        self.tokenizer, self.count = tokenizer, len(chunks)
        documents = [words(tokenizer.decode(chunk.tolist())) for chunk in chunks]
        self.empty = not any(documents)
        self.index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        if not self.empty:
            self.index.index(documents, show_progress=False)
        matrix = {} if self.empty else self.index.scores
        self.num_bytes = sum(matrix[name].nbytes for name in ("data", "indices", "indptr") if name in matrix)

    def search(self, queries: Sequence[Ids], count: int) -> Places:
        """Chunks that have a word of the query; the first of equally good ones comes first."""
        if self.empty:
            return [[] for _ in queries]
        asked = [words(self.tokenizer.decode(query.tolist())) for query in queries]
        places: Places = []
        for terms in asked:
            scores = np.asarray(self.index.get_scores(terms)) if terms else np.zeros(self.count)
            best = np.argsort(-scores, kind="stable")[:count]
            places.append([int(place) for place in best if scores[place] > 0])
        return places


class DenseIndex(Index):
    """Chunks by the cosine of the mean hidden states of chunk and query, each read alone by the model itself.

    search  "torch" or "faiss"
    tokens  most tokens of a forward pass
    """

    def __init__(self, model: Model, chunks: Sequence[Ids], search: str, tokens: int) -> None:
        self.model, self.how, self.tokens = model, search, tokens
        self.vectors: Float[Tensor, "chunks dim"] = mean_states(model, chunks, tokens, "reading the chunks")
        self.num_bytes = self.vectors.nbytes

    def search(self, queries: Sequence[Ids], count: int) -> Places:
        """The chunks whose mean state is the nearest one."""
        states = mean_states(self.model, queries, self.tokens, "reading the queries")
        device = device_of(self.model)
        return nearest(states, self.vectors, count, self.how, device).entries.tolist()


def joined(chunks: Sequence[Ids], between: Ids) -> Ids:
    """Chunks as one text, the best one last, each followed by `between`."""
    parts = [part for chunk in reversed(chunks) for part in (chunk, between)]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def with_text(row: ScoredRow, piece: Piece, text: Ids, context: int, begin: int | None) -> ScoredRow:
    """A piece after `text` and what fits before it.

    context  tokens that the model can read
    begin    a token that stays in front of a row that begins with it; None for no such token
    """
    prefix = row.ids[: piece.start]
    head = prefix[:1] if begin is not None and len(prefix) > 1 and prefix[0] == begin else prefix[:0]
    prefix = prefix[len(head) :]
    room = context + 1 - len(head) - len(text) - (piece.stop - piece.start)
    prefix = prefix[len(prefix) - min(len(prefix), max(0, room)) :]
    before = np.concatenate([head, text, prefix])
    ids = np.concatenate([before, row.ids[piece.start : piece.stop]]).astype(np.int64)
    scored = np.concatenate([np.zeros(len(before), bool), row.scored[piece.start : piece.stop]])
    return ScoredRow(ids, scored, row.item)


def retrieve_texts(index: Index, pieces: Sequence[Piece], chunks: Sequence[Ids], count: int, between: Ids) -> list[Ids]:
    """The text in front of each piece, empty where it has no query or nothing fits it."""
    asking = [i for i, piece in enumerate(pieces) if len(piece.query)]
    texts = [np.empty(0, np.int64) for _ in pieces]
    with activity("retrieving chunks", len(asking), "queries"):
        places = index.search([pieces[i].query for i in asking], count) if asking else []
    for i, chosen in zip(asking, places, strict=True):
        texts[i] = joined([chunks[place] for place in chosen], between)
    return texts


def score_with_texts(
    model: Model,
    rows: Sequence[ScoredRow],
    pieces: Sequence[Piece],
    texts: Sequence[Ids],
    plain: Targets,
    tokens: int,
    begin: int | None,
    label: str,
) -> tuple[Float[Tensor, "tokens"], Bool[Tensor, "tokens"]]:
    """log p of all targets in nats with the text of their piece in front, and whether each is the most probable token.

    plain  the targets of the rows without retrieval, whose scores those of pieces without a text keep
    begin  a token that stays in front of a row that begins with it
    label  what the progress line shows
    """
    starts = np.concatenate([[0], np.cumsum([int(row.scored.sum()) for row in rows])])
    log_probs, greedy = plain.log_probs.clone(), plain.greedy.clone()
    changed = [i for i, text in enumerate(texts) if len(text)]
    augmented = [with_text(rows[pieces[i].row], pieces[i], texts[i], model.context, begin) for i in changed]
    if augmented:
        places = [
            starts[piece.row] + int(rows[piece.row].scored[: piece.start].sum()) + np.arange(row.scored.sum())
            for piece, row in zip([pieces[i] for i in changed], augmented, strict=True)
        ]
        at = torch.from_numpy(np.concatenate(places))
        scored = score_rows(model, augmented, tokens, "hidden", label)
        log_probs[at], greedy[at] = scored.log_probs, scored.greedy
    return log_probs, greedy
