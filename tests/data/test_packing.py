"""Packing: every sample in one row, no row too full, and few rows."""

from __future__ import annotations

import numpy as np
import pytest

from kleiber.data.padding import packed


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_once_and_nearly_as_few_rows_as_can_be(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 65, 500)
    rows = packed(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(lengths[row].sum() <= 64 for row in rows)
    assert len(rows) <= 11 / 9 * np.ceil(lengths.sum() / 64) + 1
    assert rows == packed(lengths, 64)


def test_a_perfect_fit_is_found() -> None:
    assert len(packed(np.array([10, 3, 7, 6, 4, 9, 1]), 10)) == 4


def test_a_sample_that_fits_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="of 11 tokens does not fit a row of 10"):
        packed(np.array([3, 11]), 10)
