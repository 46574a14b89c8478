"""Samples made of others: a mixture by fractions of tokens, samples that are spread over a text, and those read so far.

A mixture has its fractions exactly in every block of samples. All samples of texts have the same number of tokens, so
fractions of tokens are fractions of samples. The sample at a position is a function of seed and position, so a resumed
run needs only its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int

from kleiber.data.batches import ConcatSamples, SamplesWithOrder, order_of
from kleiber.data.order import SPAN, Order, Reading, permutation, poisson_sample
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples

SMALLEST_BLOCK, LARGEST_BLOCK = 20, 1000


def block_counts(fractions: Sequence[float]) -> list[int]:
    """Returns the samples of each part in a block.

    The block is the shortest of 20 to 1000 samples in which all fractions are whole numbers of samples. Where there is
    none, it has 1000 samples and the largest remainders are rounded up, with an error below 0.001.
    """
    for block in range(SMALLEST_BLOCK, LARGEST_BLOCK + 1):
        if all(abs(block * fraction - round(block * fraction)) < 1e-9 * block for fraction in fractions):
            return [round(block * fraction) for fraction in fractions]
    exact = [LARGEST_BLOCK * Fraction(fraction) for fraction in fractions]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: LARGEST_BLOCK - sum(counts)]:
        counts[i] += 1
    return counts


class Mixture(ConcatSamples):
    """Samples of several parts, each with its fraction: a small part repeats during the first epoch of a large one.

    Raises ValueError for fractions that do not sum to 1, and for a positive fraction too small for a block of 1000.
    """

    def __init__(self, parts: Sequence[Samples], fractions: Sequence[float]) -> None:
        assert len(parts) == len(fractions)
        if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
            raise ValueError(f"data.parts: the fractions {list(fractions)} must be >= 0 and sum to 1")
        self.counts = block_counts(fractions)
        for fraction, count in zip(fractions, self.counts, strict=True):
            if fraction > 0 and count == 0:
                raise ValueError(f"data.parts: the fraction {fraction:g} must be 0 or >= {1 / LARGEST_BLOCK:g}")
        super().__init__(parts)

    def order(self, seed: int) -> MixtureOrder:
        return MixtureOrder([len(part) for part in self.parts], self.counts, seed)


def fractions_of(samples: Samples) -> list[tuple[Samples, float]]:
    """Returns the parts of a mixture with their fractions, without parts of fraction 0; other samples are one part."""
    if not isinstance(samples, Mixture):
        return [(samples, 1.0)]
    parts = zip(samples.parts, samples.counts, strict=True)
    return [(part, count / sum(samples.counts)) for part, count in parts if count]


class MixtureOrder(Order):
    """The order of a mixture. Position p is in block b = p // block size; a permutation of (seed, b) assigns its slots.

    The j-th slot of a part in block b gets sample b * count + j of the order of that part.
    """

    def __init__(self, sizes: list[int], counts: list[int], seed: int) -> None:
        super().__init__(sum(sizes), seed)
        self.block = sum(counts)
        self._counts = np.array(counts)
        self._starts = np.cumsum([0, *sizes])
        self._orders = [Order(size, 1_000_003 * seed + part) for part, size in enumerate(sizes)]
        self._owner = np.repeat(np.arange(len(counts)), counts)  # the part of each number that the permutation assigns
        self._first = np.cumsum([0, *counts])

    def samples_at(
        self, positions: Int[np.ndarray, "batch"]
    ) -> tuple[Int[np.ndarray, "batch"], Int[np.ndarray, "batch"]]:
        """Returns the sample numbers and epochs at these positions of the infinite sequence."""
        blocks, slots = np.divmod(positions, self.block)
        assigned = np.empty_like(positions)
        for block in np.unique(blocks):
            in_block = blocks == block
            assigned[in_block] = permutation(self.block, self.seed, int(block))[slots[in_block]]
        owner = self._owner[assigned]
        places = blocks * self._counts[owner] + assigned - self._first[owner]
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for part, order in enumerate(self._orders):
            in_part = owner == part
            ids[in_part], epochs[in_part] = order.samples_at(places[in_part])
            ids[in_part] += self._starts[part]
        return ids, epochs

    def num_read(self, positions: int) -> Int[np.ndarray, "_"]:
        """Returns the number of distinct samples of each part at the first `positions` positions."""
        blocks, slots = divmod(positions, self.block)
        in_last_block = self._owner[permutation(self.block, self.seed, blocks)[:slots]]
        places = blocks * self._counts + np.bincount(in_last_block, minlength=len(self._counts))
        return np.minimum(places, np.diff(self._starts))


class ChosenSamples(Samples):
    """The samples of these numbers, as they are in the first epoch."""

    def __init__(self, samples: Samples, numbers: Int[np.ndarray, "_"]) -> None:
        self.samples, self.numbers, self.padded = samples, numbers, samples.padded
        self.num_tokens = samples.num_tokens * len(numbers) // len(samples)
        self.num_bytes = samples.num_bytes * len(numbers) // len(samples)

    def __len__(self) -> int:
        return len(self.numbers)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        assert epoch == 0, "the samples are those of the first epoch"
        return self.samples.gather(self.numbers[index])


def is_read(train: Samples, reading: Reading | None) -> Bool[np.ndarray, "_"]:
    """Whether a stage has read each of its training samples.

    Where that is not known, and before the first step, these are all samples but those of parts of fraction 0.
    """
    count = len(train)
    if reading is None or not reading.steps:
        shares = np.array(train.counts) if isinstance(train, Mixture) else np.ones(1)
        sizes = np.diff(train.starts) if isinstance(train, Mixture) else count
        return np.repeat(shares > 0, sizes)
    flags = np.zeros(count, bool)
    if reading.poisson:
        for step in range(reading.steps):
            flags[poisson_sample(count, reading.rows / count, reading.seed, step)] = True
        return flags
    order, places = order_of(train, reading.seed), reading.rows * reading.steps
    if places >= count and not isinstance(train, SamplesWithOrder):
        return ~flags
    for start in range(0, places, SPAN):
        flags[order.samples_at(np.arange(start, min(start + SPAN, places)))[0]] = True
    return flags


def parts_read(train: Samples, reading: Reading | None) -> list[Samples]:
    """The samples that a stage has read of each part of its training samples; they are one part where they have none.

    reading  None where it is not known: all samples but those of parts of fraction 0
    """
    flags, parts = is_read(train, reading), train.parts if isinstance(train, ConcatSamples) else [train]
    of_parts = np.split(flags, np.cumsum([len(part) for part in parts])[:-1])
    return [
        part if of_part.all() else ChosenSamples(part, np.flatnonzero(of_part))
        for part, of_part in zip(parts, of_parts, strict=True)
    ]


class SpreadSamples(Samples):
    """A subset of `count` samples at equal distances, the same in every epoch."""

    def __init__(self, samples: Samples, count: int) -> None:
        self.samples, self.count = samples, count
        self.num_tokens = samples.num_tokens * count // len(samples)
        self.num_bytes = samples.num_bytes * count // len(samples)

    def __len__(self) -> int:
        return self.count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        batch = self.samples.gather(np.asarray(index, np.int64) * len(self.samples) // self.count)
        if batch.samples is None:
            return batch
        return replace(batch, samples=batch.samples + epoch * len(self.samples))  # read again, but masked anew
