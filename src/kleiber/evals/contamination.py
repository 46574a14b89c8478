"""Contamination: how many items of an evaluation have words in common with the text that a model was trained on.

An item is contaminated if N consecutive words of one of its texts stand in the training text. Brown et al. 2020
(arXiv:2005.14165, appendix C) take 8 to 13 words, fewer the shorter the items are; N is 8 here, because the items that
small models are scored on are short. A text of fewer words, such as a sentence of BLiMP, must stand there as a whole,
and a text of less than four words is not looked up. Words are compared in lower case and without punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt64

from kleiber.data.evaluation_sets import DataSet
from kleiber.evals.evaluation import Score, Scores, Subject, proportion_score
from kleiber.records.progress import activity
from kleiber.types import Row
from kleiber.types.contracts import Samples
from kleiber.types.score import Metric
from kleiber.types.tokenizer import Tokenizer

METRIC = "contamination"
CONTAMINATION = {METRIC: Metric("share of items in the training text", "lower")}
N = 8  # words
FEWEST = 4  # words of a text that is looked up
TOKENS = 1 << 20  # decoded at once
OVERLAP = 4096  # characters of a piece that are read again, more than N words
BITS = 22  # of a hash that index the table of what may be looked for
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash of words
WORD = re.compile(r"[^\W_]+")

Hashes = UInt64[np.ndarray, "_"]


class Contamination:
    """Contamination of the tables of several evaluations, for which the training text is read once."""

    def __init__(self) -> None:
        self.sets: list[DataSet] = []
        self._scores: dict[str, Score] | None = None

    def add_to(self, scores: Mapping[str, Scores], subject: Subject) -> dict[str, Scores]:
        """The scores of data sets with `contamination`, those of tables and groups of tables of `sets`.

        Unchanged for a model whose training text is not known.
        """
        if subject.train is None or not self.sets or not len(subject.train):
            return dict(scores)
        if self._scores is None:
            items: dict[str, list[list[str]]] = {}
            for data in {data.name: data for data in self.sets}.values():
                texts = [item_texts(row) for row in data.rows(subject.limit)]
                items[data.name] = texts
                if data.group is not None:
                    items[data.group] = items.get(data.group, []) + texts
            self._scores = contamination(subject.train, subject.tokenizer, items)
        return {
            name: of_data | ({METRIC: self._scores[name]} if name in self._scores else {})
            for name, of_data in scores.items()
        }


def contamination(
    train: Samples, tokenizer: Tokenizer, items: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, Score]:
    """Share of the items of each data set that are contaminated, by its name; without data sets that have no items.

    train  training samples, whose text is decoded with `tokenizer` in chunks
    items  the texts of each item, by data set
    """
    items = {name: of_data for name, of_data in items.items() if of_data}
    wanted = _Wanted([text for of_data in items.values() for texts in of_data for text in texts])
    for text in training_text(train, tokenizer):
        wanted.find(text)
    flags, scores, start = wanted.flags(), {}, 0
    for name, of_data in items.items():
        shares = []
        for texts in of_data:
            shares.append(float(any(flags[start : start + len(texts)])))
            start += len(texts)
        scores[name] = proportion_score(shares)
    return scores


def item_texts(row: Row) -> list[str]:
    """All texts in a row of a table, those in lists and dictionaries included."""
    return list(_texts(list(row.values())))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


class _Wanted:
    """The n-grams of texts, which are looked for in another text that is read in pieces."""

    def __init__(self, texts: Sequence[str]) -> None:
        grams = [n_grams(word_hashes(text)) for text in texts]
        self.count = len(texts)
        self.sizes = sorted({size for size, _ in grams if size})
        self.hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in grams)]))
        self.of_texts = [np.searchsorted(self.hashes, hashes) for _, hashes in grams]
        self.hits = np.zeros(len(self.hashes), dtype=bool)
        self.possible = np.zeros(1 << BITS, dtype=bool)
        self.possible[_index(self.hashes)] = True
        self.rest = ""

    def find(self, text: str) -> None:
        """Looks for the n-grams in the next piece of the text. Pieces may end within a word."""
        text = self.rest + text.lower()
        words = WORD.findall(text)
        self._look_up(np.array([hash(token) for token in words], dtype=np.int64).astype(np.uint64))
        # The last words are read again with the next piece, which may continue them.
        end = text[-OVERLAP:]
        cut = re.search(r"\W", end) if len(text) > OVERLAP else None
        self.rest = end if cut is None else end[cut.end() :]

    def _look_up(self, words: Hashes) -> None:
        for size, hashes in rolling_hashes(words, max(self.sizes, default=0)):
            if size not in self.sizes:
                continue
            candidates = hashes[self.possible[_index(hashes)]]
            place = np.searchsorted(self.hashes, candidates)
            place[place == len(self.hashes)] = 0
            self.hits[place[self.hashes[place] == candidates]] = True

    def flags(self) -> list[bool]:
        """Whether each text has an n-gram that was found."""
        return [bool(self.hits[places].any()) for places in self.of_texts]


def _index(hashes: Hashes) -> Int[np.ndarray, "_"]:
    return (hashes >> np.uint64(64 - BITS)).astype(np.int64)


def word_hashes(text: str) -> Hashes:
    """A hash of each word of a text; equal words have equal hashes in one process."""
    return np.array([hash(token) for token in WORD.findall(text.lower())], dtype=np.int64).astype(np.uint64)


def rolling_hashes(words: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Yields k and the hashes of all k consecutive words, for k = 1 to `longest`."""
    hashes = words
    for size in range(1, min(longest, len(words)) + 1):
        if size > 1:
            hashes = hashes[:-1] * FACTOR + words[size - 1 :]
        yield size, hashes


def n_grams(words: Hashes) -> tuple[int, Hashes]:
    """Number of words, and hashes, of the n-grams of a text that are looked for; none of fewer than FEWEST words."""
    if len(words) < FEWEST:
        return 0, words[:0]
    return list(rolling_hashes(words, N))[-1]


def training_text(train: Samples, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the training text in pieces, with a line break where documents or samples are separated."""
    newline = tokenizer.encode("\n")[-1:]
    special = np.zeros(tokenizer.vocab_size, dtype=bool)
    special[[i for i in (*tokenizer.specials.values(), *tokenizer.separator.ids, tokenizer.eos) if i >= 0]] = True
    last = -1
    with activity("reading the training text for contamination", len(train), "samples") as work:
        size = max(1, TOKENS // max(1, len(train.gather(np.arange(1)).tokens[0]))) if len(train) else 1
        for start in range(0, len(train), size):
            index = np.arange(start, min(start + size, len(train)))
            batch = train.gather(index)
            pieces = []
            for part in (batch, batch.counterpart):
                if part is None:
                    continue
                tokens = part.tokens.numpy()
                kept = part.is_real.numpy().copy()
                if not train.padded:  # a window begins with the last token of the window before
                    kept[:, 0] &= tokens[:, 0] != np.concatenate([[last], tokens[:-1, -1]])
                    last = int(tokens[-1, -1])
                    pieces.append(tokens[kept])
                else:
                    pieces += [np.append(row[real], newline) for row, real in zip(tokens, kept, strict=True)]
            ids = np.concatenate(pieces)
            if newline:
                ids[special[ids]] = newline[0]
            yield tokenizer.decode(ids.tolist())
            work.done += len(index)
