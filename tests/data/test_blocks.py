"""Every row of a file is in one block, however the file is cut and compressed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kleiber.data import blocks
from kleiber.data.blocks import WrongColumn, cut_file


@pytest.mark.parametrize("size", [1, 100, 1009, 1 << 21])
@pytest.mark.parametrize("suffix", [".jsonl", "-of-windows.jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_row_is_in_one_block(
    size: int, suffix: str, row_files: dict[str, Path], row_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == 1 and suffix != ".parquet":
        size = 61
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
    cut = list(cut_file(str(row_files[suffix]), ("text",)))
    assert [text for block in cut for text in block.texts()] == row_texts
    assert len({block.key() for block in cut}) == len(cut) > (size < 5000)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_file_without_the_column_is_named(suffix: str, row_files: dict[str, Path]) -> None:
    path = row_files[suffix]
    with pytest.raises(WrongColumn, match=re.escape(f"data.text=words: {path} has no such column")):
        list(next(cut_file(str(path), ("text", "words"))).texts())
