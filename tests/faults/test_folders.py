"""Twenty folders as people have them: those of installed packages, nested, with any endings, binary files among them.

What is read and what is listed as left out are together what is on the disk, and the documents are those that a few
lines of Python read. FAULTS 97, 98.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import itertools
import json
import lzma
import os
import shutil
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from kleiber.data.corpus import TextCorpus
from kleiber.data.text import Text
from kleiber.data.tokenizers import Bytes

FOLDERS, SMALLEST, LARGEST = 20, 300_000, 8_000_000  # how many, and bytes of one
OPENERS = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
ROWS = [f"row {i} of a table,\nwith two lines" for i in range(30)]
REASONS = {"binary", "empty", "not UTF-8", "UTF-16", "hidden", "link", "without text", "no rows"}


def package_folders() -> list[Path]:
    """The folders of packages with the most kinds of files."""
    kinds: dict[Path, int] = {}
    for folder in sorted(Path(sysconfig.get_paths()["purelib"]).iterdir()):
        if folder.is_dir() and not folder.is_symlink():
            files = [path for path in folder.rglob("*") if path.is_file()]
            if len(files) < 2000 and SMALLEST < sum(path.stat().st_size for path in files) < LARGEST:
                kinds[folder] = len({path.suffix for path in files})
    return sorted(kinds, key=lambda folder: (-kinds[folder], folder.name))[:FOLDERS]


def add_names_and_tables(home: Path) -> dict[str, list[str]]:
    """Adds names of splits, an empty file, a link, a hidden file and tables of kinds that the folder lacks.

    Returns the texts of the rows of each table, by its name.
    """
    kinds = {path.suffix for path in home.rglob("*")}
    for name in ("train", "test", "validation"):
        (home / name / "deep").mkdir(parents=True, exist_ok=True)
        (home / name / "deep" / f"{name}-1.txt").write_text(f"a text that is called {name}\r\nin {home.name}")
    (home / "nothing.txt").touch()
    (home / ".hidden").write_text("hidden")
    (home / "out.txt").symlink_to(Path(__file__))
    written: dict[str, list[str]] = {}
    for name, write in WRITERS.items():
        if "." + name.split(".")[1] not in kinds - {".json"}:
            written[name] = [f"{name} of {home.name}: {row}" for row in ROWS]
            write(home / name, [{"id": i, "text": text} for i, text in enumerate(written[name])])
    return written


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_values(path: Path, rows: list[dict[str, object]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, list[dict[str, object]]], object]] = {
    "part-0.jsonl.gz": write_lines,
    "eval.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "rows.csv": write_values,
    "rows.tsv": write_values,
    "rows.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


def documents(corpus: TextCorpus) -> Counter[bytes]:
    """All documents of all splits."""
    files = [corpus.train.file, *(held.file for held in (*corpus.validation.values(), *corpus.test.values()))]  # type: ignore[attr-defined]
    found: Counter[bytes] = Counter()
    for file in files:
        ids = np.asarray(file.ids)
        begins = [*np.flatnonzero(ids == Bytes.eos).tolist(), len(ids)]
        found.update(ids[a + 1 : b].astype(np.uint8).tobytes() for a, b in itertools.pairwise(begins))
    return found


def text_of(path: Path) -> bytes:
    """The text of a file, which raises UnicodeDecodeError where it is none."""
    raw = path.read_bytes()
    for magic, decompress in OPENERS.items():
        raw = decompress(raw) if raw.startswith(magic) else raw
    text = raw.decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n").encode()


@pytest.mark.slow
@pytest.mark.long
def test_all_that_is_on_the_disk_of_twenty_folders_is_read_or_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    folders = package_folders()
    assert len(folders) == FOLDERS
    for folder in folders:
        home = tmp_path / folder.name
        shutil.copytree(folder, home, symlinks=True)
        tables = add_names_and_tables(home)
        corpus = Text(str(home)).prepare(1)
        (noted,) = [manifest["read"] for manifest in corpus.manifest.values()]
        walked = [Path(place) / name for place, _, names in os.walk(home) for name in names]
        on_disk = {path.relative_to(home).as_posix(): path for path in walked if not path.is_symlink()}
        left_out = {entry["name"]: entry for entry in noted["left_out"]}
        read = [name for name in on_disk if name not in left_out and not any(p[0] == "." for p in Path(name).parts)]
        hidden = sum(on_disk[name].stat().st_size for name in on_disk if name not in read and name not in left_out)
        sizes = sum(path.stat().st_size for path in on_disk.values())
        listed = sum(entry["size"] for entry in left_out.values())
        (of_train,) = noted["splits"].values()
        assert of_train["bytes"] + listed + hidden == sizes and of_train["files"] == len(read), folder
        assert {entry["reason"] for entry in left_out.values()} <= REASONS | {"damaged gzip", "damaged xz"}, folder
        texts = [text_of(on_disk[name]) for name in read if name not in tables]
        rows = [text.encode() for of_table in tables.values() for text in of_table]
        assert documents(corpus) == Counter(text for text in [*texts, *rows] if text), folder
        for name, entry in left_out.items():
            if entry["reason"] in ("not UTF-8", "UTF-16", "binary"):
                with pytest.raises((UnicodeDecodeError, AssertionError)):
                    assert b"\0" not in text_of(on_disk[name])
        shutil.rmtree(home)
