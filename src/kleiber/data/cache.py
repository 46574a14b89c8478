"""The disk cache of prepared data, and the interface of the text sources that fill it.

The cache holds folders. A folder is built under a temporary name, its manifest is written last, and then it is renamed,
so a folder is either complete or absent. A file lock makes other processes wait for the one that builds. A folder whose
files do not match the checksums of its manifest is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kleiber.records.files import write_text
from kleiber.records.lock import wait_for_lock
from kleiber.types import Json

log = logging.getLogger(__name__)

SCHEMA = "kleiber.cache/1"
MANIFEST = "manifest.json"
FORMAT = 1  # part of every identity: raise it when the meaning of a token file changes
SPLITS = ("train", "validation", "test")
FULL_CHECK_BYTES = 16 << 20  # files up to this size are read whole at every load, which takes 10 ms
BLOCK_BYTES, BLOCKS = 1 << 16, 64  # of a larger file, what is read to check it
SHA256 = re.compile("[0-9a-f]{64}")
CHUNK = 1 << 16  # characters encoded at once

Document = Iterable[str]  # pieces of text that follow one another without a gap


@dataclass(frozen=True)
class SourceText:
    """The documents of each split, each of which can be read once, and the notes of a source for the manifest."""

    documents: Mapping[str, Iterable[Document]]
    notes: Json


@runtime_checkable
class Source(Protocol):
    """Text in splits.

    identity   JSON-able facts that determine the text and are cheap to collect; they name the folder in the cache
    open_text  opens the text; called only when the cache does not hold it
    """

    @property
    def name(self) -> str: ...
    def identity(self) -> Json: ...
    def open_text(self, root: Path) -> AbstractContextManager[SourceText]: ...


def limit_bytes(documents: Iterable[Document], limit: int | None) -> Iterator[Document]:
    """Yields documents up to `limit` bytes of text, and cuts the last one; all for None.

    Each document must be read before the next one is asked for.
    """
    left = float("inf") if limit is None else limit

    def pieces(document: Document) -> Iterator[str]:
        """Yields the pieces of a document up to the limit."""
        nonlocal left
        for piece in document:
            raw = piece.encode("utf-8", "replace")
            if len(raw) > left:
                piece = raw[: int(left)].decode("utf-8", "ignore")
            left -= len(raw)
            yield piece
            if left <= 0:
                return

    for document in documents:
        yield pieces(document)
        if left <= 0:
            return


def chunks(pieces: Iterable[str], size: int = CHUNK) -> Iterator[str]:
    """Yields the same text in chunks of about `size` characters, which bounds memory for long lines and documents.

    A cut is before white space that follows another character. Every GPT-2-like pattern begins a new word there, so the
    ids are those of the whole text. Only where `size` characters have no such place is a word cut.
    """
    text = ""
    for piece in pieces:
        for start in range(0, len(piece), size):
            text += piece[start : start + size]
            while len(text) > size:
                cut = _cut(text, size)
                yield text[:cut]
                text = text[cut:]
    if text:
        yield text


def _cut(text: str, size: int) -> int:
    for place in range(size, 0, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return size


def cache_root(folder: Path | str | None = None) -> Path:
    """Returns the cache folder: `folder`, else $KLEIBER_CACHE, else $XDG_CACHE_HOME/kleiber, else ~/.cache/kleiber.

    Creates it when it is missing. Raises ValueError when it cannot be written.
    """
    try:
        root = Path(
            folder
            or os.environ.get("KLEIBER_CACHE")
            or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kleiber")
        ).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {root}")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the cache folder is not writable ({error}): set KLEIBER_CACHE=DIR to another one") from None
    return root


def digest(value: object) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def cached_folder(root: Path, name: str, identity: Json, build: Callable[[Path], Json]) -> tuple[Path, Json]:
    """Returns the cached folder for `identity` and its manifest, and builds it when it is missing or damaged.

    build  fills the folder and returns the notes that the manifest records; of several processes, one calls it
    """
    folder = root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:60]}-{digest(identity)}"
    manifest = _verified_manifest(folder)
    if manifest is not None:
        return folder, manifest

    def waiting() -> None:
        log.info("waiting for another process that prepares the same data (%s)", folder.name)

    with wait_for_lock(root / f".{folder.name}.lock", waiting):
        manifest = _verified_manifest(folder)  # another process may have built it while this one waited
        if manifest is None:
            _build(folder, identity, build)
            manifest = _verified_manifest(folder)
            assert manifest is not None, f"{folder} does not verify right after it was built"
    return folder, manifest


def file_hash(path: Path) -> str:
    """Returns the sha256 of a file, which the cache keeps as long as the file's inode, size and times do not change."""
    facts = path.stat()
    times = [facts.st_mtime_ns, facts.st_ctime_ns]
    place = cache_root() / "sha256" / digest([str(path.resolve()), facts.st_dev, facts.st_ino, facts.st_size, *times])
    if place.is_file() and SHA256.fullmatch(saved := place.read_text(encoding="ascii", errors="replace")):
        return saved
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    place.parent.mkdir(exist_ok=True)
    write_text(place, sha256)
    return sha256


def _build(folder: Path, identity: Json, build: Callable[[Path], Json]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed, since this one holds the lock
    part.mkdir()
    try:
        notes = build(part)
        files = {path.name: _checksums(path) for path in sorted(part.iterdir())}
        manifest = {"schema": SCHEMA, "identity": identity, **notes, "files": files}
        with open(part / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _verified_manifest(folder: Path) -> Json | None:
    """Returns the manifest when every file matches its checksum; otherwise logs a warning and returns None."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name, sums in manifest["files"].items() if not _matches(folder / name, sums)]
    except (OSError, ValueError, KeyError, TypeError):
        damaged, manifest = [MANIFEST], None
    if manifest is not None and not damaged and manifest.get("schema") == SCHEMA:
        return manifest
    log.warning("the cached folder %s is damaged (%s): it is built again", folder, ", ".join(damaged))
    return None


def _checksums(path: Path) -> Json:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256, "sampled": _sampled_checksum(path)}


def _matches(path: Path, sums: Json) -> bool:
    """Compares the size and the checksum; reads only 64 blocks of a large file whose time stamp is unchanged."""
    stat = path.stat()
    if stat.st_size != sums["bytes"]:
        return False
    if stat.st_size > FULL_CHECK_BYTES and stat.st_mtime_ns == sums["mtime_ns"]:
        return _sampled_checksum(path) == sums["sampled"]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sums["sha256"]


def _sampled_checksum(path: Path) -> str:
    size = path.stat().st_size
    sums = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(BLOCKS):
            file.seek(max(0, size - BLOCK_BYTES) * i // (BLOCKS - 1))
            sums.update(file.read(BLOCK_BYTES))
    return sums.hexdigest()
