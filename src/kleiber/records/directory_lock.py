"""The lock of an open folder: it stays where somebody deletes the lock file in it, or the folder itself.

Linux locks folders as it locks files. Some network file systems do not; there, the lock file alone decides.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
TRIES, PAUSE_SECONDS = 5, 0.05  # another process that looks at a lock holds it briefly
LOCKS = Path("/proc/locks")
HELD: dict[Path, int] = {}  # the open folders that this process has locked


@contextmanager
def lock_directory(folder: Path) -> Iterator[bool]:
    """Locks a folder until the context or the process ends; yields whether no other process has locked it."""
    handle = os.open(folder, OPEN)
    try:
        is_free = _take(handle)
        if is_free:
            HELD[folder.absolute()] = handle
        yield is_free
    finally:
        if HELD.get(folder.absolute()) == handle:
            del HELD[folder.absolute()]
        os.close(handle)


def _take(handle: int) -> bool:
    for number in range(TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if number < TRIES - 1:
                time.sleep(PAUSE_SECONDS)
        except OSError:  # this file system locks no folders
            return True
    return False


def is_directory_locked(folder: Path) -> bool:
    """Whether a live process has locked the folder."""
    try:
        return is_held(os.open(folder, OPEN | os.O_NOFOLLOW))
    except OSError:
        return False


def is_held(handle: int) -> bool:
    """Whether a live process has locked what is open as `handle`, which is closed; False where that cannot be seen."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def is_replaced(folder: Path) -> bool:
    """Whether this process has locked the folder at this path, and it was deleted or moved since."""
    handle = HELD.get(folder.absolute())
    if handle is None:
        return False
    try:
        return not os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return True


def directory_holder(folder: Path) -> str:
    """Id of the process that has locked the folder; "" where the system does not say."""
    try:
        inode, lines = str(folder.stat().st_ino), LOCKS.read_text().splitlines()
    except OSError:
        return ""
    fields = [line.split() for line in lines if " FLOCK " in line and "->" not in line]  # -> is a process that waits
    return next((words[4] for words in fields if words[5].rpartition(":")[2] == inode), "")
