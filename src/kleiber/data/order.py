"""The order of training samples, and random numbers that depend on a key alone, not on the version of a library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer, UInt64

ROUNDS = 4  # of a Feistel network; each changes both halves of a number
FEWEST_BITS = 6  # of a network: those of fewer bits reach too few of the permutations
SPAN = 4096  # places of an order that are computed at once
ONE = np.uint64(1)

Ids = Int[np.ndarray, "batch"]


def splitmix64(value: Integer[np.ndarray, "*shape"]) -> Integer[np.ndarray, "*shape"]:
    """Returns a fixed, well mixed bijection of 64-bit integers (Steele et al. 2014), equal on every machine."""
    x = value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(count: int, *key: int) -> Ids:
    """Returns a permutation of `count` numbers that depends on the key alone, not on the version of a library."""
    return np.argsort(random_bits(count, *key), kind="stable")


def random_bits(count: int, *key: int) -> UInt64[np.ndarray, "_"]:
    """Returns `count` different random numbers of 64 bits that depend on the key alone."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = splitmix64(state ^ np.array([part % (1 << 64)], np.uint64))
    return splitmix64(np.arange(count, dtype=np.uint64) ^ state)


class Permutation:
    """A random permutation of 0 to count - 1 that is computed place by place, without a list of all numbers.

    It is a Feistel network over the smallest number of bits that holds every number. Where the network leads to a
    number of `count` or above, that number is permuted in turn until one is below (cycle walking; Black & Rogaway 2002,
    Ciphers with Arbitrary Finite Domains). It depends on the key alone, and is equal on every machine.
    """

    def __init__(self, count: int, *key: int) -> None:
        bits = max(FEWEST_BITS, (count - 1).bit_length())
        self.count, self.low_bits, self.high_bits = count, np.uint64(bits // 2), np.uint64(bits - bits // 2)
        self.keys = random_bits(2 * ROUNDS, *key)

    def __call__(self, places: Ids) -> Ids:
        """Returns the numbers at these places."""
        if self.count == 1:  # where cycle walking would be the longest
            return np.zeros_like(places)
        numbers = self._network(places.astype(np.uint64))
        while (outside := numbers >= self.count).any():
            numbers[outside] = self._network(numbers[outside])
        return numbers.astype(np.int64)

    def _network(self, numbers: UInt64[np.ndarray, "_"]) -> UInt64[np.ndarray, "_"]:
        high, low = numbers >> self.low_bits, numbers & ((ONE << self.low_bits) - ONE)
        for first, second in self.keys.reshape(ROUNDS, 2):
            high = high ^ (splitmix64(low ^ first) & ((ONE << self.high_bits) - ONE))
            low = low ^ (splitmix64(high ^ second) & ((ONE << self.low_bits) - ONE))
        return (high << self.low_bits) | low


POISSON = 0x901550  # part of the key of Poisson samples, which differs from those of permutations


def poisson_sample(count: int, rate: float, seed: int, step: int) -> Ids:
    """Returns the numbers below `count` that a step draws, each with probability `rate` and independently."""
    threshold = np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
    return np.flatnonzero(random_bits(count, seed, POISSON, step) <= threshold)


@dataclass(frozen=True)
class Reading:
    """How far a stage has read its training samples.

    seed     of their order
    rows     samples of a step
    steps    steps that were taken, of which those that a rollback has undone are a part
    poisson  whether a step draws each sample independently, `rows` of them on average, as under DP-SGD
    """

    seed: int
    rows: int
    steps: int
    poisson: bool = False


class Order:
    """An infinite sequence of sample numbers: epoch after epoch, each a new permutation of all samples.

    A batch may contain samples of two epochs. Numbers are computed SPAN at a time, so memory and the time of the first
    batch do not depend on the number of samples.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("the training set has no samples: choose data with at least one training sample")
        self.num_samples, self.seed = num_samples, seed
        self._spans: dict[tuple[int, int], Ids] = {}

    def batch(self, step: int, batch_size: int) -> tuple[Ids, Ids]:
        """Returns the sample numbers and epochs of the global batch of optimizer step `step`, counted from 0."""
        return self.samples_at(np.arange(step * batch_size, (step + 1) * batch_size))

    def samples_at(self, positions: Ids) -> tuple[Ids, Ids]:
        """Returns the sample numbers and epochs at these positions of the infinite sequence."""
        epochs, places = np.divmod(positions, self.num_samples)
        spans, offsets = np.divmod(places, SPAN)
        ids = np.empty_like(places)
        for epoch, span in sorted(set(zip(epochs.tolist(), spans.tolist(), strict=True))):
            chosen = (epochs == epoch) & (spans == span)
            ids[chosen] = self._span(epoch, span)[offsets[chosen]]
        return ids, epochs

    def _span(self, epoch: int, span: int) -> Ids:
        """Returns the numbers of SPAN places of an epoch. The latest two are kept."""
        if (epoch, span) not in self._spans:
            places = np.arange(span * SPAN, min((span + 1) * SPAN, self.num_samples))
            latest = list(self._spans.items())[-1:]
            self._spans = {**dict(latest), (epoch, span): Permutation(self.num_samples, self.seed, epoch)(places)}
        return self._spans[epoch, span]
