"""Patterns and URLs stand for files, and what stands for none is named."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import fsspec
import pytest

from kleiber.data.labelled import Labelled
from kleiber.data.location import locate
from kleiber.data.mixture_corpus import MixtureCorpus
from kleiber.data.text import Text


@pytest.mark.slow
def test_a_url_is_read_through_fsspec_and_its_folders_are_splits_on_request(
    row_files: dict[str, Path], cache: Path
) -> None:
    memory = fsspec.filesystem("memory")
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"):
        memory.pipe(f"/bucket/rows{suffix}", row_files[suffix].read_bytes())
    names = ["memory://bucket/rows" + suffix for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")]
    assert len({Text(name).prepare(16).hash for name in [*names, str(row_files[".jsonl"])]}) == 1
    memory.pipe("/parts/train/a.jsonl", b'{"text": "of training"}\n' * 9)
    memory.pipe("/parts/validation/b.jsonl", b'{"text": "of validation"}\n' * 9)
    memory.pipe("/parts/.hidden/c.jsonl", b"not read")
    memory.pipe("/parts/logo.png", bytes(20))
    corpus = Text("memory://parts", splits="files").prepare(8)
    assert corpus.name == "parts" and corpus.num_bytes == 9 * len("of training")
    whole = Text("memory://parts").prepare(8)
    sizes = [split["bytes"] for split in whole.manifest["parts"]["splits"].values()]
    assert sum(sizes) == 9 * len("of training") + 9 * len("of validation")
    left_out = {entry["name"]: entry["reason"] for entry in whole.manifest["parts"]["read"]["left_out"]}
    assert left_out == {"logo.png": "binary"}
    assert [(entry.name, entry.reason) for entry in locate("memory://parts").left_out] == [
        (".hidden/c.jsonl", "hidden")
    ]
    before = locate("memory://parts").fingerprint()
    memory.pipe("/parts/train/a.jsonl", b'{"text": "of tr@ining"}\n' * 9)
    assert locate("memory://parts").fingerprint() != before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{home}/none-*.jsonl", "must stand for files, and there are none"),
        ("memory://nowhere/x.jsonl", "is no file or folder"),
        ("nonsense://bucket/x.jsonl", "cannot be opened"),
        ("{home}/*.bin", r"must contain text or tables; left out are 1 file, 9 bytes: 1 binary \(a\.bin\)"),
    ],
)
def test_a_pattern_or_url_that_stands_for_nothing_is_named(
    path: str, message: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(9))
    place = path.format(home=tmp_path)
    with pytest.raises(ValueError, match=f"data.path={re.escape(place)}.*{message}"):
        Text(place).prepare(16)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text('{"text": "words"}\n')
    for path in (str(tmp_path), f"{tmp_path}/*.jsonl", f"{tmp_path}/" + os.fsdecode(b"caf\xe9.jsonl")):
        with pytest.raises(ValueError, match=r"caf\\udce9\.jsonl' has a name that is not in UTF-8: rename it"):
            locate(path)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("{home}/p?/x.jsonl", ["p1/x.jsonl", "p2/x.jsonl"]),
        ("{home}/p[13]/*.jsonl", ["p1/x.jsonl"]),
        ("{home}/.hidden/*.jsonl", [".hidden/x.jsonl"]),
        ("file://{home}/.hidden", [".hidden/x.jsonl"]),
        ("file://{home}/.hidden/x.jsonl", [".hidden/x.jsonl"]),
        ("{home}/set/*.jsonl", ["set/link.jsonl"]),
        ("{home}/set/*/*.jsonl", ["set/linked/x.jsonl", "set/part/x.jsonl"]),
        ("{home}/set", ["set/part/x.jsonl"]),
    ],
)
def test_wildcards_and_links_may_be_anywhere_in_a_pattern_and_no_link_of_a_folder_is_followed(
    path: str, names: list[str], tmp_path: Path
) -> None:
    for name in ("p1", "p2", ".hidden", "set/part"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.jsonl").write_text("{}")
    links = {"link.jsonl": "p1/x.jsonl", ".seen": "p1", "linked": "p1", "up": ".", "part/up": "set"}
    for link, target in links.items():
        (tmp_path / "set" / link).symlink_to(tmp_path / target)
    place = path.format(home=tmp_path)
    location = locate(place)
    assert [file.path.removeprefix(f"{tmp_path}/") for file in location.files] == names
    if path == "{home}/set":
        left_out = [(entry.name, entry.reason) for entry in location.left_out]
        assert left_out == [(name, "link") for name in (".seen/", "link.jsonl", "linked/", "part/up/", "up/")]


def test_an_error_of_a_file_system_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """As botocore raises it, which is no OSError."""

    def refuse(*_: object) -> None:
        raise NoCredentialsError("no credentials")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.isdir", refuse)
    with pytest.raises(ValueError, match=r"data\.path=memory://closed cannot be opened: no credentials"):
        locate("memory://closed")


def test_data_is_named_after_its_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl.gz", "b.jsonl.gz", "[c].txt", "d.rst"):
        Path(name).write_text("x")
    names = ["a.jsonl.gz", "*.gz", f"{tmp_path}/*.gz", f"{tmp_path}", "[c].txt", f"{tmp_path}/a*", "d.rst"]
    stems = ["a", "text", tmp_path.name, tmp_path.name, "[c]", tmp_path.name, "d"]
    assert [locate(name).stem for name in names] == stems


@pytest.mark.slow
def test_a_local_copy_of_a_hub_data_set_is_told_with_its_rows_and_bytes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "copies" / "someone" / "reviews"
    home.mkdir(parents=True)
    lines = [json.dumps({"text": f"number {i} of a few", "label": i % 2}) + "\n" for i in range(40)]
    (home / "train.jsonl").write_text("".join(lines))
    (home / "validation.jsonl").write_text("".join(lines[:8]))
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path / "copies"))
    train, validation = (sum(len(f"number {i} of a few") for i in range(count)) for count in (40, 8))
    sizes = f"train {train:,} bytes, validation {validation:,} bytes"  # rows of jsonl are not counted
    files = sum(path.stat().st_size for path in home.iterdir())
    for prepare, told in (
        (Text("someone/reviews").prepare, sizes),
        (MixtureCorpus({"builtin/docs": 0.5, "someone/reviews": 0.5}, max_bytes="100K").prepare, sizes),
        (Labelled("someone/reviews").prepare, f"train 40 rows, validation 8 rows, {files:,} bytes in all its files"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", "kleiber"):
            prepare(8)
        (message,) = [line for line in caplog.messages if line.startswith("someone/reviews from ")]
        assert message.endswith(f": {told}") and str(home) in message


def test_names_decide_about_splits_only_where_there_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLEIBER_DATA", raising=False)
    (tmp_path / "a.txt").write_text("text")
    for path in (str(tmp_path / "a.txt"), "someone/nothing"):
        with pytest.raises(ValueError, match=rf"data\.splits=files is for folders, and data\.path={path}"):
            locate(path, "files")
    assert locate(str(tmp_path), "files").by_name and not locate(str(tmp_path), "auto").by_name
