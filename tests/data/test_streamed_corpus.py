"""What is held out of a stream, which files it reads, and what is refused."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from streamed_text import DOCUMENTS, folder, lines, small, tokens, windows

from kleiber.data.batches import stream
from kleiber.data.text import Text
from kleiber.data.texts import RowTexts

pytestmark = pytest.mark.usefixtures("small")
__all__ = ["folder", "small"]


def test_text_files_are_documents(tmp_path: Path, cache: Path) -> None:
    home = tmp_path / "files"
    home.mkdir()
    for name in ("train-0", "train-1", "train-2", "validation"):
        (home / f"{name}.txt").write_text(f"the text of {name}\r\n" * 50, newline="")
    train = windows(home, 16, max_bytes="1M", shuffle_buffer=1)
    prepared = Text(str(home), splits="files").prepare(16)
    (batch,) = tokens(stream(train, 0, 0, len(prepared.train)), 1)
    assert torch.equal(batch, prepared.train.gather(np.arange(len(prepared.train))).tokens)


@pytest.mark.slow
def test_what_is_held_out_is_never_trained_on(tmp_path: Path, cache: Path) -> None:
    texts = [f"<{i}> once" for i in range(1500)]
    for number, part in enumerate((texts, texts[::-1])):  # every document twice
        (tmp_path / f"part-{number}.jsonl").write_bytes(lines(part))
    corpus = Text(str(tmp_path / "part-*.jsonl"), streaming=True, shuffle_buffer=1).prepare(64)
    (held_out,) = corpus.validation.values()
    scored = set(corpus.tokenizer.decode(np.asarray(held_out.file.ids).tolist()).split("<")[1:])  # type: ignore[attr-defined]
    train = next(stream(corpus.train, 0, 0, 400)).tokens[:, :-1].flatten()
    trained = set(corpus.tokenizer.decode(train.tolist()).split("<")[1:-1])
    assert 5 < len(scored) < 30 and len(trained) == 1500 - len(scored) and not scored & trained


def test_what_cannot_be_streamed_is_refused(tmp_path: Path, folder: Path, cache: Path) -> None:
    (tmp_path / "few.jsonl").write_bytes(lines(["a", "b"]))
    (tmp_path / "rows.csv").write_text("text\na\n")
    few = str(tmp_path / "few.jsonl")
    for text, message in [
        (Text(few, streaming=True), "has too few: give the data set a validation split"),
        (Text(str(tmp_path / "rows.csv"), streaming=True), "reads JSON lines, Parquet and files of text"),
        (Text(str(folder), streaming=True, rows="stream"), "data.rows=stream"),
        (Text(str(folder), streaming=True, text="words"), "set data.text to one of text"),
        (Text(str(folder), shuffle_buffer=10), "data.shuffle_buffer=10 needs data.streaming=true"),
    ]:
        with pytest.raises(ValueError, match=message):
            text.prepare(8)
    with pytest.raises(ValueError, match=r"data\.streaming=true is for data=text itself"):
        Text(few, streaming=True).source()
    (folder / "train.jsonl").write_bytes(b'{"words": "a"}\n')
    with pytest.raises(ValueError, match="no such column"):
        windows(folder)
    (folder / "train.jsonl").write_bytes(lines([""]) * 10)
    with pytest.raises(ValueError, match="the training split has no text"):
        next(stream(windows(folder), 0, 0, 1))
    (folder / "train.jsonl").write_bytes(lines(DOCUMENTS) + b"{")
    with pytest.raises(ValueError, match="line 251 is not valid JSON"):
        list(itertools.islice(stream(windows(folder), 0, 0, 10), 50))


@pytest.mark.slow
def test_other_content_is_another_corpus(folder: Path, cache: Path) -> None:
    def corpus_hash(**options: object) -> str:
        return Text(str(folder), streaming=True, **options).prepare(8).hash  # type: ignore[arg-type]

    first = corpus_hash()
    path = folder / "train.jsonl"
    path.touch()
    times = path.stat()
    assert corpus_hash(shuffle_buffer=8) == first and corpus_hash(max_bytes=99) != first
    path.write_bytes(path.read_bytes().replace(b"document 124", b"dokument 124"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert corpus_hash() != first


def test_every_file_must_have_the_column_and_an_empty_one_is_no_end(folder: Path, cache: Path) -> None:
    def streamed() -> list[torch.Tensor]:
        return tokens(stream(windows(folder, shuffle_buffer=1500), 0, 0, 10), 40)

    rows = (folder / "train.jsonl").read_bytes()
    (folder / "train.jsonl").rename(folder / "train-1.jsonl")
    (folder / "train-0.jsonl").write_bytes(b"")
    last = folder / "train-2.jsonl"
    last.write_bytes(b'{"content": "a"}\n' + rows)
    assert len(streamed()) == 40, "a row without the column has no text"
    last.write_bytes(rows.replace(b'"text"', b'"content"'))
    prepared = RowTexts([*map(str, sorted(folder.glob("train-*")))], ("text",), "whole")
    for read in (streamed, lambda: list(prepared.read())):
        with pytest.raises(ValueError, match=rf"{last.name}.* has no such column.* columns are content"):
            read()
