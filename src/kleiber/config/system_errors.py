"""Errors of the system where files are read and written: what went wrong with which file, and what helps.

A disk, a quota or a network file system can refuse any of these calls. The commands print such an error in one line
(`describe`); every other OSError is a mistake of the program, and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kleiber.config.errors import RewardFailed

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # error numbers of a full disk and of a used-up quota
UNREACHABLE = "see whether the network file system is mounted, or move the folder to another one"
UNSUPPORTED = "this file system does not support what kleiber needs: move the folder to another one"
ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "the file system or `ulimit -f` allows no larger file: move the folder to another one, or allow more",
    errno.EROFS: "mount the file system for writing, or move the folder to another one",
    errno.EACCES: "allow this user to read and write there",
    errno.EPERM: "allow this user to read and write there",
    errno.EIO: "the disk or the connection to it fails: look at the system's log, or move the folder to another disk",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.EINVAL: UNSUPPORTED,
    errno.EOPNOTSUPP: UNSUPPORTED,
    errno.ENOLCK: "mount the file system with locks, or move the folder to another one",
    errno.EBUSY: "another program holds the file: end it",
    errno.ETXTBSY: "another program holds the file: end it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "every name in front of the last one must be a folder",
    errno.ESTALE: UNREACHABLE,
    errno.ENODEV: UNREACHABLE,
    errno.ENXIO: UNREACHABLE,
    errno.EREMOTEIO: UNREACHABLE,
    errno.ENOTCONN: UNREACHABLE,
    errno.ETIMEDOUT: UNREACHABLE,
    errno.EHOSTDOWN: UNREACHABLE,
}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to an OSError that is raised within and names no file, such as that of a flush to the disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def describe(error: BaseException) -> str | None:
    """Returns the file, what went wrong and what helps, in one line; None for an error that needs its traceback.

    Errors that have one line are those of the system, and of a reward, which name the prompt.
    """
    if isinstance(error, RewardFailed):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in ADVICE:
        return None
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = f"{' -> '.join(names)}: " if names else ""
    return f"{place}{str(error.strerror).lower() if names else error.strerror}; {ADVICE[error.errno]}"
