"""What was read, left out and shared is said of every data set."""

from __future__ import annotations

from pathlib import Path

from kleiber.data.location import Location
from kleiber.data.reading import join_readings, read_from
from kleiber.data.sources import Reading

SPLIT = {"files": 2, "bytes": 1200, "texts": 1, "names": []}


def test_a_manifest_without_notes_has_nothing_to_say() -> None:
    assert read_from("a", Location("a", None), {"splits": {}}, None, "document") == Reading()


def test_files_documents_bytes_and_what_is_left_out_are_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("12")
    left_out = [{"name": "b.png", "reason": "binary", "size": 7, "files": 1}]
    noted = {"splits": {"train": SPLIT}, "left_out": left_out}
    (line,) = read_from("a", Location("a", tmp_path), {"read": noted}, 30, "document").files
    assert line == (
        "a: 2 files, 1,200 bytes, 30 documents (1 text, 1 table); left out: 2 files, 9 bytes: 1 binary (b.png), "
        "1 hidden (.hidden)"
    )


def test_splits_by_name_list_the_files_of_each(tmp_path: Path) -> None:
    names = {"train": ["a.txt", "b.txt"], "validation": ["val.txt"]}
    splits = {
        name: {"files": len(of_split), "bytes": 5, "texts": len(of_split), "names": of_split}
        for name, of_split in names.items()
    }
    noted = {"splits": splits, "left_out": []}
    (line,) = read_from("a", Location("a", tmp_path), {"read": noted}, None, "document").files
    assert line == "a: 3 files, 10 bytes (3 texts); train: a.txt, b.txt; validation: val.txt"


def test_shared_documents_and_tables_that_are_left_out_are_warnings(tmp_path: Path) -> None:
    left_out = [{"name": "b.csv", "reason": "without text", "size": 7, "files": 1}]
    noted = {"splits": {"train": SPLIT}, "left_out": left_out}
    manifest = {"read": noted, "overlap": {"documents": 10, "exact": 10, "normalized": 10}}
    reading = read_from("a", Location("a", tmp_path), manifest, None, "row")
    assert len(reading.files) == len(reading.overlap) == 1
    assert ["data.text" in line for line in reading.warnings] == [True, False]
    assert "10 of 10 validation rows (100%)" in reading.warnings[1]
    both = join_readings([reading, Reading(files=("b",)), reading])
    assert both.files == (*reading.files, "b", *reading.files) and len(both.warnings) == 4
