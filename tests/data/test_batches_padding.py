"""Rows of unequal length: padded, scored in a fixed order, packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kleiber.data.batches import HeldOutRows, RowSamples, pack_rows, pad, text_bytes
from kleiber.data.order import permutation
from kleiber.data.tokenizers import Bytes
from kleiber.types.batch import Batch


@pytest.mark.parametrize(
    ("lengths", "limit", "ahead", "width"),
    [([3, 1], 64, 0, 8), ([8], 64, 0, 8), ([9], 64, 0, 16), ([9], 64, 1, 9), ([10], 64, 1, 17), ([61], 62, 0, 62)],
)
def test_rows_are_padded_to_a_multiple_of_eight_up_to_the_limit(lengths, limit, ahead, width) -> None:
    rows = [np.arange(1, n + 1) for n in lengths]
    tokens, real = pad(rows, limit, 99, ahead)
    assert tokens.shape == (len(rows), width) and real.sum(1).tolist() == lengths
    for row, ids, there in zip(rows, tokens, real, strict=True):
        assert ids[there].tolist() == row.tolist() and (ids[~there] == 99).all()


def test_a_row_longer_than_the_limit_fails_an_assertion() -> None:
    with pytest.raises(AssertionError, match="exceeds 4"):
        pad([np.arange(5)], 4, 0)


def test_text_bytes_do_not_count_special_tokens() -> None:
    flat = np.array([256, *b"abc", 256, *b"de", 256])
    assert text_bytes(np.array([0, 4]), np.array([3, 4]), flat, Bytes()).tolist() == [2, 2]


class Ten(RowSamples):
    lengths = np.arange(1, 11)
    sizes = 2 * np.arange(1, 11)

    def __len__(self) -> int:
        return 10

    def question(self, i: int) -> tuple[list[int], list[int]]:
        return [i], [7]

    def gather(self, index, epoch=0) -> Batch:
        return Batch(torch.from_numpy(index)[:, None], samples=torch.from_numpy(index))


def test_the_first_samples_are_always_the_same_ones() -> None:
    held = HeldOutRows(Ten())
    assert (len(held), held.num_tokens, held.num_bytes) == (10, 55, 110)
    order = held.gather(np.arange(10)).tokens[:, 0].tolist()
    assert sorted(order) == list(range(10)) != order
    for tokens in (1, 12, 30, 54):
        first = held.first(tokens)
        assert first.gather(np.arange(len(first))).tokens[:, 0].tolist() == order[: len(first)]
        assert len(first) == 1 or first.num_tokens <= tokens
        assert first.num_tokens + Ten.lengths[order[len(first)]] > tokens
    assert held.first(None) is held and held.first(55) is held


@pytest.mark.parametrize("seed", range(5))
def test_packing_uses_every_sample_once_and_nearly_as_few_rows_as_possible(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 65, 500)
    rows = pack_rows(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(lengths[row].sum() <= 64 for row in rows)
    assert len(rows) <= 11 / 9 * np.ceil(lengths.sum() / 64) + 1
    assert rows == pack_rows(lengths, 64)


def test_a_perfect_fit_is_found() -> None:
    assert len(pack_rows(np.array([10, 3, 7, 6, 4, 9, 1]), 10)) == 4


def test_a_sample_that_fits_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="of 11 tokens does not fit a row of 10"):
        pack_rows(np.array([3, 11]), 10)


def test_held_out_rows_ask_the_questions_of_their_samples_in_their_order() -> None:
    held, order = HeldOutRows(Ten()), permutation(10, 0)
    assert [held.question(i) for i in range(10)] == [([int(i)], [7]) for i in order]


def test_rows_count_their_tokens_and_bytes() -> None:
    rows = Ten()
    rows.count_tokens()
    assert (rows.num_tokens, rows.num_bytes) == (55, 110)
