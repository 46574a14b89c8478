"""Every file of a folder is read or left out with a reason, and nothing outside of it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kleiber.data.folders import LeftOut, describe_left_out, list_names, local_file, walk


def test_all_regular_files_are_found_and_all_others_are_left_out_with_the_reason(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in (home / "deep" / "er", home / ".git" / "objects", outside):
        folder.mkdir(parents=True)
    for name in ("b.txt", "deep/a.md", "deep/er/no_ending", ".hidden.txt", ".git/objects/x", ".git/HEAD"):
        (home / name).write_text(name)
    (outside / "secret.txt").write_text("secret")
    (home / "link.txt").symlink_to(outside / "secret.txt")
    (home / "linked").symlink_to(outside)
    (home / "deep" / "up").symlink_to(home)
    (home / "gone").symlink_to(home / "nothing")
    os.mkfifo(home / "pipe")
    files, left_out = walk(home)
    assert [file.name for file in files] == ["b.txt", "deep/a.md", "deep/er/no_ending"]
    assert [file.size for file in files] == [5, 9, 17]
    assert [(entry.name, entry.reason, entry.size, entry.files) for entry in left_out] == [
        (".git/", "hidden", 14 + 9, 2),
        (".hidden.txt", "hidden", 11, 1),
        ("deep/up/", "link", 0, 1),
        ("gone", "link", 0, 1),
        ("link.txt", "link", 0, 1),
        ("linked/", "link", 0, 1),
        ("pipe", "special", 0, 1),
    ]


def test_a_snapshot_of_the_cache_of_the_hub_consists_of_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "set" / "snapshots" / "abc", tmp_path / "set" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "123").write_text("rows")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "train.jsonl").symlink_to("../../blobs/123")
    (snapshot / "other.jsonl").symlink_to("../../../secret")
    files, left_out = walk(snapshot)
    assert [(file.name, file.size) for file in files] == [("train.jsonl", 4)]
    assert [(entry.name, entry.reason) for entry in left_out] == [("other.jsonl", "link")]


def test_a_write_that_keeps_size_and_time_changes_the_version(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before, facts = local_file(path, "a.txt"), path.stat()
    while local_file(path, "a.txt").version == before.version:  # times have a resolution of some milliseconds
        path.write_text("two")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_mtime_ns == facts.st_mtime_ns and local_file(path, "a.txt").size == before.size


def test_what_is_left_out_is_described_by_reason_and_control_characters_are_escaped() -> None:
    entries = [LeftOut("a.png", "binary", 10), LeftOut(".git/", "hidden", 5, 3), LeftOut("b\x1b[2J.pyc", "binary", 1)]
    assert describe_left_out(entries) == "5 files, 16 bytes: 3 hidden (.git/), 2 binary (a.png, b\\x1b[2J.pyc)"
    assert list_names("abcde") == "a, b, c and 2 more"


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=f"{tmp_path}, which cannot be read: Permission denied"):
        walk(tmp_path)
