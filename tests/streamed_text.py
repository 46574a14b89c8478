"""Small data sets that are streamed in blocks of a few documents, which a thread of the test encodes."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from kleiber.data.streaming import StreamedWindows
from kleiber.data.text import Text

DOCUMENTS = [f"document {i} " + "abc " * (i % 37) for i in range(250)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few documents, which a thread of this process encodes."""

    def here(function: Callable, items: Iterable, workers: int) -> Iterator:
        yield from map(function, items)

    monkeypatch.setattr("kleiber.data.streaming.map_in_workers", here)
    monkeypatch.setattr("kleiber.data.blocks.BLOCK_BYTES", 1000)


def lines(texts: Iterable[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of one training file and a validation split."""
    home = tmp_path / "whole"
    home.mkdir()
    (home / "train.jsonl").write_bytes(lines(DOCUMENTS))
    (home / "validation.jsonl").write_bytes(lines(DOCUMENTS[:20]))
    return home


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Seven training files, and a validation split."""
    home = tmp_path / "shards"
    home.mkdir()
    for i in range(7):
        (home / f"train-{i}.jsonl.gz").write_bytes(gzip.compress(lines(DOCUMENTS[i::7])))
    (home / "validation.jsonl.gz").write_bytes(gzip.compress(lines(DOCUMENTS[:20])))
    return home


def windows(path: Path, context: int = 64, **options: object) -> StreamedWindows:
    train = Text(str(path), **{"streaming": True, "splits": "files", **options}).prepare(context).train  # type: ignore[arg-type]
    assert isinstance(train, StreamedWindows)
    return train


def tokens(batches: Iterator, count: int) -> list[torch.Tensor]:
    return [batch.tokens for batch in itertools.islice(batches, count)]
