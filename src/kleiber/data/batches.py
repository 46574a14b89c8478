"""Batches of samples: padding, packing and concatenation of their rows.

The order (`order`) is a pure function of seed and step for any number of ranks and micro-batches, so a run resumes from
the number of its next step. The training process gathers batches itself, without workers: a gather takes 15
microseconds. Rows are padded on the right to a multiple of 8 of the longest row, so a row's tokens do not depend on its
neighbors.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from kleiber.data.order import Ids, Order, permutation
from kleiber.types import Row
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Samples
from kleiber.types.tokenizer import Tokenizer

ALIGN = 8


@runtime_checkable
class SamplesWithOrder(Protocol):
    """Samples that define their order themselves, such as a mixture that keeps its fractions in every block."""

    def order(self, seed: int) -> Order: ...


@runtime_checkable
class SamplesInOrder(Protocol):
    """Samples that can be read in their order alone, such as those of a text that is encoded on the way."""

    def batches(self, seed: int, start_step: int, batch_samples: int, rank: int, world: int) -> Iterator[Batch]: ...


def stream(
    samples: Samples, seed: int, start_step: int = 0, batch_samples: int = 1, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Yields this rank's rows of the global batch of each step, infinitely, starting at `start_step`.

    Rank r has rows r * batch / world to (r + 1) * batch / world, so the global batch is the same for every number of
    ranks. Raises ValueError when a batch has fewer samples than there are ranks.
    """
    if batch_samples < world:
        raise ValueError(f"a batch of {batch_samples} samples is too small for {world} ranks: raise batch.tokens")
    if isinstance(samples, SamplesInOrder):
        yield from samples.batches(seed, start_step, batch_samples, rank, world)
    order = order_of(samples, seed)
    rank_rows = slice(rank * batch_samples // world, (rank + 1) * batch_samples // world)
    step = start_step
    while True:
        ids, epochs = order.batch(step, batch_samples)
        yield gather(samples, ids[rank_rows], epochs[rank_rows])
        step += 1


def repeat_each(batches: Iterator[Batch], times: int) -> Iterator[Batch]:
    """Yields each batch so many times in a row."""
    return (batch for batch in batches for _ in range(times))


def order_of(samples: Samples, seed: int) -> Order:
    """Returns the order in which the samples are read."""
    return samples.order(seed) if isinstance(samples, SamplesWithOrder) else Order(len(samples), seed)


def gather(samples: Samples, ids: Ids, epochs: Ids) -> Batch:
    """Returns one batch of the samples `ids`, each from its own epoch, in that order."""
    distinct = np.unique(epochs)
    if len(distinct) == 1:
        return samples.gather(ids, int(distinct[0]))
    rows = [np.flatnonzero(epochs == epoch) for epoch in distinct]
    parts = [samples.gather(ids[r], int(epoch)) for r, epoch in zip(rows, distinct, strict=True)]
    return interleave(parts, rows)


def evaluation_batches(
    samples: HeldOut, rows: int, tokens: int | None = None, rank: int = 0, world: int = 1, equal: bool = False
) -> Iterator[Batch]:
    """Yields held-out samples in a fixed order, in batches of at most `rows`: all, or the first `tokens` targets.

    Each rank gets a contiguous share. Shares differ by at most one sample, so sum over ranks before dividing. The text
    behind the samples has `samples.first(tokens).num_bytes` bytes.

    equal  whether all ranks get the same number of batches, for which `rows` must be at least 2
    """
    chosen = samples.first(tokens)
    begin, end = rank * len(chosen) // world, (rank + 1) * len(chosen) // world
    if equal:
        assert rows > 1 or world == 1, "a rank with one sample less than others has too few for batches of one"
        for part in np.array_split(np.arange(begin, end), -(-len(chosen) // (world * rows))):
            yield chosen.gather(part)
        return
    for start in range(begin, end, rows):
        yield chosen.gather(np.arange(start, min(start + rows, end)))


class ConcatSamples(Samples):
    """Several sets of samples as one: the first sample of the second set follows the last one of the first."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.num_tokens = sum(part.num_tokens for part in parts)
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns the samples of these numbers, counted over all parts, in that order."""
        owner = np.searchsorted(self.starts, index, side="right") - 1
        owners = np.unique(owner)
        rows = [np.flatnonzero(owner == part) for part in owners]
        batches = [self.parts[p].gather(index[r] - self.starts[p], epoch) for p, r in zip(owners, rows, strict=True)]
        return replace(interleave(batches, rows), samples=sample_numbers(index, epoch, len(self)))


def interleave(parts: list[Batch], rows: list[Int[np.ndarray, "_"]]) -> Batch:
    """Returns one batch in which row i of part p is row rows[p][i]. Shorter rows are padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate(rows), kind="stable")
    parts = _same_form(parts)
    counterparts = [part.counterpart for part in parts if part.counterpart is not None]
    tokens = torch.from_numpy(np.concatenate([part.tokens for part in parts])[order])  # no thread pool
    names = [field.name for field in fields(Batch) if field.name not in ("tokens", "counterpart")]
    joined = {name: _concatenate([vars(part)[name] for part in parts], order) for name in names}
    return Batch(tokens, **joined, counterpart=interleave(counterparts, rows) if counterparts else None)


def _concatenate(values: list[Tensor | None], order: Int[np.ndarray, "_"]) -> Tensor | None:
    present = [value for value in values if value is not None]
    assert len(present) in (0, len(values)), "some parts of a batch lack a field that others have"
    return torch.from_numpy(np.concatenate(present)[order]) if present else None


def _same_form(parts: list[Batch]) -> list[Batch]:
    """Returns the batches in one width, with `real` and `weights` filled in where only some batches have them."""
    width = max(part.tokens.shape[1] for part in parts)
    uneven = any(part.tokens.shape[1] < width for part in parts)
    if uneven or any(part.real is not None for part in parts):
        parts = [replace(part, real=_or_ones(part.real, part.tokens, torch.bool)) for part in parts]
    if any(part.weights is not None for part in parts):
        parts = [replace(part, weights=_or_ones(part.weights, part.tokens, torch.float32)) for part in parts]
    return [_widen(part, width) for part in parts] if uneven else parts


def _or_ones(values: Tensor | None, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ones_like(tokens, dtype=dtype) if values is None else values


def _widen(part: Batch, width: int) -> Batch:
    def widen(values: Tensor) -> Tensor:
        return torch.from_numpy(np.pad(values.numpy(), ((0, 0), (0, width - values.shape[1]))))

    segments = None if part.segments is None else widen(part.segments)
    real = None if part.real is None else widen(part.real)
    weights = None if part.weights is None else widen(part.weights)
    return replace(part, tokens=widen(part.tokens), real=real, weights=weights, segments=segments)


def pad(
    rows: Sequence[Integer[np.ndarray, "_"]], limit: int, fill: int, ahead: int = 0
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Returns the rows in one tensor, and a mask that is False on padding.

    The width is `ahead` plus the multiple of 8 that the longest row needs, and at most `limit`.

    fill   the id of padding
    ahead  1 for rows that are one token longer than what the model reads
    """
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    assert longest <= limit, f"a row of {longest} tokens exceeds {limit}"
    width = min(limit, -(-max(1, longest - ahead) // ALIGN) * ALIGN + ahead)
    tokens = np.full((len(rows), width), fill, np.int64)
    for tokens_row, row in zip(tokens, rows, strict=True):
        tokens_row[: len(row)] = row
    return torch.from_numpy(tokens), torch.from_numpy(np.arange(width) < lengths[:, None])


def sample_numbers(index: Int[np.ndarray, "batch"], epoch: int, count: int) -> Int[Tensor, "batch"]:
    """Returns sample numbers that count on through the epochs, of `count` samples each."""
    return torch.from_numpy(np.asarray(index + epoch * count, np.int64))


def text_bytes(
    starts: Int[np.ndarray, "rows"], lengths: Int[np.ndarray, "rows"], ids: np.ndarray, tokenizer: Tokenizer
) -> Int[np.ndarray, "rows"]:
    """Returns the bytes of text behind ids[start : start + length], for each start and length."""
    total = np.concatenate([[0], np.cumsum(tokenizer.token_bytes[ids], dtype=np.int64)])
    return total[starts + lengths] - total[starts]


def pack_rows(lengths: Int[np.ndarray, "_"], room: int) -> list[list[int]]:
    """Returns the sample numbers of each packed row, by best fit with the longest samples first.

    Each sample goes to the fullest row that still has room for it. The number of rows is at most 11/9 of the optimum
    plus one (Johnson 1974). Raises ValueError for a sample longer than `room`.
    """
    if len(lengths) and int(lengths.max()) > room:
        raise ValueError(f"a sample of {int(lengths.max())} tokens does not fit a row of {room}")
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted
    for sample in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sample])
        place = bisect.bisect_left(open_rows, (length, -1))
        if place < len(open_rows):
            left, row = open_rows.pop(place)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(sample)
        bisect.insort(open_rows, (left - length, row))
    return rows


class RowSamples(Samples):
    """Samples of unequal length, one to a row of a batch.

    lengths  tokens of each sample, without padding
    sizes    bytes of text of each sample
    """

    padded = True  # some tokens, such as the one that begins a row, are not targets
    lengths: Int[np.ndarray, "_"]
    sizes: Int[np.ndarray, "_"]

    def count_tokens(self) -> None:
        """Sets num_tokens and num_bytes to the sums over the samples."""
        self.num_tokens, self.num_bytes = int(self.lengths.sum()), int(self.sizes.sum())


class HeldOutRows(HeldOut):
    """Samples to score, in a fixed random order: the first samples of a sorted table would all be of one class."""

    padded = True

    def __init__(self, samples: RowSamples, count: int | None = None) -> None:
        self.samples, self.sides = samples, samples.sides
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

    def columns(self, i: int) -> Row:
        return self.samples.columns(int(self.order[i]))

    def first(self, tokens: int | None) -> HeldOutRows:
        """Returns the first samples that have at most `tokens` tokens together, at least one; all for None."""
        if tokens is None or tokens >= self.num_tokens:
            return self
        total = np.cumsum(self.samples.lengths[self.order])
        return HeldOutRows(self.samples, max(1, int(np.searchsorted(total, tokens, "right"))))
