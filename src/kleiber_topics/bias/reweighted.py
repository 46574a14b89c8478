"""Weights of training documents, under which two groups of words are equally frequent, alone or near other words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from kleiber.config import Quantity
from kleiber.data import TextCorpus, TextData, TrainWindows, cache_root, cached_folder, digest
from kleiber.records import read_array, write_array
from kleiber.types import Batch, DataPath, Json, Positive, Samples, Tokenizer, VocabSize
from kleiber_topics.bias.counterfactual import with_settings, word_swap
from kleiber_topics.bias.word_lists import read_words
from kleiber_topics.bias.word_swap import WORD, WordSwap

FORMAT = 1
Cell = tuple[str, int]  # the attribute of a document, and its group: 0, 1 or -1 for neither


@dataclass(frozen=True)
class Reweighted:
    """The text of `data`, whose training tokens have the weights of their documents in the loss.

    A document belongs to the group of which it has more words, and to the first attribute word in it. Within each
    attribute both groups get the same total weight, n / (2 n_group) per document, and the weights of all of them keep
    their sum n (Kamiran & Calders 2012, Knowledge and Information Systems 33, with equal groups as the target). A
    document of neither group, and an attribute that only one group has, keep a weight of 1.

    data        a single text of documents: data=text, builtin (of one domain) or occupations
    words       pairs of words of the two groups: `gender`, or a file with a pair a line
    names       whether given names count as words of the groups
    attributes  words within which the groups get equal weights: `occupations`, or a file with a word a line; null: the
                groups get equal weights over all documents
    max_weight  largest weight of a document; a larger one is cut
    tokenizer, vocab_size, separator, max_bytes  replace those of `data`; null: leave them as they are
    """

    weighs_tokens: ClassVar[bool] = True  # of the loss, see `Objective.reads_weights`

    data: TextData
    words: DataPath = "gender"
    names: bool = True
    attributes: DataPath | None = None
    max_weight: Positive = 10.0
    tokenizer: str | None = None
    vocab_size: VocabSize | None = None
    separator: str | list[str] | None = None
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Encodes the text that is not in the cache, and reads or computes the weights of its documents.

        Raises ValueError for several texts, documents without a separator, and text without a word of the lists.
        """
        text = with_settings(self.data, self.tokenizer, self.vocab_size, self.separator, self.max_bytes)
        corpus = text.prepare(context, cache)
        separator, train = corpus.tokenizer.separator.before, corpus.train
        if not isinstance(train, TrainWindows):
            raise ValueError(f"data.data={corpus.name} has several texts, and data=reweighted weighs those of one")
        if separator is None:
            raise ValueError("data.separator=none leaves no mark between documents, which data=reweighted weighs")
        swap = word_swap(self.words, self.names)
        attributes = frozenset(read_words(self.attributes, "data.attributes")) if self.attributes else frozenset[str]()
        ids = np.asarray(train.file.ids)
        starts = np.flatnonzero(ids == separator)
        lists = [sorted(swap.words), sorted(swap.names), sorted(attributes)]
        identity = {
            "format": FORMAT,
            "file": train.file.sha256,
            "tokenizer": corpus.tokenizer.data_hash,
            "lists": lists,
        }

        def build(folder: Path) -> Json:
            cells = document_cells(ids, starts, corpus.tokenizer, swap, attributes)
            write_array(folder / "weights.npy", document_weights(cells))
            return {"documents": len(cells), "of groups": sum(group >= 0 for _, group in cells)}

        folder, manifest = cached_folder(cache_root(cache), "document-weights", identity, build)
        if not manifest["of groups"]:
            raise ValueError(f"data.words={self.words}: no document of {corpus.name} has a word of the lists")
        weights = np.minimum(read_array(folder / "weights.npy"), self.max_weight)
        lengths = np.diff(np.append(starts, len(ids)))
        by_token = np.concatenate([np.ones(starts[0] if len(starts) else 0), np.repeat(weights, lengths)])
        return replace(
            corpus,
            config=f"{corpus.config}, reweighted".removeprefix(", "),
            hash=digest([corpus.hash, lists, self.max_weight]),
            train=WeightedWindows(train, by_token.astype(np.float32)),
        )


class WeightedWindows(Samples):
    """Windows of text whose tokens have weights as targets."""

    def __init__(self, windows: TrainWindows, weights: Float[np.ndarray, "time"]) -> None:
        self.windows = windows
        self.num_tokens, self.num_bytes = windows.num_tokens, windows.num_bytes
        self.weights = np.lib.stride_tricks.sliding_window_view(weights, windows.context + 1)

    def __len__(self) -> int:
        return len(self.windows)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        batch = self.windows.gather(index, epoch)
        batch.weights = torch.from_numpy(self.weights[self.windows.starts(index, epoch)])
        return batch


def document_cells(
    ids: np.ndarray, starts: Int[np.ndarray, "_"], tokenizer: Tokenizer, swap: WordSwap, attributes: frozenset[str]
) -> list[Cell]:
    """Attribute and group of each document.

    starts  places of the separators in front of the documents
    """
    cells = []
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)], strict=True):
        text = tokenizer.decode(ids[begin + 1 : end].tolist())
        first, second = swap.counts(text)
        group = -1 if first == second else int(second > first)
        tokens = (token.lower() for token in WORD.findall(text))
        attribute = next((token for token in tokens if token in attributes), "")
        cells.append((attribute, group))
    return cells


def document_weights(cells: Sequence[Cell]) -> Float[np.ndarray, "_"]:
    """The weight of each document (see `Reweighted`)."""
    counts = Counter(cells)

    def weight(cell: Cell) -> float:
        attribute, group = cell
        other = counts[attribute, 1 - group]
        return 1.0 if group < 0 or not other else (counts[cell] + other) / (2 * counts[cell])

    return np.array([weight(cell) for cell in cells], dtype=np.float64)
