"""The order of samples is a function of (seed, step), and everything else follows from that."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kleiber.data.batches import ConcatSamples, evaluation_batches, interleave, stream
from kleiber.data.token_files import TokenFile, TrainWindows, ValidationWindows
from kleiber.data.tokenizers import Bytes
from kleiber.types.batch import Batch


def windows(count: int = 1000, context: int = 8) -> TrainWindows:
    return TrainWindows(TokenFile(np.arange(count, dtype=np.uint16), count, count, "x"), context)


def take(steps: int, **options: int) -> list[torch.Tensor]:
    return [batch.tokens for batch in itertools.islice(stream(windows(), seed=3, **options), steps)]


def test_a_stream_resumes_at_any_step() -> None:
    unbroken = take(40, batch_samples=7)
    for start in (1, 17, 33):
        for step, batch in enumerate(take(3, batch_samples=7, start_step=start)):
            assert torch.equal(batch, unbroken[start + step])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch_in_order(world: int) -> None:
    whole = take(30, batch_samples=8)
    ranks = [take(30, batch_samples=8, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[step] for rank in ranks]), batch)


def test_fewer_samples_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch\.tokens"):
        next(stream(windows(), seed=0, batch_samples=1, world=2))


def test_evaluation_batches_cover_the_same_samples_for_all_rows_and_ranks() -> None:
    train = windows(900)
    samples = ValidationWindows(train.file, train.context, Bytes())
    whole = torch.cat([batch.tokens for batch in evaluation_batches(samples, rows=7)])
    assert len(whole) == len(samples)
    for rows, world in ((1, 2), (64, 3)):
        parts = [evaluation_batches(samples, rows, rank=rank, world=world) for rank in range(world)]
        assert torch.equal(torch.cat([batch.tokens for part in parts for batch in part]), whole)


TEXT = "Ångström weighed 3 elephants, 你好 and a mouse. " * 7


def token_file(text: str = TEXT) -> TokenFile:
    raw = text.encode()
    ids = np.array([256, *raw], np.uint16)
    return TokenFile(ids, len(raw), len(raw), "x")


@pytest.mark.parametrize(("count", "rows", "world"), [(17, 4, 2), (9, 2, 4), (8, 16, 4), (5, 1, 1)])
def test_ranks_that_score_together_get_equally_many_batches(count: int, rows: int, world: int) -> None:
    train = windows(count * 8 + 1)
    samples = ValidationWindows(train.file, train.context, Bytes())
    parts = [list(evaluation_batches(samples, rows, rank=rank, world=world, equal=True)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert all(0 < len(batch) <= rows for part in parts for batch in part)
    tokens = torch.cat([batch.tokens for part in parts for batch in part])
    assert torch.equal(tokens, torch.cat([batch.tokens for batch in evaluation_batches(samples, rows)]))


def test_concatenated_samples_are_gathered_in_the_requested_order() -> None:
    parts = [TrainWindows(token_file(TEXT), 10), TrainWindows(token_file(TEXT[::-1]), 10)]
    joined = ConcatSamples(parts)
    index = np.array([len(parts[0]) + 2, 0, len(parts[0]), 5])
    tokens = joined.gather(index).tokens
    expected = [parts[1].gather(np.array([2])), parts[0].gather(np.array([0])), parts[1].gather(np.array([0]))]
    assert torch.equal(tokens[:3], torch.cat([batch.tokens for batch in expected]))
    assert joined.gather(index).samples.tolist() == index.tolist()  # pyright: ignore[reportOptionalMemberAccess]


def test_rows_of_unequal_width_become_one_batch() -> None:
    short = Batch(torch.tensor([[1, 2]]), weights=torch.tensor([[0.0, 1.0]]), samples=torch.tensor([7]))
    long = Batch(torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[True] * 3, [True, True, False]]))
    long.samples, long.segments, short.segments = (
        torch.tensor([8, 9]),
        torch.tensor([[0, 0, 1], [0, 0, -1]]),
        torch.zeros(1, 2).long(),
    )
    joined = interleave([short, long], [np.array([1]), np.array([0, 2])])
    assert joined.tokens.tolist() == [[3, 4, 5], [1, 2, 0], [6, 7, 0]]
    assert joined.real is not None and joined.weights is not None and joined.samples is not None
    assert joined.real.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert joined.weights.tolist() == [[1, 1, 1], [0, 1, 0], [1, 1, 1]]
    assert joined.samples.tolist() == [8, 7, 9]


def test_pairs_of_rows_stay_together() -> None:
    parts = []
    for i in range(2):
        counterpart = Batch(torch.full((1, 2 + i), 10 + i))
        parts.append(Batch(torch.full((1, 3), i), counterpart=counterpart, reference=torch.full((1, 2), float(i))))
    joined = interleave(parts, [np.array([1]), np.array([0])])
    assert joined.counterpart is not None and joined.reference is not None and joined.counterpart.real is not None
    assert joined.counterpart.tokens.tolist() == [[11, 11, 11], [10, 10, 0]]
    assert joined.counterpart.real.sum(1).tolist() == [3, 2] and joined.reference[:, 0].tolist() == [1, 0]
    first = joined.split(1)[0]
    assert first.counterpart is not None and first.counterpart.tokens.tolist() == [[11, 11, 11]]
