"""What files contain is found out once, and again whenever they are written, whatever their times say."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from kleiber.config.errors import ConfigError
from kleiber.data import contents as module
from kleiber.data.contents import csv_columns, examine, file_checksum, json_columns
from kleiber.data.folders import File, local_file
from kleiber.data.location import locate
from kleiber.records.files import DamagedFile

FILES = {  # content, and why it is neither text nor a table
    "a.rst": (b"text", ""),
    "no_ending": ("hé 🙂 你好".encode(), ""),
    "a.md.gz": (gzip.compress(b"text"), ""),
    "b.md.bz2": (bz2.compress(b"text"), ""),
    "c.md.xz": (lzma.compress(b"text"), ""),
    "d.md.zst": (pyarrow.compress(b"text", "zstd", asbytes=True), ""),
    "e.md.gz": (gzip.compress(b"text" * 99)[:-9], "damaged gzip"),
    "f.md.xz": (b"no xz", "damaged xz"),
    "empty.txt": (b"", "empty"),
    "empty.txt.gz": (gzip.compress(b""), "empty"),
    "a.png": (b"\x89PNG\x00\x01", "binary"),
    "latin.txt": ("café".encode("latin-1"), "not UTF-8"),
    "cut.txt": (("a" * 9000 + "é").encode()[:-1], "not UTF-8"),
    "utf16.txt": ("text".encode("utf-16"), "UTF-16"),
    "blank.jsonl": (b"\n \n", "no rows"),
}
TABLES = {
    "rows.jsonl": b'{"text": "a"}\n{"text": "b", "id": 1}\n',
    "rows.json": b'[{"text": "a", "id": 1}]',
    "lines.json.gz": gzip.compress(b'{"text": "a", "id": 1}\n{"text": "b"}'),
    "rows.csv": b'\xef\xbb\xbftext,"id"\n"a\nb",1\n',
    "rows.tsv": b"text\tid\na, b\t1\n",
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_text_has_a_reason(name: str, tmp_path: Path) -> None:
    raw, reason = FILES[name]
    (tmp_path / name).write_bytes(raw)
    content = examine(local_file(tmp_path / name, name))
    assert (content.reason, content.columns, content.defect) == (reason, (), "")


@pytest.mark.parametrize("name", TABLES)
def test_the_columns_of_a_table_are_those_of_its_first_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TABLES[name])
    content = examine(local_file(tmp_path / name, name))
    assert (content.columns, content.reason) == (("text", "id"), "")


def test_columns_of_parquet_and_damaged_tables(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    assert examine(local_file(tmp_path / "a.parquet", "a")).columns == ("text", "id")
    damaged = {"b.parquet": b"no Parquet", "b.jsonl": b'{"text": \n', "c.jsonl": '{"é": 1}'.encode("latin-1")}
    for name, raw in damaged.items():
        (tmp_path / name).write_bytes(raw)
        assert str(tmp_path / name) in examine(local_file(tmp_path / name, name)).defect


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ('{"a": 1, "b": 2}', ("a", "b")),
        ('  {"a": {"b": []}}\n{"c": 1}', ("a",)),
        ('[{"a": 1}, {"b": 2', ("a",)),
        ('{"a": 1} trailing', ()),
        ("[1, 2]", ()),
        ('"text"', ()),
        ("[]", ()),
        ("{", ()),
        ("[" * 100_000, ()),
        ("", ()),
    ],
)
def test_json_is_a_table_where_it_has_objects(text: str, columns: tuple[str, ...]) -> None:
    assert json_columns(text) == columns


def test_a_header_may_be_odd() -> None:
    assert csv_columns("\n\na,b\n", ",") == ("a", "b")
    assert csv_columns("a\0,b\n", ",") in ((), ("a\0", "b")) and csv_columns("x" * 200_000, ",") == ()


def test_contents_are_kept_until_a_file_is_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("a.txt", "b.txt"):
        (home / name).write_text("a text")
    examined: list[str] = []
    monkeypatch.setattr(module, "examine", lambda file, sampled: examined.append(file.name) or examine(file, sampled))
    first = locate(str(home)).fingerprint()
    assert locate(str(home)).fingerprint() == first and examined == ["a.txt", "b.txt"] * 2, "written just now"
    monkeypatch.setattr(module, "FRESH", 0)
    examined.clear()
    assert [locate(str(home)).fingerprint() for _ in range(3)] == [first] * 3 and examined == ["a.txt", "b.txt"]
    facts = (home / "a.txt").stat()
    (home / "a.txt").write_text("b text")
    os.utime(home / "a.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert locate(str(home)).fingerprint() != first and examined[2:] == ["a.txt"]
    (kept,) = (cache / "contents").iterdir()
    for damaged in ("{", json.dumps({"schema": module.SCHEMA, "files": [1]}), "{}"):
        kept.write_text(damaged)
        assert locate(str(home)).contents.keys() == {"a.txt", "b.txt"}


def test_equal_content_has_equal_fingerprints_wherever_it_is(tmp_path: Path, cache: Path) -> None:
    for number, home in enumerate(("one", "two")):
        (tmp_path / home).mkdir()
        (tmp_path / home / "a.txt").write_text("a text")
        os.utime(tmp_path / home / "a.txt", (number, number))
    assert locate(str(tmp_path / "one")).fingerprint() == locate(str(tmp_path / "two")).fingerprint()


def test_a_sampled_checksum_reads_pieces_of_a_large_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 10)
    path, content = tmp_path / "a.bin", bytearray(range(250)) * 40
    sums = []
    for place in (None, 0, 9_999, 100):  # the last one is between two pieces
        changed = content.copy()
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        sums.append(file_checksum(str(path), sampled=True))
    assert sums[0] == sums[3] != sums[1] != sums[2] != sums[0] and sums[0].startswith("10000 bytes, sampled ")
    path.write_bytes(content[:500])
    assert file_checksum(str(path), sampled=True) == file_checksum(str(path))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, cache: Path) -> None:
    for name in ("gone.txt", "gone.jsonl", "gone.parquet"):
        with pytest.raises(ConfigError, match=rf"{name}: No such file"):
            examine(File(str(tmp_path / name), name, 1, ""))
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.txt").write_text("a text")
    cache.mkdir()
    (cache / "contents").touch()
    with pytest.raises(DamagedFile, match="contents is damaged: it must be a folder"):
        _ = locate(str(home)).contents
