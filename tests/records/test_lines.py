"""Lines of a log are read one after another; damaged and endless ones are passed over and counted."""

import os
import tracemalloc

import pytest

from kleiber.records.lines import MAX_LINE_BYTES, MAX_SKIPPED_BYTES, read_lines
from kleiber.records.regular_files import DamagedFile


def lines_of(path):
    return [text for text, _ in read_lines(path, len)]


def test_lines_of_any_length_are_passed_over_without_filling_the_memory(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"first\n" + b"x" * (MAX_LINE_BYTES + 5) + b"\nsecond\n" + b"y" * MAX_LINE_BYTES + b"\nthird\ncut")
    assert lines_of(path) == ["first", "second", "third"]
    assert "skipped 2 damaged lines, first line 2" in capsys.readouterr().err
    path.write_bytes(b"first\n")
    os.truncate(path, 2**26)
    tracemalloc.start()
    assert lines_of(path) == ["first"]
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_LINE_BYTES
    tracemalloc.stop()
    assert lines_of(tmp_path / "nothing") == []
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFile, match="pipe"):
        lines_of(tmp_path / "pipe")


def test_nothing_is_read_behind_a_line_without_an_end_for_a_hundred_megabytes(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"first\n")
    os.truncate(path, MAX_LINE_BYTES + 2 * MAX_SKIPPED_BYTES)
    with open(path, "ab") as file:
        file.write(b"\nlast\n")
    assert lines_of(path) == ["first"]
    assert "skipped 1 damaged lines, first line 2" in capsys.readouterr().err
