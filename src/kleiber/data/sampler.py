"""The order of samples, a pure function of (seed, step) for any number of ranks and micro-batches, and their batches.

There is no state: a run resumes from the number of its next step. No workers: one gather costs 15 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

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


class Joined(Samples):
    """Several sets of samples end to end, as one: sample i of the second follows the last of the first."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.num_tokens = sum(part.num_tokens for part in parts)
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """The samples of these numbers, in that order, out of all parts."""
        owner = np.searchsorted(self.starts, index, side="right") - 1
        owners = np.unique(owner)
        rows = [np.flatnonzero(owner == part) for part in owners]
        places = [(self.parts[p], index[r] - self.starts[p]) for p, r in zip(owners, rows, strict=True)]
        batch = interleave([part.gather(place, epoch) for part, place in places], rows)
        batch.samples = torch.from_numpy(np.asarray(index + epoch * len(self), np.int64))  # one numbering for all parts
        return batch


def interleave(parts: list[Batch], rows: list[Int[np.ndarray, "_"]]) -> Batch:
    """One batch out of several: row i of part p becomes row rows[p][i]. Shorter rows are padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.concatenate(rows), kind="stable")
    parts = _alike(parts)
    joined: dict[str, Any] = {}
    for field in fields(Batch):
        values = [getattr(part, field.name) for part in parts]
        missing = [value is None for value in values]
        assert all(missing) or not any(missing), f"some parts of a batch have no {field.name}"
        if all(missing):
            joined[field.name] = None
        elif isinstance(values[0], Batch):
            joined[field.name] = interleave(values, rows)
        else:
            joined[field.name] = torch.from_numpy(np.concatenate(values)[back])  # no thread pool
    return Batch(**joined)


def _alike(parts: list[Batch]) -> list[Batch]:
    """The parts in one width, with `real` and `weights` written out where only some have them."""
    widths = [part.tokens.shape[1] for part in parts]
    uneven = len(set(widths)) > 1
    names = [name for name in ("real", "weights") if any(getattr(part, name) is not None for part in parts)]
    if uneven and "real" not in names:
        names.append("real")
    if not names:
        return parts
    filled = [replace(part, **{name: _written(part, name) for name in names}) for part in parts]
    return [_widened(part, max(widths)) for part in filled] if uneven else filled


def _written(part: Batch, name: str) -> Tensor:
    value: Tensor | None = getattr(part, name)
    if value is not None:
        return value
    return torch.ones_like(part.tokens, dtype=torch.bool if name == "real" else torch.float32)


def _widened(part: Batch, width: int) -> Batch:
    time = part.tokens.shape[1]
    grown = {}
    for name in ("tokens", "real", "weights", "segments"):
        value = getattr(part, name)
        if value is not None:
            grown[name] = torch.from_numpy(np.pad(value.numpy(), ((0, 0), (0, width - time))))
    return replace(part, **grown)
