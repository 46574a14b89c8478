"""The files of a folder: those that are read, those that are left out and why, and which are tables by their names.

A folder means all of its files, in folders at any depth. Left out are hidden files and folders (whose names begin with
a dot), links, which may lead out of the folder, and special files such as named pipes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kleiber.data.read_errors import COMPRESSION

TABLES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}  # by suffix
HIDDEN, LINK, SPECIAL = "hidden", "link", "special"
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # folders of the hub's cache: a snapshot consists of links to blobs


@dataclass(frozen=True)
class File:
    """A file of a data set.

    path     of the file, or a URL that fsspec opens
    name     relative to the folder of the data set, with slashes
    size     in bytes
    version  changes whenever the file is written
    changed  when it was last written, in nanoseconds; 0 where that is unknown
    """

    path: str
    name: str
    size: int
    version: str
    changed: int = 0


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read, or a hidden folder with the number and bytes of the files in it.

    name    relative to the folder of the data set; that of a folder ends with a slash
    reason  such as "hidden" or "binary"
    """

    name: str
    reason: str
    size: int = 0
    files: int = 1


def suffix(path: str) -> str:
    """Returns the suffix of a file without that of its compression, such as .jsonl."""
    suffixes = [part.lower() for part in Path(path).suffixes if part.lower() not in COMPRESSION]
    return suffixes[-1] if suffixes else ""


def is_table(path: str) -> bool:
    """Whether the name of a file says that it is a table; what JSON contains may say otherwise."""
    return suffix(path) in TABLES


def describe_left_out(left_out: Iterable[LeftOut]) -> str:
    """Returns what is left out, such as "3 files, 5,120 bytes: 2 binary (a.png, b.pyc), 1 empty (c.txt)"."""
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in left_out:
        by_reason.setdefault(entry.reason, []).append(entry)
    reasons = sorted(by_reason, key=lambda reason: -sum(entry.files for entry in by_reason[reason]))
    entries = [entry for reason in reasons for entry in by_reason[reason]]
    count = sum(entry.files for entry in entries)
    parts = [
        f"{sum(entry.files for entry in group):,} {reason} ({list_names(entry.name for entry in group)})"
        for reason, group in ((reason, by_reason[reason]) for reason in reasons)
    ]
    return f"{count:,} file{'s' * (count != 1)}, {sum(entry.size for entry in entries):,} bytes: {', '.join(parts)}"


def list_names(names: Iterable[str], shown: int = 3) -> str:
    """Returns the first names, with control characters as escapes, and how many more there are."""
    listed = [*names]
    text = ", ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in name) for name in listed[:shown])
    return f"{text} and {len(listed) - shown:,} more" if len(listed) > shown else text


def local_file(path: Path, name: str) -> File:
    """Returns the facts of a file on this machine. Its change time shows every write, whatever its other times are."""
    facts = path.stat()
    version = f"{facts.st_dev} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    return File(str(path), name, facts.st_size, version, facts.st_ctime_ns)


def walk(folder: Path) -> tuple[list[File], list[LeftOut]]:
    """Returns the files in a folder and in its folders, and those that are left out, both in the order of their names.

    Raises ValueError for a folder that cannot be listed.
    """
    files: list[File] = []
    left_out: list[LeftOut] = []
    blobs = folder.absolute().parents[1] / BLOBS if folder.absolute().parent.name == SNAPSHOTS else None
    for place, folders, names in os.walk(folder, onerror=_refuse):
        base, read = Path(place), []
        for name in folders:
            path = base / name
            relative = f"{path.relative_to(folder).as_posix()}/"
            if path.is_symlink():
                left_out.append(LeftOut(relative, LINK))
            elif name.startswith("."):
                left_out.append(_hidden_folder(path, relative))
            else:
                read.append(name)
        folders[:] = read
        for name in names:
            path = base / name
            relative, facts = path.relative_to(folder).as_posix(), path.lstat()
            is_blob = stat.S_ISLNK(facts.st_mode) and blobs is not None and path.resolve().parent == blobs.resolve()
            if name.startswith("."):
                left_out.append(LeftOut(relative, HIDDEN, facts.st_size if stat.S_ISREG(facts.st_mode) else 0))
            elif stat.S_ISREG(facts.st_mode) or (is_blob and path.is_file()):
                files.append(local_file(path, relative))
            else:
                left_out.append(LeftOut(relative, LINK if stat.S_ISLNK(facts.st_mode) else SPECIAL))
    return sorted(files, key=lambda file: file.name), sorted(left_out, key=lambda file: file.name)


def _hidden_folder(folder: Path, name: str) -> LeftOut:
    """Returns the number and bytes of the regular files in a hidden folder."""
    sizes = [
        facts.st_size
        for place, _, names in os.walk(folder, onerror=_refuse)
        for facts in (os.lstat(os.path.join(place, name)) for name in names)
        if stat.S_ISREG(facts.st_mode)
    ]
    return LeftOut(name, HIDDEN, sum(sizes), len(sizes))


def _refuse(error: OSError) -> None:
    raise ValueError(f"data.path has the folder {error.filename}, which cannot be read: {error.strerror}") from None
