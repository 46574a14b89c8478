"""Fractions hold exactly in every block, and a position says which sample it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kleiber.data.batches import ConcatSamples, stream
from kleiber.data.mixture import Mixture, block_counts, parts_read
from kleiber.data.order import Reading
from kleiber.data.token_files import TokenFile, TrainWindows
from kleiber.training.private_step import poisson_stream
from kleiber.types.contracts import Samples


def parts() -> list[Samples]:
    sizes = ((0, 500), (1000, 100))  # the second part has few samples: it repeats
    files = [TokenFile(np.arange(start, start + size, dtype=np.uint16), size, size, "x") for start, size in sizes]
    return [TrainWindows(file, 4) for file in files]


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [([0.9, 0.1], [18, 2]), ([0.25, 0.75], [5, 15]), ([0.95, 0.04, 0.01], [95, 4, 1]), ([1.0], [20])],
)
def test_the_block_is_the_shortest_with_whole_numbers_of_samples(fractions: list[float], expected: list[int]) -> None:
    assert block_counts(fractions) == expected


def test_fractions_without_such_a_block_are_rounded_to_a_thousandth() -> None:
    assert block_counts([1 / 3, 2 / 3]) == [7, 14]
    assert block_counts([0.12345, 0.87655]) in ([123, 877], [124, 876])


def test_every_block_holds_the_fractions_exactly() -> None:
    order = Mixture(parts(), [0.9, 0.1]).order(seed=4)
    for block in range(30):
        ids, _ = order.samples_at(np.arange(20 * block, 20 * block + 20))
        assert (ids >= 124).sum() == 2


def test_each_part_repeats_when_all_its_samples_were_read() -> None:
    mixture = Mixture(parts(), [0.5, 0.5])
    ids, epochs = mixture.order(seed=0).samples_at(np.arange(2 * 24 * 5))
    small = ids >= 124
    for epoch in range(5):
        assert sorted(ids[small & (epochs == epoch)]) == list(range(124, 148))


@pytest.mark.parametrize("steps", [4, 21])  # of 148 samples: a part of an epoch, and of the second one
@pytest.mark.parametrize("kind", ["plain", "mixture", "absent", "private"])
def test_the_parts_that_were_read_are_those_of_the_stream(kind: str, steps: int) -> None:
    shares = {"mixture": [0.9, 0.1], "absent": [1.0, 0.0]}
    train = Mixture(parts(), shares[kind]) if kind in shares else ConcatSamples(parts())
    batches = poisson_stream(train, 3, 0, 8 / 148) if kind == "private" else stream(train, 3, 0, 8)
    read = {int(n) % 148 for batch in itertools.islice(batches, steps) for n in batch.samples}
    chosen = parts_read(train, Reading(3, 8, steps, kind == "private"))
    firsts = [part.gather(np.arange(len(part))).tokens[:, 0].tolist() if len(part) else [] for part in chosen]
    expected = [(n * 4 if n < 124 else 1000 + (n - 124) * 4) for n in sorted(read)]
    assert [n for part in firsts for n in part] == expected
    assert all(part.num_tokens == 4 * len(part) for part in chosen)
    whole = [len(part) for part in parts_read(train, Reading(3, 8, 0))]
    assert whole == [len(part) for part in parts_read(train, None)] == [124, 0 if kind == "absent" else 24]


def test_a_mixture_streams_and_resumes_like_any_other_samples() -> None:
    mixture = Mixture(parts(), [0.9, 0.1])
    unbroken = list(itertools.islice(stream(mixture, seed=1, batch_samples=6), 40))
    resumed = next(stream(mixture, seed=1, start_step=33, batch_samples=6))
    assert torch.equal(resumed.tokens, unbroken[33].tokens)
    halves = [next(stream(mixture, 1, 33, 6, rank, 2)).tokens for rank in range(2)]
    assert torch.equal(torch.cat(halves), resumed.tokens)
    assert sum((batch.tokens[:, 0] >= 1000).sum().item() for batch in unbroken) == 24


@pytest.mark.parametrize("fractions", [[0.9, 0.2], [1.5, -0.5], [0.9999, 0.0001]])
def test_invalid_fractions_are_refused(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match=r"data\.parts"):
        Mixture(parts(), fractions)
