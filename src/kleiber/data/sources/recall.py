"""Associative recall, made up: rows of key-value pairs, then the keys again in another order, each asking for its
value.

Nothing but looking back can answer, so it measures what a mixing layer can carry, at every distance at once. Only the
answers are targets. Rows are arithmetic on (seed, sample, epoch): there is no file, and training never repeats a row.
Arora et al. 2023, arXiv:2312.04927 (multi-query associative recall).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from kleiber.data.cache import digest
from kleiber.data.corpus import TextCorpus, as_bytes
from kleiber.data.sampler import scramble
from kleiber.data.tokenizers.byte_level import Bytes
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut

FIRST_VALUE = 128  # ids below are keys, from here on values: all of them bytes
HELD_OUT = 1 << 40  # where the sample numbers of validation begin


@dataclass(frozen=True)
class Recall:
    """A corpus of rows of `context` + 1 tokens: pairs key value ..., then queries key value ....

    pairs   of a row; null: as many as fit with a query for each, at most `keys`
    keys    to choose from, without repetition in a row; at most 128
    values  to choose from; a guess costs ln(values) nats; at most 128
    rows    training rows of one epoch, none of which comes again in another
    max_bytes  of one epoch, a row being context + 1 of them; null: as many as there are rows
    """

    pairs: int | None = None
    keys: int = 64
    values: int = 64
    rows: int = 100_000
    seed: int = 0
    max_bytes: int | float | str | None = None

    def __post_init__(self) -> None:
        for name, value in (("keys", self.keys), ("values", self.values)):
            if not 2 <= value <= FIRST_VALUE:
                raise ValueError(f"data.{name}={value}: write a number from 2 to {FIRST_VALUE}")
        if self.rows < 1:
            raise ValueError(f"data.rows={self.rows}: write a number from 1")

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Raises ValueError where a row has no room for the pairs and their queries, or there are too few keys."""
        pairs = min((context + 1) // 4, self.keys) if self.pairs is None else self.pairs
        if not 1 <= pairs <= self.keys or 4 * pairs > context + 1:
            raise ValueError(
                f"data.pairs={pairs} with data.keys={self.keys} and model.context={context}: a row holds one pair at "
                f"least, {(context + 1) // 4} at most, and no key twice"
            )
        limit = as_bytes(self.max_bytes)
        rows = self.rows if limit is None else max(1, min(self.rows, limit // (context + 1)))
        train = Rows(self, context, pairs, rows, 0)
        held_out = Rows(self, context, pairs, max(1, rows // 10), HELD_OUT)
        name = digest(["recall", 1, context, pairs, self.keys, self.values, rows, self.seed])
        return TextCorpus("recall", f"{pairs} pairs", name, Bytes(), train, {"recall": held_out})


class Rows(HeldOut):
    """Samples of one split. `num_tokens` counts targets, as everywhere, and a token is a byte."""

    def __init__(self, source: Recall, context: int, pairs: int, count: int, start: int) -> None:
        self.source, self.context, self.pairs, self.count, self.start = source, context, pairs, count, start
        self.num_tokens = self.num_bytes = count * context

    def __len__(self) -> int:
        return self.count

    def first(self, tokens: int | None) -> Rows:
        rows = self.count if tokens is None else min(self.count, max(1, tokens // self.context))
        return Rows(self.source, self.context, self.pairs, rows, self.start)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Rows of pairs and queries; weights are 1 on the answers."""
        samples = np.asarray(index, np.int64) + self.start + epoch * self.count
        keys = self._ranked(samples, 0, self.source.keys)[:, : self.pairs]
        values = FIRST_VALUE + self._draws(samples, 1, self.pairs) % np.uint64(self.source.values)
        order = self._ranked(samples, 2, self.pairs)
        shown = np.stack([keys, values.astype(np.int64)], 2).reshape(len(samples), -1)
        again = np.stack([np.take_along_axis(keys, order, 1), np.take_along_axis(values.astype(np.int64), order, 1)], 2)
        used = 4 * self.pairs
        tokens = np.full((len(samples), self.context + 1), Bytes.eos, np.int64)
        tokens[:, :used] = np.concatenate([shown, again.reshape(len(samples), -1)], 1)
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, 2 * self.pairs + 1 : used : 2] = 1.0
        return Batch(torch.from_numpy(tokens), weights=torch.from_numpy(weights), samples=torch.from_numpy(samples))

    def _draws(self, samples: Int[np.ndarray, "batch"], stream: int, count: int) -> np.ndarray:
        """Random 64-bit numbers of each sample, (samples, count)."""
        key = scramble(np.array([self.source.seed * 8 + stream], np.uint64))
        rows = scramble(samples.astype(np.uint64) ^ key)
        return scramble(rows[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))

    def _ranked(self, samples: Int[np.ndarray, "batch"], stream: int, count: int) -> np.ndarray:
        """A permutation of 0..count - 1 for each sample."""
        return np.argsort(self._draws(samples, stream, count), axis=1, kind="stable").astype(np.int64)
