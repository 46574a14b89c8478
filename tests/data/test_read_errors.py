"""What is wrong with a file of data is named, with its place in the file, and never hidden by `datasets`."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from kleiber.config.errors import ConfigError
from kleiber.data import read_errors as module
from kleiber.data.labelled import Labelled
from kleiber.data.read_errors import defect, unwanted_content
from kleiber.data.text import Text

TEXT = b"some words of text\n" * 600
ROWS = b"".join(json.dumps({"text": f"row {i} of words"}).encode() + b"\n" for i in range(600))
PACKED = gzip.compress(ROWS)
DAMAGED: dict[str, tuple[str, bytes, str]] = {  # name of the file, its content, and what the error must contain
    "cut text": ("x.txt.gz", gzip.compress(TEXT)[:-20], "cut off"),
    "cut rows": ("x.jsonl.gz", PACKED[: len(PACKED) // 2], "cut off"),
    "cut table": ("x.csv.gz", gzip.compress(b"text\n" + TEXT)[:-20], "cut off"),
    "damaged gzip": ("x.jsonl.gz", PACKED[:200] + b"\0\1\2\3" * 20 + PACKED[280:], "gzip"),
    "text that claims to be gzip": ("x.txt.gz", TEXT, "gzip"),
    "rows that claim to be gzip": ("x.jsonl.gz", ROWS, "gzip"),
    "binary text": ("x.txt", bytes(range(256)) * 20, "NUL byte at 0"),
    "NUL at the end": ("x.jsonl", ROWS + bytes(100), "line 601"),
    "UTF-16 text": ("x.txt", TEXT.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 text without a mark": ("x.txt", TEXT.decode().encode("utf-16-le"), "NUL byte at 1"),
    "UTF-16 rows": ("x.jsonl", ROWS.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 table": ("x.csv", b"text\n".decode().encode("utf-16"), "UTF-16"),
    "Latin-1 text": ("x.txt", TEXT + b"\xe9", f"byte {len(TEXT)} is 0xe9"),
    "Latin-1 rows": ("x.jsonl", b'{"text":"\xe9"}\n' + ROWS, "byte 9 is 0xe9"),
    "deep rows": ("x.jsonl", b'{"text":' + b"[" * 20_000 + b"]" * 20_000 + b"}\n", "nested"),
    "deep later rows": ("x.jsonl", ROWS + b'{"text":' + b"[" * 20_000 + b"]" * 20_000 + b"}\n", "line 601 .* nested"),
    "a number": ("x.jsonl", ROWS + b"5\n", "line 601: a line must be an object .*, not int"),
    "a null": ("x.jsonl", b"\nnull\n" + ROWS, "line 2: a line must be an object .*, not NoneType"),
    "a list": ("x.jsonl", b'["a", "b"]\n' * 300, "line 1: a line must be an object .*, not list"),
    "a key twice": ("x.jsonl", b'{"text":"a","text":"b"}\n' * 300, "line 1 .* text "),
    "a column twice": ("x.csv", b"text,id,text\n" + b"a,b,c\n" * 300, "columns text"),
    "a row with more columns": ("x.csv", b"text\na\nb,c\n" * 50, "line 3"),
    "a header alone": ("x.csv", b"text\n", "it has no rows"),
    "no Parquet": ("x.parquet", TEXT, "Parquet"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_with_its_defect(kind: str, tmp_path: Path, cache: Path) -> None:
    name, content, named = DAMAGED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{named}"):
        Text(str(path)).prepare(16)


@pytest.mark.parametrize("kind", ["damaged gzip", "cut table", "no Parquet", "UTF-16 rows"])
def test_the_damaged_table_of_a_folder_is_named(kind: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "good.txt").write_bytes(TEXT)
    name, content, named = DAMAGED[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)}.*{named}"):
        Text(str(tmp_path)).prepare(16)


def test_a_column_twice_in_parquet_is_named(tmp_path: Path, cache: Path) -> None:
    column, path = pyarrow.array(["some words"] * 300), tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table([column, column], names=["text", "text"]), path)
    with pytest.raises(ValueError, match=r"x\.parquet has several columns text"):
        Text(str(path)).prepare(16)


def test_a_codec_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv.zst"
    path.write_bytes(pyarrow.compress(b"text\n" + TEXT, "zstd", asbytes=True))
    monkeypatch.delitem(fsspec.compression.compr, "zstd", raising=False)
    monkeypatch.setitem(module.PACKAGES, ".zst", "absent_package")
    for name in (tmp_path, path, f"file://{path}"):
        with pytest.raises(ValueError, match=f"{path} needs the Python package absent_package"):
            Text(str(name)).prepare(16)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_parquet_is_refused_wherever_it_is_read(suffix: str, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / f"x.parquet{suffix}"
    path.write_bytes(PACKED if suffix == ".gz" else pyarrow.compress(ROWS, "zstd", asbytes=True))
    for name in (tmp_path, path, f"file://{path}"):
        for load in (lambda: Text(str(name)).prepare(16), lambda: Labelled(str(name)).load(None)):  # noqa: B023
            with pytest.raises(ValueError, match=f"has x\\.parquet\\{suffix}, but compressed files of Parquet"):
                load()


def test_good_files_have_no_defect(tmp_path: Path) -> None:
    texts = ["", "hé 🙂 你好\n" * 1000, "a\x00".rjust(10_000), "\ufeffa\r\n\x0c"]
    for i, content in enumerate(texts):
        path = tmp_path / f"{i}.txt"
        path.write_text(content, encoding="utf-8", newline="")
        assert unwanted_content(path) is None and defect(path) is None
    for i, content in enumerate([ROWS, b"\n" + ROWS.rstrip(), b'{"a":{"b":1},"c":{"b":2}}\n']):
        path = tmp_path / f"{i}.jsonl.gz"
        path.write_bytes(gzip.compress(content))
        assert unwanted_content(path) is None and defect(path) is None


def test_a_character_across_two_blocks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    (tmp_path / "a.txt").write_bytes("hé 🙂 你好".encode() * 20)
    assert defect(tmp_path / "a.txt") is None
    (tmp_path / "a.txt").write_bytes("🙂".encode() * 9 + b"\xf0\x9f")
    assert "byte 36 is 0xf0" in str(defect(tmp_path / "a.txt"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file grow beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
@pytest.mark.slow
def test_a_full_disk_under_the_cache_is_named(name: str, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / name
    path.write_bytes((TEXT if name == "x.txt" else ROWS) * 40)
    with largest_file(1 << 16), pytest.raises(ConfigError, match=f"{re.escape(str(cache))} is full") as raised:
        Text(str(path)).prepare(16)
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    assert {entry.name for entry in os.scandir(cache) if entry.is_dir()} == {"contents"}  # no half-built data
    assert Text(str(path)).prepare(16).num_tokens > 100_000


def test_a_disk_that_datasets_finds_too_small_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 72."""
    (tmp_path / "x.csv").write_bytes(b"text\n" + TEXT)
    monkeypatch.setattr("datasets.builder.has_sufficient_disk_space", lambda *_, **__: False)
    with pytest.raises(ConfigError, match=rf"^the cache {re.escape(str(cache))} is full"):
        Text(str(tmp_path / "x.csv")).prepare(16)
