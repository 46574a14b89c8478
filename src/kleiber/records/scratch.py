"""What a process leaves behind when it is killed, and its removal by a process that starts later.

A scratch folder contains a file that its process holds locked. The lock ends with the process, whatever ends it, so a
folder whose lock is free is left over. A file or folder that is written under the name `NAME.part-PID` is left over
when process PID is gone, or is another one, which started later.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".kleiber-scratch"
PART = re.compile(r".+\.part-(\d+)")
CLOCK_SECONDS = 2.0  # by which the start of a process and the time stamp of a file may differ


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Makes the folder `parent/prefixXXXXXXXX` and removes it on exit.

    Before that, removes the folders with the same prefix that killed processes left there.

    parent  None for the folder of temporary files
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    sweep_scratch(parent, prefix)
    folder, lock = _make(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    """Returns a new scratch folder and its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / LOCK).exists():
            return folder, lock
        os.close(lock)  # another process took it for left over before it was locked


def sweep_scratch(parent: Path, prefix: str) -> None:
    """Removes the scratch folders of killed processes from `parent`."""
    for lock in parent.glob(f"{prefix}*/{LOCK}"):
        with try_lock(lock) as free:
            if free:
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Locks the file at `path` if it is there and no process holds its lock; yields whether it did."""
    try:
        number = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(number)


def sweep_parts(paths: Iterable[Path]) -> None:
    """Removes those of the paths that a killed process was writing, by the process id in their names."""
    for path in paths:
        match = PART.fullmatch(path.name)
        if match is None or _is_writing(path, int(match.group(1))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_writing(path: Path, process: int) -> bool:
    """Whether the process lives, and started before the file was last changed."""
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    started = _start_time(process)
    try:
        return started is None or started <= path.lstat().st_mtime + CLOCK_SECONDS
    except FileNotFoundError:
        return False


def _start_time(process: int) -> float | None:
    """Returns when a process started, in seconds since 1970; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        system = Path("/proc/stat").read_text().partition("btime ")[2].split()
        return int(system[0]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
