"""What killed processes have left on disk: scratch folders, locks and files that were being written (`kleiber clean`).

Nothing counts as left over while a live process holds it, or holds the lock of the run that it is in; nor a checkpoint
that was written whole, though its folder was not renamed yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kleiber.records.files import read_json
from kleiber.records.locks import LOCK_FILE, LONGEST_ID, SCRATCH, WRITTEN_UNDER, is_locked, is_writing, try_lock
from kleiber.records.regular_files import DamagedFile, file_sha256, path_inside, read_bytes, remove

META = "meta.json"  # of a checkpoint, with the sha256 of its other files


@dataclass(frozen=True)
class Leftover:
    """A file or folder that a killed process has left.

    kind  scratch folder, lock, or unfinished file
    size  bytes of the file, or of all files in the folder
    """

    path: Path
    kind: str
    size: int

    def remove(self) -> bool:
        """Removes it, unless a process has taken it since it was found; returns whether it is gone."""
        if self.kind == "unfinished file":
            remove(self.path)
            return not os.path.lexists(self.path)
        with try_lock(self.path / SCRATCH if self.path.is_dir() else self.path) as is_free:
            if is_free:
                remove(self.path)
        return not self.path.exists()


def find_leftovers(folder: Path, temporary: Path) -> list[Leftover]:
    """Returns what killed processes have left below a folder of runs, and in the folder of temporary files."""
    leftovers = [Leftover(path, "scratch folder", size_of(path)) for path in free_scratch(temporary)]
    for parent, folders, files in os.walk(folder):
        place = Path(parent)
        if is_locked(place):  # a live process writes here
            folders.clear()
            continue
        if LOCK_FILE in files and is_process_id(place / LOCK_FILE):
            leftovers.append(Leftover(place / LOCK_FILE, "lock", size_of(place / LOCK_FILE)))
        unfinished = [place / name for name in (*folders, *files) if is_left_over(place / name)]
        leftovers += [Leftover(path, "unfinished file", size_of(path)) for path in unfinished]
        folders[:] = sorted(name for name in folders if place / name not in unfinished)
    return leftovers


def free_scratch(temporary: Path) -> Iterator[Path]:
    """Yields kleiber's scratch folders that no process holds."""
    for lock in sorted(temporary.glob(f"kleiber-*/{SCRATCH}")):
        with try_lock(lock) as is_free:
            if is_free:
                yield lock.parent


def is_process_id(path: Path) -> bool:
    """Whether a file is a lock of kleiber: it contains the id of a process, or nothing."""
    try:
        content = read_bytes(path, LONGEST_ID).strip(b"\0\n")
    except DamagedFile:
        return False
    return not content or content.isdigit()


def is_left_over(path: Path) -> bool:
    """Whether a file or folder has a name under which kleiber writes, and the process that wrote it is gone."""
    match = WRITTEN_UNDER.fullmatch(path.name)
    return match is not None and not is_writing(path, int(match.group(1))) and not is_whole_checkpoint(path)


def is_whole_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint in which every file has the sha256 of its meta.json."""
    if not (path / META).is_file():
        return False
    try:
        hashes = read_json(path / META).get("sha256")
        return isinstance(hashes, dict) and all(
            file_sha256(path_inside(path, name)) == value for name, value in hashes.items()
        )
    except (DamagedFile, OSError):
        return False


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; a link counts as itself."""
    files = [path] if path.is_symlink() or not path.is_dir() else list(path.rglob("*"))
    return sum(place.lstat().st_size for place in files if place.is_symlink() or not place.is_dir())


def format_bytes(number: int) -> str:
    """Returns a number of bytes with three digits and a unit, such as `1.25 MB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number} B"
