"""Rows of a stranger, and archives that would fill the memory, are refused with their place."""

import gzip
import json
import os
import tracemalloc

import pytest

from kleiber.config.errors import ConfigError
from kleiber.records import archive
from kleiber.records.catalog import archived_runs
from kleiber.records.regular_files import DamagedFile

ROW = {"run": "a", "config": {}, "summary": {"status": "finished"}, "rows": []}
LINE = {**ROW, "rows": {"order": [], "kinds": []}}  # as it is written
ODD_ROWS = {
    "config null": {"config": None}, "config list": {"config": [1]}, "config text": {"config": "x"},
    "rows null": {"rows": None}, "rows of nulls": {"rows": {"order": [0], "kinds": [None]}},
    "no columns": {"rows": [{"step": 1}]}, "rows without a step": {"rows": {"order": [0], "kinds": [{"x": [1.0]}]}},
    "rows with lists": {"rows": {"order": [0], "kinds": [{"step": [1], "x": [[1]]}]}},
    "rows of an odd stage": {"rows": {"order": [0], "kinds": [{"step": [1], "stage": [3]}]}},
    "rows of no kind": {"rows": {"order": [1], "kinds": [{"step": [1]}]}},
    "too few values": {"rows": {"order": [0, 0], "kinds": [{"step": [1]}]}},
    "too many values": {"rows": {"order": [0], "kinds": [{"step": [1, 2]}]}},
    "columns of two lengths": {"rows": {"order": [0], "kinds": [{"step": [1], "x": [1.0, 2.0]}]}},
    "a text in single precision": {"rows": {"order": [0], "kinds": [{"step": [1], "x": {"single": ["1"]}}]}},
    "run list": {"run": ["x"]}, "run null": {"run": None}, "run number": {"run": 3}, "run above": {"run": "../x"},
    "summary null": {"summary": None}, "summary list": {"summary": []}, "large number": {"config": {"seed": 10**400}},
    "large step": {"rows": {"order": [0], "kinds": [{"step": [10**4000]}]}},
    "interpolation": {"config": {"x": "${oc.env:HOME}"}},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../escaped"},
        {"run": "a/b"},
        {"run": "a\nb"},
        {"config": {"data": {"text": "${oc.env:HOME}"}}},
    ],
)
def test_rows_of_a_stranger_are_refused_and_named(tmp_path, change):
    archive.append(tmp_path / archive.NAME, [{**ROW, **change}])
    with pytest.raises(DamagedFile, match=r"runs\.jsonl"):
        archive.read(tmp_path / archive.NAME)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    archive.append(tmp_path / archive.NAME, [ROW])
    monkeypatch.setattr(archive, "MAX_BYTES", 10)
    with pytest.raises(DamagedFile, match="10 bytes"):
        archive.read(tmp_path / archive.NAME)


@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_is_refused_with_its_line(tmp_path, name):
    file = tmp_path / archive.NAME
    lines = [json.dumps(row) for row in (LINE, LINE, LINE | ODD_ROWS[name], LINE)]
    file.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    with pytest.raises(DamagedFile, match=r"runs\.jsonl\.gz.*line 3"):
        archive.read(file)


@pytest.mark.parametrize("line", [b"\xff", b"[]", b"3", b"{", b"[" * 100_000, b'{"a": ' * 100_000, b""])
def test_a_line_that_is_no_row_is_refused_with_its_number(tmp_path, line):
    file = tmp_path / archive.NAME
    file.write_bytes(gzip.compress(json.dumps(LINE).encode() + b"\n" + line + b"\n"))
    with pytest.raises(DamagedFile, match="line 2"):
        archive.read(file)


def test_rows_that_would_fill_the_memory_are_refused_before_they_do(tmp_path, monkeypatch):
    file = tmp_path / archive.NAME
    monkeypatch.setattr(archive, "KEPT_BYTES", 2**16)
    monkeypatch.setattr(archive, "MAX_BYTES", 2**24)
    line = json.dumps(LINE).encode() + b"\n"
    file.write_bytes(gzip.compress(line * (2**18 // len(line))))
    assert len(archive.read(file)) == 2**18 // len(line), "read in a second pass"
    monkeypatch.setattr(archive, "MAX_VALUES", 100)
    with pytest.raises(DamagedFile, match=r"rows have [\d,]+ values"):
        archive.read(file)
    for block in (bytes(2**20), line * (2**20 // len(line))):
        file.write_bytes(gzip.compress(block) * 20)
        tracemalloc.start()
        with pytest.raises(DamagedFile, match="16,777,216 bytes"):
            archive.read(file)
        with pytest.raises(DamagedFile, match="16,777,216 bytes"):
            archive.append(file, [ROW])
        assert tracemalloc.get_traced_memory()[1] < 2**23, "less than the rows"
        tracemalloc.stop()
    monkeypatch.setattr(archive, "MAX_ROW_BYTES", 2**20)
    file.write_bytes(gzip.compress(line + bytes(2**22)))
    with pytest.raises(DamagedFile, match="line 2 has more than"):
        archive.read(file)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_is_added_to_what_is_no_file(tmp_path, kind):
    thesis, file = tmp_path / "thesis.txt", tmp_path / archive.NAME
    thesis.write_text("my thesis")
    {"link": lambda: file.symlink_to(thesis), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}[kind]()
    with pytest.raises(DamagedFile, match=rf"{archive.NAME}.*{kind}"):
        archive.append(file, [ROW])
    with pytest.raises(ConfigError, match=archive.NAME):
        archived_runs(file)
    assert thesis.read_text() == "my thesis"


def test_an_archive_that_is_a_link_to_itself_is_named(tmp_path):
    """FAULTS 103."""
    file = tmp_path / archive.NAME
    file.symlink_to(file)
    with pytest.raises(DamagedFile, match="Too many levels of symbolic links"):
        archived_runs(file)
