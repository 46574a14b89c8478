"""Every row of a file is in one block, however the file is cut and compressed."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from kleiber.data import blocks
from kleiber.data.blocks import WrongColumn, cut_file
from kleiber.data.text import Text


@pytest.mark.slow
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


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_block_without_the_column_is_named(
    suffix: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"words {i}"} for i in range(100)] + [{"content": f"words {i}"} for i in range(900)]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix == ".jsonl.gz" else raw)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4000)
    with pytest.raises(WrongColumn, match=rf"{path} has no such column from byte [1-9],\d\d\d on.* are content"):
        Text(str(path)).prepare(16)


def test_rows_without_text_in_a_block_are_counted(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [row for i in range(50) for row in ({"text": f"words {i}"}, {"content": "lost"}, {"text": None})]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for max_bytes in (None, 1_000_000):  # in blocks of files, and in documents
        with caplog.at_level("INFO", "kleiber"):
            corpus = Text(str(path), max_bytes=max_bytes).prepare(8)
        splits = corpus.manifest["rows"]["splits"].values()
        assert sum(split["empty"] for split in splits) == 100 and sum(split["documents"] for split in splits) == 50
        (empty,) = [split["empty"] for split in splits if split["empty"]]
        total = empty + next(split["documents"] for split in splits if split["empty"])
        assert f"rows: {empty} of {total} documents of the" in caplog.text
        caplog.clear()
