"""Windows: which target stands where, how often, and how many bytes it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kleiber.data.sampler import evaluation_batches
from kleiber.data.token_files import TokenFile
from kleiber.data.tokenizers.bytes import Bytes
from kleiber.data.windows import Joined, TrainWindows, ValidationWindows, interleave
from kleiber.types.batch import Batch

TEXT = "Ångström weighed 3 elephants, 你好 and a mouse. " * 7


def token_file(text: str = TEXT) -> TokenFile:
    raw = text.encode()
    ids = np.array([256, *raw], np.uint16)
    return TokenFile(ids, len(raw), len(raw), "x")


@pytest.mark.parametrize("context", [1, 7, 16, 64, 1000])
def test_validation_holds_every_target_once(context: int) -> None:
    samples = ValidationWindows(token_file(), context, Bytes())
    targets: list[int] = []
    for batch in evaluation_batches(samples, rows=3):
        assert batch.tokens.shape[1] == context + 1
        real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.weights is None else batch.weights > 0
        targets += batch.tokens[:, 1:][real[:, 1:]].tolist()
    assert bytes(targets).decode() == TEXT
    assert samples.num_tokens == samples.num_bytes == len(TEXT.encode())


def test_the_first_targets_are_a_prefix_with_their_own_bytes() -> None:
    samples = ValidationWindows(token_file(), 16, Bytes())
    few = samples.first(40)
    assert (few.num_tokens, few.num_bytes, len(few)) == (32, 32, 2)
    everything = torch.cat([batch.tokens for batch in evaluation_batches(samples, 100)])
    assert torch.equal(torch.cat([b.tokens for b in evaluation_batches(samples, 100, tokens=40)]), everything[:2])
    assert samples.first(None) is samples
    assert len(samples.first(1)) == 1


def test_padding_is_neither_real_nor_a_target() -> None:
    samples = ValidationWindows(token_file("abc"), 5, Bytes())
    batch = samples.gather(np.array([0]))
    assert batch.tokens.tolist() == [[256, 97, 98, 99, 256, 256]]
    assert batch.weights is not None and batch.weights.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert batch.real is not None and batch.real.tolist() == [[True] * 4 + [False] * 2]


def test_training_windows_move_between_epochs_and_stay_inside() -> None:
    file = TokenFile(np.arange(100, dtype=np.uint16), 99, 99, "x")
    samples = TrainWindows(file, 8)
    assert len(samples) == 12
    index = np.arange(12)
    first = samples.gather(index, 0).tokens
    assert first[:, 0].tolist() == list(range(0, 96, 8))
    starts = {samples.gather(index, epoch).tokens[0, 0].item() for epoch in range(8)}
    assert len(starts) >= 5
    for epoch in range(50):
        tokens = samples.gather(index, epoch).tokens
        assert (tokens[:, 1:] - tokens[:, :-1] == 1).all()
    assert samples.gather(index, 2).samples.tolist() == list(range(24, 36))  # pyright: ignore[reportOptionalMemberAccess]


def test_a_text_shorter_than_a_window_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"4 tokens.*model\.context=512.*model\.context=3"):
        TrainWindows(token_file("abc"), 512)
    assert len(TrainWindows(token_file("abc"), 3)) == 1


def test_joined_samples_are_those_of_the_parts_in_the_order_asked() -> None:
    parts = [TrainWindows(token_file(TEXT), 10), TrainWindows(token_file(TEXT[::-1]), 10)]
    joined = Joined(parts)
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
    both = interleave([short, long], [np.array([1]), np.array([0, 2])])
    assert both.tokens.tolist() == [[3, 4, 5], [1, 2, 0], [6, 7, 0]]
    assert both.real is not None and both.weights is not None and both.samples is not None
    assert both.real.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert both.weights.tolist() == [[1, 1, 1], [0, 1, 0], [1, 1, 1]]
    assert both.samples.tolist() == [8, 7, 9]


def test_pairs_of_rows_stay_together() -> None:
    parts = []
    for i in range(2):
        against = Batch(torch.full((1, 2 + i), 10 + i))
        parts.append(Batch(torch.full((1, 3), i), against=against, reference=torch.full((1, 2), float(i))))
    both = interleave(parts, [np.array([1]), np.array([0])])
    assert both.against is not None and both.reference is not None and both.against.real is not None
    assert both.against.tokens.tolist() == [[11, 11, 11], [10, 10, 0]]
    assert both.against.real.sum(1).tolist() == [3, 2] and both.reference[:, 0].tolist() == [1, 0]
    first = both.split(1)[0]
    assert first.against is not None and first.against.tokens.tolist() == [[11, 11, 11]]
