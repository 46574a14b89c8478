"""The hashes of the texts of a file, whose computation goes on where it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleiber.data import blocks
from kleiber.data import texts as module
from kleiber.data.cache import JOURNAL
from kleiber.data.splits import document_hashes
from kleiber.data.texts import HASHES, RowTexts


def test_hashes_are_continued_after_a_kill(
    row_files: dict[str, Path], row_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    done: list[int] = []

    def map_until(stop: int) -> Any:
        def ordered_map(function: Any, items: Iterator[Any], workers: int) -> Iterator[Any]:
            for number, item in enumerate(items):
                if number == stop:
                    raise KeyboardInterrupt
                done.append(1)
                yield function(item)

        return ordered_map

    texts = RowTexts([str(row_files[".jsonl"])], ("text",), "rows")
    for stop in (5, 3):
        monkeypatch.setattr(module, "ordered_map", map_until(stop))
        with pytest.raises(KeyboardInterrupt):
            texts.write_hashes(tmp_path)
    monkeypatch.setattr(module, "ordered_map", map_until(-1))
    texts.write_hashes(tmp_path)
    expected = [number for text in row_texts for number in document_hashes([text])]
    assert np.fromfile(tmp_path / HASHES, np.uint64).tolist() == expected and len(done) == len(list(texts.blocks()))
    (tmp_path / HASHES).write_bytes(b"lost")
    texts.write_hashes(tmp_path)
    assert np.fromfile(tmp_path / HASHES, np.uint64).tolist() == expected and (tmp_path / JOURNAL).is_file()
