"""Retrieval while a model generates: text of a datastore in front of the prompt, or neighbors in every prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kleiber.config import Quantity, quantity
from kleiber.data import ConcatSamples, open_training_text
from kleiber.models import Adjust
from kleiber.types import Count, Model, Tokenizer
from kleiber_topics.retrieval.datastore import StoreText, choose_windows, cut_chunks
from kleiber_topics.retrieval.in_context import BM25Index, DenseIndex, joined
from kleiber_topics.retrieval.knn import Datastore, Setting, build_datastore, choose_setting, with_neighbors
from kleiber_topics.retrieval.neighbors import nearest
from kleiber_topics.retrieval.scoring import ScoredRow, score_rows

PASS = 4096  # most tokens of a forward pass
NEIGHBORS = 32
HELD_BACK = 8  # a window of this many is looked up in the others, to choose how neighbors are mixed in


@dataclass(frozen=True)
class Lookup:
    """A datastore for generation.

    store   names or paths of text, whose training split is read
    method  "bm25", "dense": text in front of the prompt; "knn": neighbors are mixed into every prediction
    tokens  of the datastore, drawn at random from its text
    chunks  in front of the prompt
    """

    store: Sequence[str]
    method: str = "bm25"
    tokens: Quantity = "256K"
    chunks: Count = 1

    def __post_init__(self) -> None:
        if self.method not in ("bm25", "dense", "knn"):
            raise ValueError(f"retrieval={self.method} must be bm25, dense or knn")

    def read(self, tokenizer: Tokenizer, context: int) -> StoreText:
        """The text of the datastore. Raises ValueError for a name or path that cannot be read."""
        try:
            parts = [part for name in self.store for part in open_training_text(name, tokenizer, context)]
        except ValueError as error:
            raise ValueError(str(error).replace("data.path=", "datastore ", 1)) from error
        samples = parts[0] if len(parts) == 1 else ConcatSamples(parts)
        return choose_windows(samples, [round(quantity(self.tokens))], None, np.empty(0, np.uint64), False)

    def augment(self, model: Model, tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], Adjust | None]:
        """The prompt with retrieved text in front, or the prompt and what mixes neighbors into each prediction."""
        if self.method == "knn":
            return ids, neighbor_mixture(model, tokenizer, self)
        return with_retrieved_text(model, tokenizer, ids, self), None


def with_retrieved_text(model: Model, tokenizer: Tokenizer, prompt: Sequence[int], lookup: Lookup) -> list[int]:
    """The ids of a prompt with the chunks that fit it best in front, each followed by a line break.

    A chunk has at most a quarter of the context, and 256 tokens. The prompt is unchanged where nothing fits it.
    """
    length = min(256, max(1, model.context // 4))
    chunks = cut_chunks(lookup.read(tokenizer, model.context), tokenizer, length).ids
    index = BM25Index(chunks, tokenizer) if lookup.method == "bm25" else DenseIndex(model, chunks, "torch", PASS)
    head = 1 if tokenizer.begin != tokenizer.eos and prompt[0] == tokenizer.begin else 0
    (places,) = index.search([np.array(prompt[head:] or prompt, np.int64)], lookup.chunks)
    text = joined([chunks[place] for place in places], np.array(tokenizer.encode("\n"), np.int64))
    return [*prompt[:head], *text.tolist(), *prompt[head:]]


def neighbor_mixture(model: Model, tokenizer: Tokenizer, lookup: Lookup) -> Adjust:
    """Mixes the neighbors of each hidden state into its prediction (kNN-LM, see `knn`).

    Interpolation and temperature are those of least loss for an eighth of the store's windows, looked up in the others.
    """
    text = lookup.read(tokenizer, model.context)
    held_back = [window for i, window in enumerate(text.windows) if i % HELD_BACK == 0]
    others = [window for i, window in enumerate(text.windows) if i % HELD_BACK] or held_back
    store = build_datastore(model, others, [len(others)], "hidden", PASS)
    rows = [ScoredRow(window.ids, np.arange(len(window.ids)) > 0, i) for i, window in enumerate(held_back)]
    targets = score_rows(model, rows, PASS, "hidden", "looking up text of the datastore in itself")
    near = nearest(targets.keys, store.keys, NEIGHBORS)
    setting = choose_setting([with_neighbors(store, near, targets.log_probs, targets.ids)], None, None)
    return mixture(store, setting)


def mixture(store: Datastore, setting: Setting) -> Adjust:
    """Logits of the mixture of a model and the neighbors in a store."""

    def adjust(hidden: Tensor, logits: Tensor) -> Tensor:
        """Log-probabilities of the mixture, which are logits too."""
        near = nearest(hidden.float().cpu(), store.keys, NEIGHBORS)
        weights = (-near.distances.double() / setting.temperature).softmax(1) * setting.interpolation
        probabilities = logits.double().softmax(1) * (1 - setting.interpolation)
        values = store.values[near.entries].to(logits.device)
        return probabilities.scatter_add(1, values, weights.to(logits.device)).log().float()

    return adjust
