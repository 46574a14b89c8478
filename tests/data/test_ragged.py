"""Rows of unequal length come back as they went, empty ones and none at all included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kleiber.data import padding


@pytest.mark.parametrize("rows", [[[1, 2, 3], [], [70000], [5]], [[]], []])
def test_there_and_back(tmp_path: Path, rows: list[list[int]]) -> None:
    kind = np.dtype(np.uint32)
    padding.write(tmp_path / "rows", (np.array(row, np.int64) for row in rows), kind)
    found = padding.read(tmp_path / "rows", kind)
    assert [found[i].tolist() for i in range(len(found))] == rows
    assert found.lengths.tolist() == [len(row) for row in rows]
