"""Samples of unequal length as batches: padded on the right to a multiple of 8 of the longest row of the batch.

Which rows stand together is the sampler's business; a row's tokens do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from kleiber.data.sampler import permutation
from kleiber.types import Batch, Tokenizer

ALIGN = 8


def pad(
    rows: Sequence[Integer[np.ndarray, "_"]], limit: int, fill: int, ahead: int = 0
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """The rows in one tensor, and where it is real. Width: 8 n + ahead, the next above the longest, at most `limit`.

    ahead  1 for rows that are one longer than what the model reads
    """
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    assert longest <= limit, f"a row of {longest} tokens exceeds {limit}"
    width = min(limit, -(-max(1, longest - ahead) // ALIGN) * ALIGN + ahead)
    tokens = np.full((len(rows), width), fill, np.int64)
    for tokens_row, row in zip(tokens, rows, strict=True):
        tokens_row[: len(row)] = row
    return torch.from_numpy(tokens), torch.from_numpy(np.arange(width) < lengths[:, None])


def numbers(index: Int[np.ndarray, "batch"], epoch: int, count: int) -> Int[Tensor, "batch"]:
    """Sample numbers that count on through the epochs."""
    return torch.from_numpy(np.asarray(index + epoch * count, np.int64))


def sizes(
    starts: Int[np.ndarray, "rows"], kept: Int[np.ndarray, "rows"], flat: np.ndarray, tokenizer: Tokenizer
) -> Int[np.ndarray, "rows"]:
    """Bytes of text behind the first `kept` ids of each row that begins at `starts`."""
    total = np.concatenate([[0], np.cumsum(tokenizer.token_bytes[flat], dtype=np.int64)])
    return total[starts + kept] - total[starts]


@runtime_checkable
class Measured(Protocol):
    """Samples that know the length and the bytes of each: what is real, without padding."""

    lengths: Int[np.ndarray, "_"]
    sizes: Int[np.ndarray, "_"]

    def __len__(self) -> int: ...
    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch: ...


class Held:
    """Samples that are scored, in a fixed mixed order: the first ones of a sorted table would be of one class."""

    padded = True  # so some of its tokens, such as what begins a row, are no targets

    def __init__(self, samples: Measured, count: int | None = None) -> None:
        self.samples = samples
        self.order = permutation(len(samples), 0)[:count]
        self.num_tokens = int(samples.lengths[self.order].sum())
        self.num_bytes = int(samples.sizes[self.order].sum())

    def __len__(self) -> int:
        return len(self.order)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        assert epoch == 0, "held-out samples are read once"
        return self.samples.gather(self.order[index])

    def first(self, tokens: int | None) -> Held:
        """The first samples that have at most `tokens` tokens together, at least one; all for None."""
        if tokens is None or tokens >= self.num_tokens:
            return self
        total = np.cumsum(self.samples.lengths[self.order])
        return Held(self.samples, max(1, int(np.searchsorted(total, tokens, "right"))))
