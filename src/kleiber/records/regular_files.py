"""Opens, makes and removes the files and folders of runs, studies and the cache: the only module that does.

A folder may be a stranger's, or what a killed process has left, so that anything may stand where a file is expected. A
pipe or a device is refused without opening it, since that could wait forever or act on the device; so is a file that is
larger than its reader expects. Links are followed for reading, as those of a download cache, and never for writing;
within `links_refused`, also not for reading.

Everything that is written goes to a path inside a folder that the user named. `make_folder` makes folders inside it,
and refuses a link in the place of one of them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, TextIO

from kleiber.config.errors import ConfigError
from kleiber.records.terminal import print_line

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link",
}  # fmt: skip
LONGEST = 200  # characters of a name in an error
WITHOUT_LINKS: ContextVar[Path | None] = ContextVar("folder in which links are not followed", default=None)
ALWAYS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a pipe that takes the place of a file just now is not waited for


class DamagedFile(ConfigError):
    """A file cannot be read or written, or has a content that kleiber does not write. The message names the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}")
        self.path, self.reason = path, reason


@contextmanager
def links_refused(folder: Path) -> Iterator[None]:
    """Within it, reading a file in `folder` raises DamagedFile where the file, or a folder on the way, is a link."""
    token = WITHOUT_LINKS.set(folder.absolute())
    try:
        yield
    finally:
        WITHOUT_LINKS.reset(token)


def kind_of(path: Path) -> str | None:
    """What stands at `path` and is not a file, such as `a pipe` or `a link`; None for a file, or for nothing."""
    try:
        return KINDS.get(stat.S_IFMT(os.lstat(path).st_mode))
    except OSError:
        return None


def open_to_read(path: Path) -> BinaryIO:
    """Opens a file to read its bytes. Raises DamagedFile for anything else, and OSError where it cannot be opened."""
    return open(path, "rb", opener=partial(_open, follow=True))


def open_to_append(path: Path) -> BinaryIO:
    """Opens a file to read it and to add bytes to its end, and makes it where there is none.

    Raises DamagedFile for a link and for anything else that is not a file.
    """
    return open(path, "ab+", opener=partial(_open, follow=False))


def open_to_add_lines(path: Path) -> TextIO:
    """Opens a file to add text to its end, and makes it where there is none; raises as `open_to_append`."""
    return open(path, "a", encoding="utf-8", opener=partial(_open, follow=False))


def create(path: Path) -> IO[bytes]:
    """Makes a file and opens it to write. Raises FileExistsError where anything has its name, links among them."""
    return open(path, "xb", opener=partial(_open, follow=False))


def open_handle(path: Path, flags: int) -> int:
    """Opens a file as os.open does, without following a link; raises as `open_to_append`. Used for locks."""
    return _open(path, flags, follow=False)


def _open(path: str | Path, flags: int, follow: bool) -> int:
    home, place = WITHOUT_LINKS.get(), Path(path).absolute()
    if home is not None and place.is_relative_to(home):
        _refuse_links_below(home, place)
        follow = False
    _refuse_other_kinds(path, follow)
    handle = os.open(path, flags | ALWAYS | (0 if follow else os.O_NOFOLLOW), 0o666)
    kind = KINDS.get(stat.S_IFMT(os.fstat(handle).st_mode))
    if kind is not None:
        os.close(handle)
        raise DamagedFile(Path(path), f"it is {kind}, not a file")
    return handle


def _refuse_links_below(home: Path, place: Path) -> None:
    """Raises DamagedFile where a path below `home` leads through a link."""
    for part in (place, *place.parents):
        if part == home:
            return
        if part.is_symlink():
            raise DamagedFile(part, "it is a link, and no link in this folder is followed: replace it by its content")


def _refuse_other_kinds(path: str | Path, follow: bool) -> None:
    """Raises DamagedFile for what is not a file, before it is opened; does nothing where nothing is there."""
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        reason = f"it is a link to {os.readlink(path)}, and nothing is written through links: replace it by a file"
        raise DamagedFile(Path(path), reason)
    if not stat.S_ISREG(mode):
        raise DamagedFile(Path(path), f"it is {KINDS.get(stat.S_IFMT(mode), 'of an unknown kind')}, not a file")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a file. Raises DamagedFile unless it is a file of at most `max_bytes` bytes."""
    try:
        with open_to_read(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size + 1) if size <= max_bytes else b""  # a buffer of max_bytes would be allocated
            if len(content) > size:
                content += file.read(max_bytes + 1 - len(content))
                size = len(content)
    except FileNotFoundError:
        raise DamagedFile(path, "it does not exist") from None
    except OSError as error:
        raise DamagedFile(path, str(error.strerror)) from None
    if size > max_bytes:
        raise DamagedFile(path, f"it has {size:,} bytes, more than {max_bytes:,}")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """Returns the text of a file. Raises DamagedFile unless it is a file of at most `max_bytes` bytes in UTF-8."""
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"byte {error.start} is not UTF-8") from None


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content, in hex."""
    with open(path, "rb", opener=partial(_open, follow=True)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(home: Path, *names: str) -> Path:
    """Makes the folder `home`/NAME/..., with those above it, and returns it.

    home   a folder that the user named; links in its path are followed
    names  of folders inside it

    Raises DamagedFile where a link or a file stands in the place of one of them, and ConfigError for a name that leads
    elsewhere, such as `..`.
    """
    home.mkdir(parents=True, exist_ok=True)
    folder = home
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            raise ConfigError(f"{name!r} must be the name of a folder in {folder}")
        folder = folder / name
        refuse_link(folder)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise DamagedFile(folder, "it must be a folder: rename or remove what has its name") from None
    return folder


def path_inside(folder: Path, name: object) -> Path:
    """Returns `folder`/NAME for a name that a file gives. Raises DamagedFile for one that leads out of the folder."""
    text = str(name)
    if not text or os.path.isabs(text) or ".." in Path(text).parts or "\0" in text:
        raise DamagedFile(folder, f"{text[:LONGEST]!r} must be the name of a file in it")
    return folder / text


def refuse_link(folder: Path) -> None:
    """Raises DamagedFile where a link stands in the place of a folder to write in."""
    if folder.is_symlink():
        reason = f"it is a link to {os.readlink(folder)}, and nothing is written through links"
        raise DamagedFile(folder, f"{reason}: move its content here, or remove the link")


def remove(path: Path) -> None:
    """Removes whatever is at `path`: a folder with its content, a file, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def rename_aside(path: Path, expected: str = "folder") -> None:
    """Renames what stands where a folder or a file is `expected` to `<name>.1`, or the next free number.

    The target of a link stays as it is.
    """
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    aside = next(candidate for candidate in numbered if not os.path.lexists(candidate))
    os.rename(path, aside)
    print_line(f"warning: {path} is not a {expected}: renamed it to {aside.name}", err=True)
