"""Locks: one process at a time writes to a run's folder, or prepares the same data.

A lock is a file of its own that holds the id of the process, and ends with the process. A link or a file with other
content in its place is refused, because writing to it would change a file that is not ours.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.records.scratch import sweep_parts

NAME = ".lock"  # in a run's folder
LONGEST_ID = 32  # bytes of a process id


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder until the context or the process ends, and removes what killed processes were writing in it.

    Raises ConfigError where another process holds the lock, or where the lock is not a file of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / NAME) as handle:
        if not _take(handle):
            raise ConfigError(f"{folder} is in use by process {holder(folder)}: wait until it ends, or stop it")
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        sweep_parts(folder.rglob("*.part-*"))
        yield


@contextmanager
def wait_for_lock(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Locks the file at `path`, once no other process does, until the context or the process ends.

    on_wait  called if another process holds the lock

    Raises ConfigError where the lock is not a file of its own.
    """
    with _opened(path) as handle:
        if not _take(handle, tries=1):
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Opens or makes the file of a lock, without following a link. Raises ConfigError for anything else there."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise _not_a_lock(path) from None
        raise ConfigError(f"{path} cannot be written ({error.strerror}): make its folder writable") from None
    try:
        content = os.pread(handle, LONGEST_ID + 1, 0) if stat.S_ISREG(os.fstat(handle).st_mode) else b"no file"
        written = content.strip(b"\0\n")  # a machine that lost its power may leave zeros
        if len(content) > LONGEST_ID or (written and not written.isdigit()):
            raise _not_a_lock(path)
        yield handle
    finally:
        os.close(handle)


def _not_a_lock(path: Path) -> ConfigError:
    kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "a file with other content"
    return ConfigError(f"{path} is {kind}, and must be a lock, a file with the id of a process: remove it")


def _take(handle: int, tries: int = 5) -> bool:
    """Takes the lock if it is free. Tries several times, because `is_locked` of another process holds it briefly."""
    for number in range(tries):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if number < tries - 1:
                time.sleep(0.05)
    return False


def holder(folder: Path) -> str:
    """Id of the process that holds the lock of the folder."""
    with _opened(folder / NAME) as handle:
        return os.pread(handle, LONGEST_ID, 0).strip(b"\0\n").decode() or "unknown"


def is_locked(folder: Path) -> bool:
    """Whether a live process holds the lock of the folder."""
    try:
        handle = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
