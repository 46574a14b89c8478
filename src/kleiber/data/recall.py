"""Synthetic multi-query associative recall (Arora et al. 2023, arXiv:2312.04927).

A row contains pairs of a key and a value, then the keys again in another order, each followed by its value. Only these
second values are targets. A model can predict them only from earlier tokens of the row, so the loss measures what its
sequence layers can carry over distances of up to a row. Rows are computed from seed, sample number and epoch: there is
no file, and training never repeats a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Int

from kleiber.config.stages import Quantity
from kleiber.data.batches import splitmix64
from kleiber.data.cache import digest
from kleiber.data.corpus import TextCorpus, parse_bytes
from kleiber.data.tokenizers import Bytes
from kleiber.types import Count, Seed
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut

FIRST_VALUE = 128  # ids 0 to 127 are keys, 128 to 255 values
FIRST_HELD_OUT = 1 << 40  # the first sample number of validation


@dataclass(frozen=True)
class Recall:
    """Settings of associative recall, with rows of context + 1 tokens: all pairs of a key and
    its value, then the same pairs again in another order until the row is full.

    pairs      of a row; null: as many as fit, at most `keys`
    keys       number of different keys, at most 128; a row contains a key once
    values     number of different values, at most 128; guessing has a loss of ln(values) nats per target
    rows       training rows of one epoch; another epoch has other rows
    max_bytes  of the training rows of one epoch, where each token is a byte; null: no limit
    """

    pairs: Count | None = None
    keys: Annotated[int, Ge(2), Le(FIRST_VALUE)] = 64
    values: Annotated[int, Ge(2), Le(FIRST_VALUE)] = 64
    rows: Count = 100_000
    seed: Seed = 0
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Computes the samples. Raises ValueError for more pairs than fit a row, or than there are keys."""
        pairs = min((context + 1) // 4, self.keys) if self.pairs is None else self.pairs
        if not 1 <= pairs <= self.keys or 4 * pairs > context + 1:
            raise ValueError(
                f"data.pairs={pairs} must be >= 1, <= data.keys={self.keys}, and <= {(context + 1) // 4}, since 4 "
                f"tokens per pair must fit into model.context={context}: change one of these keys"
            )
        limit = parse_bytes(self.max_bytes)
        rows = self.rows if limit is None else max(1, min(self.rows, limit // (context + 1)))
        train = RecallRows(self, context, pairs, rows, 0)
        held_out = RecallRows(self, context, pairs, max(1, rows // 10), FIRST_HELD_OUT)
        name = digest(["recall", 1, context, pairs, self.keys, self.values, rows, self.seed])
        return TextCorpus("recall", f"{pairs} pairs", name, Bytes(), train, {"recall": held_out})


class RecallRows(HeldOut):
    """Samples of one split. num_tokens and num_bytes count `context` tokens a row, and each token is a byte."""

    def __init__(self, source: Recall, context: int, pairs: int, count: int, start: int) -> None:
        self.source, self.context, self.pairs, self.count, self.start = source, context, pairs, count, start
        self.num_tokens = self.num_bytes = count * context

    def __len__(self) -> int:
        return self.count

    def first(self, tokens: int | None) -> RecallRows:
        rows = self.count if tokens is None else min(self.count, max(1, tokens // self.context))
        return RecallRows(self.source, self.context, self.pairs, rows, self.start)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns rows of pairs and repeated pairs; weights are 1 on the values of the repeated pairs."""
        samples = np.asarray(index, np.int64) + self.start + epoch * self.count
        keys = self._permutations(samples, 0, self.source.keys)[:, : self.pairs]
        values = FIRST_VALUE + self._random(samples, 1, self.pairs) % np.uint64(self.source.values)
        order = self._permutations(samples, 2, self.pairs)
        pairs = np.stack([keys, values.astype(np.int64)], 2)
        repeated = np.take_along_axis(pairs, order[:, :, None], 1)
        used = 4 * self.pairs
        tokens = np.full((len(samples), self.context + 1), Bytes.eos, np.int64)
        tokens[:, :used] = np.concatenate([pairs, repeated], 1).reshape(len(samples), used)
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, 2 * self.pairs + 1 : used : 2] = 1.0
        return Batch(torch.from_numpy(tokens), weights=torch.from_numpy(weights), samples=torch.from_numpy(samples))

    def _random(self, samples: Int[np.ndarray, "batch"], stream: int, count: int) -> np.ndarray:
        """Returns random 64-bit numbers of shape (samples, count), which depend on seed, stream and sample number."""
        key = splitmix64(np.array([self.source.seed * 8 + stream], np.uint64))
        rows = splitmix64(samples.astype(np.uint64) ^ key)
        return splitmix64(rows[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))

    def _permutations(self, samples: Int[np.ndarray, "batch"], stream: int, count: int) -> np.ndarray:
        """Returns a permutation of 0 to count - 1 for each sample."""
        return np.argsort(self._random(samples, stream, count), axis=1, kind="stable").astype(np.int64)
