"""Where a data set is: a file, a folder, the files of a pattern or URL, or a name on the hub; and its files."""

from __future__ import annotations

import glob
import logging
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from kleiber.config import hub
from kleiber.config.url_secrets import hide_secrets, open_file_system
from kleiber.config.urls import WILDCARDS, is_pattern, is_url
from kleiber.data.contents import Content, read_contents
from kleiber.data.folders import (
    HIDDEN,
    SNAPSHOTS,
    TABLES,
    File,
    LeftOut,
    describe_left_out,
    is_table,
    local_file,
    suffix,
    walk,
)
from kleiber.data.layout import has_card
from kleiber.data.read_errors import COMPRESSION
from kleiber.types import Json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of a file name that is not UTF-8
Splits = Literal["auto", "files"]


def find_files(path: str) -> tuple[list[File], list[LeftOut]]:
    """Returns the files of a URL or a pattern, or those in the folder that a URL names, in order, and hidden ones.

    Links are followed, but not those to folders that `**` or a URL would have to search. Raises ValueError where there
    are no files, and where the package for the URL is not installed.
    """
    try:
        system, place = open_file_system(path)
        has_wildcard = any(sign in place for sign in WILDCARDS)
        base = os.path.dirname(re.split(r"[*?[]", place)[0]) if has_wildcard else place
        facts = {
            name: system.info(name) if info.get("islink") else info
            for name, info in sorted((_glob(system, place) if has_wildcard else _find(system, place)).items())
        }
    except ImportError as error:
        reason = hide_secrets(str(error))
        raise ValueError(f"data.path={path} cannot be opened ({reason}): install that package") from None
    except FileNotFoundError:
        raise ValueError(f"data.path={path} is no file or folder that can be found: check the path") from None
    except Exception as error:  # each file system has its own, such as for missing credentials
        raise ValueError(f"data.path={path} cannot be opened: {hide_secrets(str(error))}") from None
    sizes = {name: int(info["size"]) for name, info in facts.items() if info["type"] == "file"}
    relative = {name: os.path.basename(name) if name == base else os.path.relpath(name, base) for name in sizes}
    hidden = [name for name in sizes if any(part.startswith(".") for part in Path(relative[name]).parts)]
    names = [name for name in sizes if name not in hidden]
    if not names:
        raise ValueError(f"data.path={path} must stand for files, and there are none")
    files = [
        File(system.unstrip_protocol(name), relative[name], sizes[name], _version(facts[name]))
        if is_url(path)
        else local_file(Path(name), relative[name])
        for name in names
    ]
    return files, [LeftOut(relative[name], HIDDEN, sizes[name]) for name in hidden]


def _glob(system: AbstractFileSystem, pattern: str) -> dict[str, Json]:
    """Returns the facts of what a pattern stands for, by name."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(system, LocalFileSystem) and "**" not in pattern:  # also what is in folders that are links
        return {str(Path(name)): system.info(name) for name in glob.glob(pattern)}
    return cast(dict[str, Json], system.glob(pattern, detail=True))


def _find(system: AbstractFileSystem, place: str) -> dict[str, Json]:
    """Returns the facts of the files in a folder, or of a file, by name."""
    if not system.isdir(place):
        return {place: system.info(place)}
    return cast(dict[str, Json], system.find(place, detail=True))


def _version(info: dict[str, object]) -> str:
    """Returns what tells the contents of a file apart, as far as its file system has it."""
    keys = ("ETag", "etag", "sha256", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
    return next((str(info[key]) for key in keys if info.get(key) is not None), "")


@dataclass(frozen=True)
class Location:
    """Where a data set is.

    name             data.path as the user wrote it
    local            a file or a folder; None for a data set on the hub, a pattern and a URL
    from_local_copy  whether $KLEIBER_DATA led to `local`
    matches          the files that a pattern or a URL stands for, and hidden ones, which are left out
    by_name          whether the names of files decide about splits, whatever a card says
    sampled          whether the files are too much to be read in advance, as those of a stream
    """

    name: str
    local: Path | None
    from_local_copy: bool = False
    matches: tuple[list[File], list[LeftOut]] | None = None
    by_name: bool = False
    sampled: bool = False

    @property
    def on_hub(self) -> bool:
        """Whether the data set is on the hub, without a local copy."""
        return self.local is None and self.matches is None

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a folder in which the hub's library keeps its downloads."""
        return self.local is not None and self.local.parent.name == SNAPSHOTS

    @cached_property
    def has_card(self) -> bool:
        """Whether a card in the folder declares the splits, and names of files do not replace them."""
        return self.local is not None and not self.by_name and has_card(self.local)

    @property
    def is_file(self) -> bool:
        """Whether it is a single file on this machine."""
        return self.local is not None and not self.local.is_dir()

    @property
    def is_text_file(self) -> bool:
        """Whether it is a single file on this machine that is one text."""
        return self.is_file and not is_table(str(self.local))

    @property
    def stem(self) -> str:
        """The last part of the name, without the suffixes of a file."""
        parts = [part for part in self.name.split("/") if part]
        matches = 0 if self.matches is None else len(self.matches[0])
        if matches:
            parts = [part for part in parts if not any(sign in part for sign in WILDCARDS)] or ["text"]
        if matches > 1 and suffix(parts[-1]):
            parts = parts[:-1]
        return parts[-1].split(".", 1)[0] if self.is_file or matches == 1 else parts[-1]

    @cached_property
    def _walked(self) -> tuple[list[File], list[LeftOut]]:
        if self.local is None:
            return self.matches or ([], [])
        if self.is_file:
            return [local_file(self.local, self.local.name)], []
        return walk(self.local)

    @property
    def files(self) -> list[File]:
        """The files on this machine, or those that a pattern or a URL stands for, in the order of their names."""
        return self._walked[0]

    @cached_property
    def contents(self) -> dict[str, Content]:
        """What each file on this machine, or behind a pattern or URL, contains, by its name."""
        base = self.name if self.local is None else str(self.local.resolve())
        return read_contents(base, self.files, self.sampled)

    @cached_property
    def in_reach(self) -> Location:
        """This data set, or while the hub does not answer, what its library has downloaded of it before."""
        if not self.on_hub or hub.reachable() or (folder := hub.downloaded(self.name)) is None:
            return self
        log.info("the hub is not reachable: %s is read from its download in %s", self.name, folder)
        return replace(self, local=folder)

    def fingerprint(self) -> object:
        """Returns JSON-able facts that change with the content: checksums of the files, or the hub's name."""
        if self.on_hub:
            return {"hub": self.name}
        return [[name, content.checksum] for name, content in self.contents.items()]

    @property
    def left_out(self) -> list[LeftOut]:
        """What is never read of a folder: hidden files, links, and what is no regular file."""
        return self._walked[1]


def report_copy(location: Location, manifest: Json) -> None:
    """Logs the rows and bytes of a data set that $KLEIBER_DATA led to, since it may be a part of the hub's.

    manifest  {config, rows: {split}, splits: {split: {bytes}}}; rows that are not counted are left out, and bytes of
              files stand for bytes of text that are not counted
    """
    if not location.from_local_copy:
        return
    sizes = []
    for name, count in manifest["splits"].items():
        amounts = {"rows": manifest["rows"].get(name), "bytes": count.get("bytes")}
        if any(amounts.values()):
            sizes.append(" ".join([name, *(f"{n:,} {unit}" for unit, n in amounts.items() if n is not None)]))
    if not any("bytes" in count for count in manifest["splits"].values()):
        sizes.append(f"{sum(file.size for file in location.files):,} bytes in all its files")
    name = f"{location.name} {manifest['config']}".strip()
    log.info("%s from %s (may be a sample of the hub's): %s", name, location.local, ", ".join(sizes))


def locate(path: str, splits: Splits | None = None, sampled: bool = False) -> Location:
    """Finds a local file or folder, the files of a pattern or URL, a local copy below $KLEIBER_DATA, or the hub itself.

    splits   `files`: splits follow the names of files; None or `auto`: they do not
    sampled  whether the files are too much to be read in advance

    Raises ValueError for a path that is none of these, for an empty file or folder, for a name that is not UTF-8, and
    for `files` where there are no names to follow.
    """
    by_name = splits == "files"
    local = Path(path.removeprefix("file://")).expanduser()
    if local.exists():
        if not (local.is_file() or local.is_dir()):
            raise ValueError(f"data.path={path} must be a regular file or a folder, not a pipe, a socket or a device")
        location = Location(path, local, by_name=by_name, sampled=sampled)
    elif is_pattern(path):
        location = Location(path, None, matches=find_files(path), by_name=by_name, sampled=sampled)
    elif hub.is_name(path) and Path(path).suffix.lower() not in (".txt", *TABLES, *COMPRESSION):
        copy = hub.local_copy(path)
        location = Location(path, copy, copy is not None, by_name=by_name, sampled=sampled)
    else:
        raise ValueError(
            f"data.path={path} must be an existing file or folder, a pattern such as texts/*.jsonl, a URL, or "
            "OWNER/NAME of a data set on the hub"
        )
    if by_name and (location.is_file or location.on_hub):
        where = "a single file" if location.is_file else "a data set on the hub, which has splits of its own"
        raise ValueError(f"data.splits=files is for folders, and data.path={path} is {where}: remove data.splits")
    if location.on_hub:
        return location
    for file in location.files:
        if SURROGATE.search(file.path):
            raise ValueError(f"data.path={path!r}: {file.path!r} has a name that is not in UTF-8: rename it")
    if not sum(file.size for file in location.files):
        left_out = f"; left out are {describe_left_out(location.left_out)}" if location.left_out else ""
        raise ValueError(f"data.path={path} must contain text, but it is empty{left_out}")
    return location
