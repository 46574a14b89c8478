"""The order of samples: a pure function of (seed, step), whatever the ranks, micro-batches or earlier runs.

There is no state: a run resumes by saying which step comes next. No workers: one gather costs 15 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer

from kleiber.data.windows import interleave
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Samples

Ids = Int[np.ndarray, "batch"]


def scramble(value: Integer[np.ndarray, "*shape"]) -> Integer[np.ndarray, "*shape"]:
    """splitmix64 (Steele et al. 2014): a fixed, well mixing bijection of 64-bit integers, the same on every machine."""
    x = value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(count: int, *key: int) -> Ids:
    """A permutation of `count` numbers that depends on the key alone, and not on the version of a library."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = scramble(state ^ np.array([part % (1 << 64)], np.uint64))
    return np.argsort(scramble(np.arange(count, dtype=np.uint64) ^ state), kind="stable")


class Order:
    """Epoch after epoch over `num_samples` samples, each epoch a new permutation; a batch may straddle two epochs.

    Keeps the permutation of the latest epochs (8 bytes a sample) and nothing that `at` depends on.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"an order of {num_samples} samples: there is nothing to train on")
        self.num_samples, self.seed = num_samples, seed
        self._kept: dict[int, Ids] = {}

    def at(self, step: int, batch_size: int) -> tuple[Ids, Ids]:
        """Sample numbers and epochs of the global batch of optimizer step `step` (from 0)."""
        return self.positions(np.arange(step * batch_size, (step + 1) * batch_size))

    def positions(self, positions: Ids) -> tuple[Ids, Ids]:
        """Sample numbers and epochs at places of the endless sequence."""
        epochs, places = np.divmod(positions, self.num_samples)
        ids = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self._permutation(int(epoch))[places[here]]
        return ids, epochs

    def _permutation(self, epoch: int) -> Ids:
        if epoch not in self._kept:
            self._kept = {e: p for e, p in self._kept.items() if e == epoch - 1}
            self._kept[epoch] = permutation(self.num_samples, self.seed, epoch)
        return self._kept[epoch]


@runtime_checkable
class Ordered(Protocol):
    """Samples with an order of their own, such as a mixture that keeps its fractions in every block."""

    def order(self, seed: int) -> Order: ...


def stream(
    samples: Samples, seed: int, start_step: int = 0, batch_samples: int = 1, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """This rank's rows of the global batch of step `start_step`, then of the next one, without end.

    Rank r holds rows r * batch / world to (r + 1) * batch / world: the batch is the same for every number of ranks.
    Raises ValueError when there are fewer samples in a batch than ranks.
    """
    if batch_samples < world:
        raise ValueError(f"a batch of {batch_samples} samples cannot feed {world} ranks: raise batch.tokens")
    order = samples.order(seed) if isinstance(samples, Ordered) else Order(len(samples), seed)
    mine = slice(rank * batch_samples // world, (rank + 1) * batch_samples // world)
    step = start_step
    while True:
        ids, epochs = order.at(step, batch_samples)
        yield gather(samples, ids[mine], epochs[mine])
        step += 1


def gather(samples: Samples, ids: Ids, epochs: Ids) -> Batch:
    """One batch of samples from several epochs, in the given order."""
    groups = np.unique(epochs)
    if len(groups) == 1:
        return samples.gather(ids, int(groups[0]))
    rows = [np.flatnonzero(epochs == epoch) for epoch in groups]
    parts = [samples.gather(ids[r], int(epoch)) for r, epoch in zip(rows, groups, strict=True)]
    return interleave(parts, rows)


def evaluation_batches(
    samples: HeldOut, rows: int, tokens: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """A fixed set of samples in order, in batches of at most `rows`: all, or the first `tokens` targets.

    Each rank gets a contiguous share; shares differ by at most one sample, so sum over ranks before dividing. The bytes
    behind the set are `samples.first(tokens).num_bytes`.
    """
    chosen = samples.first(tokens)
    begin, end = rank * len(chosen) // world, (rank + 1) * len(chosen) // world
    for at in range(begin, end, rows):
        yield chosen.gather(np.arange(at, min(at + rows, end)))
