"""Locks of files and folders, and the removal of what processes that were killed have left.

One process at a time writes to a run's folder, or prepares the same data. A lock is a file of its own that holds the id
of the process, and ends with the process. A link or a file with other content in its place is refused, because writing
to it would change a file that is not ours. The folder of a run is locked itself too, in case the file is deleted.

A scratch folder contains a file that its process holds locked, so a folder whose lock is free is left over. A file or
checkpoint that is written under the name `.NAME.part-PID` or `step-00000001.part-PID` is left over when process PID is
gone, or is another one, which started later.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.records.directory_lock import directory_holder, is_directory_locked, is_held, lock_directory
from kleiber.records.regular_files import DamagedFile, kind_of, make_folder, open_handle, read_text, remove

LOCK_FILE = ".lock"  # in a run's folder
LONGEST_ID = 32  # bytes of a process id
SCRATCH = ".kleiber-scratch"  # in a scratch folder
# Names under which kleiber writes a file or checkpoint, with the id of the process, which has 31 bits.
WRITTEN_UNDER = re.compile(r"(?:\..+|step-[0-9]{8})\.part-([1-9][0-9]{0,8})")
END_SECONDS = 1.0  # in which a process that was killed releases its locks
MAX_PROC_BYTES = 2**20  # of a file that describes processes
CLOCK_SECONDS = 2.0  # by which the start of a process and the time stamp of a file may differ


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder until the context or the process ends, and removes what killed processes were writing in it.

    Raises ConfigError where another process holds the lock, where the lock is not a file of its own, and where the file
    system has no locks.
    """
    make_folder(folder)
    while True:
        with lock_directory(folder) as is_free, _opened(folder / LOCK_FILE) as handle:
            if not is_free or not _take(handle, folder / LOCK_FILE):
                raise ConfigError(f"{folder} is in use by {holder(folder)}: wait until it ends, or stop it")
            if not _is_at(handle, folder / LOCK_FILE):  # `kleiber clean` removed the file before it was locked
                continue
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            sweep_parts(folder.rglob("*.part-*"))
            yield
            return


@contextmanager
def wait_for_lock(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Locks the file at `path`, once no other process does, until the context or the process ends.

    on_wait  called if another process holds the lock

    Raises ConfigError where the lock is not a file of its own.
    """
    with _opened(path) as handle:
        if not _take(handle, path, tries=1):
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Opens or makes the file of a lock, without following a link. Raises ConfigError for anything else there."""
    try:
        handle = open_handle(path, os.O_RDWR | os.O_CREAT)
    except DamagedFile:
        raise _not_a_lock(path) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): make its folder writable") from None
    try:
        content = os.pread(handle, LONGEST_ID + 1, 0)
        written = content.strip(b"\0\n")  # a machine that lost its power may leave zeros
        if len(content) > LONGEST_ID or (written and not written.isdigit()):
            raise _not_a_lock(path)
        yield handle
    finally:
        os.close(handle)


def _not_a_lock(path: Path) -> ConfigError:
    kind = kind_of(path) or "a file with other content"
    return ConfigError(f"{path} is {kind}, and must be a lock, a file with the id of a process: remove it")


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    return os.path.lexists(path) and os.path.samestat(os.fstat(handle), os.lstat(path))


def _take(handle: int, path: Path, tries: int = 5) -> bool:
    """Takes the lock if it is free. Tries several times, because `is_locked` of another process holds it briefly.

    Raises ConfigError where the file system has no locks.
    """
    for number in range(tries):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if number < tries - 1:
                time.sleep(0.05)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be locked ({error.strerror}): mount this file system with locks, or set root= (or "
                "KLEIBER_ROOT) and KLEIBER_CACHE to folders of another one"
            ) from None
    return False


def holder(folder: Path) -> str:
    """The process that holds the lock of the folder, such as `process 123`."""
    number = directory_holder(folder)
    if not number and os.path.lexists(folder / LOCK_FILE):
        with _opened(folder / LOCK_FILE) as handle:
            number = os.pread(handle, LONGEST_ID, 0).strip(b"\0\n").decode()
    return f"process {number}" if number else "another process"


def is_locked(folder: Path) -> bool:
    """Whether a live process holds the lock of the folder."""
    if is_directory_locked(folder):
        return True
    try:
        return is_held(open_handle(folder / LOCK_FILE, os.O_RDONLY))
    except (OSError, DamagedFile):
        return False


def stays_locked(folder: Path) -> bool:
    """As `is_locked`, but first gives a process that was killed just now END_SECONDS to end."""
    deadline = time.monotonic() + END_SECONDS
    while is_locked(folder):
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.02)
    return False


@contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Makes the folder `parent/prefixXXXXXXXX` and removes it on exit.

    Before that, removes the folders with the same prefix that killed processes left there.

    parent  None for the folder of temporary files
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    sweep_scratch(parent, prefix)
    folder, lock = _make_scratch(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_scratch(parent: Path, prefix: str) -> tuple[Path, int]:
    """Returns a new scratch folder and its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = open_handle(folder / SCRATCH, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / SCRATCH).exists():
            return folder, lock
        os.close(lock)  # another process took it for left over before it was locked


def sweep_scratch(parent: Path, prefix: str) -> None:
    """Removes the scratch folders of killed processes from `parent`."""
    for lock in parent.glob(f"{prefix}*/{SCRATCH}"):
        with try_lock(lock) as free:
            if free:
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Locks the file at `path` if it is there and no process holds its lock; yields whether it did."""
    try:
        number = open_handle(path, os.O_RDWR)
    except (OSError, DamagedFile):
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
        match = WRITTEN_UNDER.fullmatch(path.name)
        if match is None or is_writing(path, int(match.group(1))):
            continue
        remove(path)


def is_writing(path: Path, process: int) -> bool:
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
        fields = read_text(Path(f"/proc/{process}/stat"), MAX_PROC_BYTES).rpartition(")")[2].split()
        system = read_text(Path("/proc/stat"), MAX_PROC_BYTES).partition("btime ")[2].split()
        return int(system[0]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
