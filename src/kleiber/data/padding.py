"""Rows of unequal length: files of them, batches padded on the right, and packing of several into one row.

Batches are padded to a multiple of 8 of their longest row. A row's tokens do not depend on the rows beside it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from kleiber.data.sampler import permutation
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Tokenizer

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
    """Samples with the length and the bytes of each: what is real, without padding."""

    lengths: Int[np.ndarray, "_"]
    sizes: Int[np.ndarray, "_"]

    def __len__(self) -> int: ...
    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch: ...
    def question(self, i: int) -> tuple[list[int], list[int]] | None: ...


class Held(HeldOut):
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

    def question(self, i: int) -> tuple[list[int], list[int]] | None:
        return self.samples.question(int(self.order[i]))

    def first(self, tokens: int | None) -> Held:
        """The first samples that have at most `tokens` tokens together, at least one; all for None."""
        if tokens is None or tokens >= self.num_tokens:
            return self
        total = np.cumsum(self.samples.lengths[self.order])
        return Held(self.samples, max(1, int(np.searchsorted(total, tokens, "right"))))


@dataclass(frozen=True)
class Ragged:
    """Row i is flat[starts[i] : starts[i + 1]]."""

    flat: Integer[np.ndarray, "_"]
    starts: Int[np.ndarray, "_"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> Integer[np.ndarray, "_"]:
        return self.flat[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, "_"]:
        return np.diff(self.starts)


def write(path: Path, rows: Iterable[Integer[np.ndarray, "_"]], kind: np.dtype) -> None:
    """Writes `path`.bin and `path`.starts.npy."""
    lengths = [0]
    with open(path.with_suffix(".bin"), "wb") as file:
        for row in rows:
            file.write(np.asarray(row).astype(kind).tobytes())
            lengths.append(len(row))
    np.save(path.with_suffix(".starts.npy"), np.cumsum(lengths, dtype=np.int64))


def read(path: Path, kind: np.dtype) -> Ragged:
    starts = np.load(path.with_suffix(".starts.npy"))
    # An empty file has no map.
    flat = np.memmap(path.with_suffix(".bin"), dtype=kind, mode="r") if starts[-1] else np.empty(0, kind)
    return Ragged(flat, starts)


def packed(lengths: Int[np.ndarray, "_"], room: int) -> list[list[int]]:
    """Samples by row, best fit with the longest first: each goes to the fullest row that still has room for it.

    At most 11/9 of the rows that are needed at best, plus one (Johnson 1974). Raises ValueError for a sample that no
    row can hold.
    """
    if len(lengths) and int(lengths.max()) > room:
        raise ValueError(f"a sample of {int(lengths.max())} tokens does not fit a row of {room}")
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for sample in np.argsort(-lengths, kind="stable").tolist():
        needed = int(lengths[sample])
        at = bisect.bisect_left(open_rows, (needed, -1))
        if at < len(open_rows):
            left, row = open_rows.pop(at)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(sample)
        bisect.insort(open_rows, (left - needed, row))
    return rows
