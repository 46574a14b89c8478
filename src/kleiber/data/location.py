"""Where a data set is: a file, a folder, the files of a pattern or URL, or a name on the hub."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kleiber.config import hub
from kleiber.config.url_secrets import hide_secrets, open_file_system
from kleiber.config.urls import WILDCARDS, is_pattern, is_url
from kleiber.data.read_errors import COMPRESSION
from kleiber.types import Json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of a file name that is not UTF-8
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # by suffix


@dataclass(frozen=True)
class Match:
    """A file that a pattern or URL stands for; `version` changes with its content."""

    path: str
    size: int
    version: str


def find_files(path: str) -> tuple[Match, ...]:
    """Returns the files of a URL or a pattern, or those in the folder that a URL names, in order, without hidden ones.

    Links are followed, but not those to folders that `**` or a URL would have to search. Raises ValueError where there
    are no files, and where the package for the URL is not installed.
    """
    try:
        system, place = open_file_system(path)
        has_wildcard = any(sign in place for sign in WILDCARDS)
        base = os.path.dirname(re.split(r"[*?[]", place)[0]) if has_wildcard else place
        entries = {
            name: system.info(name) if info.get("islink") else info
            for name, info in (_glob(system, place) if has_wildcard else _find(system, place)).items()
            if not any(part.startswith(".") for part in Path(os.path.relpath(name, base)).parts)
        }
    except ImportError as error:
        reason = hide_secrets(str(error))
        raise ValueError(f"data.path={path} cannot be opened ({reason}): install that package") from None
    except FileNotFoundError:
        raise ValueError(f"data.path={path} is no file or folder that can be found: check the path") from None
    except Exception as error:  # each file system has its own, such as for missing credentials
        raise ValueError(f"data.path={path} cannot be opened: {hide_secrets(str(error))}") from None
    matches = [
        Match(system.unstrip_protocol(name) if is_url(path) else name, info["size"], _version(info))
        for name, info in sorted(entries.items())
        if info["type"] == "file"
    ]
    if not matches:
        raise ValueError(f"data.path={path} must stand for files, and there are none")
    return tuple(matches)


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


def walk(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder, and then those in the folders that links in it name, each folder once.

    Hidden files and folders are left out.
    """
    pending, visited = [folder], {*folder.resolve().parents}  # a link to the latter would never end
    while pending:
        for name, folders, files in os.walk(pending.pop(0)):
            place = Path(name)
            if (resolved := place.resolve()) in visited:
                folders.clear()
                continue
            visited.add(resolved)
            folders[:] = [name for name in folders if not name.startswith(".")]
            pending += [place / name for name in sorted(folders) if (place / name).is_symlink()]
            yield from (place / name for name in files if not name.startswith("."))


def _version(info: dict[str, object]) -> str:
    """Returns what tells the contents of a file apart, as far as its file system has it."""
    keys = ("ETag", "etag", "sha256", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
    return next((str(info[key]) for key in keys if info.get(key) is not None), "")


def suffix(path: str) -> str:
    """Returns the suffix of a file without that of its compression, such as .jsonl."""
    suffixes = [part.lower() for part in Path(path).suffixes if part.lower() not in COMPRESSION]
    return suffixes[-1] if suffixes else ""


@dataclass(frozen=True)
class Location:
    """Where a data set is.

    name             data.path as the user wrote it
    local            a file or a folder; None for a data set on the hub, a pattern and a URL
    from_local_copy  whether $KLEIBER_DATA led to `local`
    matches          the files that a pattern or a URL stands for
    """

    name: str
    local: Path | None
    from_local_copy: bool = False
    matches: tuple[Match, ...] = ()

    @property
    def on_hub(self) -> bool:
        """Whether the data set is on the hub, without a local copy."""
        return self.local is None and not self.matches

    @property
    def kind(self) -> str:
        """The `datasets` builder of a single file; "" for folders, patterns, URLs and the hub."""
        if self.local is None or self.local.is_dir():
            return ""
        kind = KINDS.get(suffix(str(self.local)))
        if kind is None:
            raise ValueError(
                f"data.path={self.local} must end in {', '.join(KINDS)}, with or without .gz or .zst (.parquet without)"
            )
        return kind

    @property
    def stem(self) -> str:
        """The last part of the name, without the suffixes of a file."""
        parts = [part for part in self.name.split("/") if part]
        if self.matches:
            parts = [part for part in parts if not any(sign in part for sign in WILDCARDS)] or ["text"]
        if len(self.matches) > 1 and suffix(parts[-1]):
            parts = parts[:-1]
        return parts[-1].split(".", 1)[0] if self.kind or len(self.matches) == 1 else parts[-1]

    def paths(self) -> list[str]:
        """The local files, or the files and URLs that a pattern or a URL stands for."""
        return [match.path for match in self.matches] or [str(path) for path in self.files()]

    def files(self) -> list[Path]:
        """The local files, without hidden ones, and with those in folders that are links."""
        if self.local is None:
            return [Path(match.path) for match in self.matches if not is_url(match.path)]
        if self.local.is_file():
            return [self.local]
        return sorted(walk(self.local))

    def fingerprint(self) -> object:
        """JSON-able facts that change with the content: sizes and time stamps of the files, or the hub's name."""
        if self.matches:
            base = os.path.commonpath([os.path.dirname(match.path) for match in self.matches])
            return [[match.path.removeprefix(base), match.size, match.version] for match in self.matches]
        if self.local is None:
            return {"hub": self.name}
        base = self.local if self.local.is_dir() else self.local.parent
        stats = [(str(path.relative_to(base)), path.stat()) for path in self.files()]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


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
        sizes.append(f"{sum(path.stat().st_size for path in location.files()):,} bytes in all its files")
    name = f"{location.name} {manifest['config']}".strip()
    log.info("%s from %s (may be a sample of the hub's): %s", name, location.local, ", ".join(sizes))


def locate(path: str) -> Location:
    """Finds a local file or folder, the files of a pattern or URL, a local copy below $KLEIBER_DATA, or the hub itself.

    Raises ValueError for a path that is none of these, for an empty file or folder, and for a name that is not UTF-8.
    """
    local = Path(path).expanduser()
    if local.exists():
        location = Location(path, local)
    elif is_pattern(path):
        location = Location(path, None, matches=find_files(path))
    elif hub.is_name(path) and Path(path).suffix.lower() not in (*KINDS, *COMPRESSION):
        copy = hub.local_copy(path)
        location = Location(path, copy, from_local_copy=copy is not None)
    else:
        raise ValueError(
            f"data.path={path} must be an existing file or folder, a pattern such as texts/*.jsonl, a URL, or "
            "OWNER/NAME of a data set on the hub"
        )
    files = location.files()
    for file in files:
        if SURROGATE.search(str(file)):
            raise ValueError(f"data.path={path!r}: {str(file)!r} has a name that is not in UTF-8: rename it")
    sizes = [match.size for match in location.matches] or [file.stat().st_size for file in files]
    if (location.local is not None or location.matches) and sum(sizes) == 0:
        raise ValueError(f"data.path={path} must contain text, but it is empty")
    return location
