"""A cache on disk of folders that are complete or absent, and the interface of sources of text.

A folder is built under a temporary name, its manifest is written last, and then it is renamed. A file lock makes a
second process wait for the first. A damaged folder is built again; no file is read that its manifest does not match.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

SCHEMA = "kleiber.cache/1"


MANIFEST = "manifest.json"


Manifest = dict[str, Any]


def cache_root(folder: Path | str | None = None) -> Path:
    """`given`, else $KLEIBER_CACHE, else $XDG_CACHE_HOME/kleiber, else ~/.cache/kleiber; made when missing.

    Raises ValueError where it cannot be written.
    """
    try:
        root = Path(folder or os.environ.get("KLEIBER_CACHE") or _home_cache() / "kleiber").expanduser()
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {root}")
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the cache folder cannot be used ({error}): set KLEIBER_CACHE=DIR to a writable folder"
        ) from None
    return root


def _home_cache() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME")
    return Path(configured) if configured else Path.home() / ".cache"


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that name a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def cached(root: Path, name: str, identity: Manifest, build: Callable[[Path], Manifest]) -> tuple[Path, Manifest]:
    """The folder that `identity` names, with its manifest; `build(folder)` fills it when it is missing or damaged.

    `build` returns what the manifest should say beside identity and checksums. Of several processes one builds.
    """
    folder = root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:60]}-{digest(identity)}"
    manifest = _whole(folder)
    if manifest is not None:
        return folder, manifest
    with _lock(root / f".{folder.name}.lock"):
        manifest = _whole(folder)  # another process may have built it while we waited
        if manifest is None:
            _build(folder, identity, build)
            manifest = _whole(folder)
            assert manifest is not None, f"{folder} does not verify right after it was built"
    return folder, manifest


def _build(folder: Path, identity: Manifest, build: Callable[[Path], Manifest]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a builder that was killed: we hold the lock
    part.mkdir()
    try:
        notes = build(part)
        files = {path.name: _sums(path) for path in sorted(part.iterdir())}
        manifest = {"schema": SCHEMA, "identity": identity, **notes, "files": files}
        with open(part / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares the same data (%s)", path.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _whole(folder: Path) -> Manifest | None:
    """The manifest, when every file it names is as it was written; None (with a warning) when not."""
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wrong = [name for name, sums in manifest["files"].items() if not _matches(folder / name, sums)]
    except (OSError, ValueError, KeyError, TypeError):
        wrong, manifest = [MANIFEST], None
    if manifest is not None and not wrong and manifest.get("schema") == SCHEMA:
        return manifest
    log.warning("the cache %s is damaged (%s): it is built again", folder, ", ".join(wrong))
    return None


def _sums(path: Path) -> Manifest:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": whole, "sampled": _sampled(path)}


def _matches(path: Path, sums: Manifest) -> bool:
    """Size, then the whole checksum; a large file whose time stamp is unchanged is checked at 64 places instead."""
    stat = path.stat()
    if stat.st_size != sums["bytes"]:
        return False
    if stat.st_size > ALWAYS_WHOLE and stat.st_mtime_ns == sums["mtime_ns"]:
        return _sampled(path) == sums["sampled"]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sums["sha256"]


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    sums = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * i // (BLOCKS - 1))
            sums.update(file.read(BLOCK))
    return sums.hexdigest()


FORMAT = 1  # part of every identity: raise it when the meaning of a token file changes


SPLITS = ("train", "validation", "test")


Document = Iterable[str]  # pieces of text that follow one another without a gap


@dataclass(frozen=True)
class Reading:
    """Text being read: the documents of each split, each to be read once, and what the manifest should say of it."""

    documents: Mapping[str, Iterable[Document]]
    notes: dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """Text in splits. `identity` is cheap, JSON-able and decides the content; `reading` is entered only on a miss."""

    @property
    def name(self) -> str: ...
    def identity(self) -> dict[str, Any]: ...
    def reading(self, root: Path) -> AbstractContextManager[Reading]: ...


log = logging.getLogger(__name__)


ALWAYS_WHOLE = 16 << 20  # bytes; files up to this size are checked whole at every load: 10 ms


BLOCK, BLOCKS = 1 << 16, 64
