"""The disk cache of prepared data.

The cache holds folders. A folder is built under a temporary name, its manifest is written last, and then it is renamed,
so a folder is either complete or absent. A file lock makes other processes wait for the one that builds. Of a build
that was killed or failed, only files with a journal (`token_writer`) stay, for the next one to go on with.

Whenever a folder is used, every byte of it is compared with the checksums of the manifest, and the manifest with its
own: XXH3 reads 20 GB a second, so this costs less than opening the files. A folder that differs is built again. Of a
folder of more than CHECKED_BYTES only the sizes of the files are compared, except by `kleiber data PATH`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import xxhash

from kleiber.config.errors import ConfigError
from kleiber.config.system_errors import NO_SPACE, naming
from kleiber.records.files import cache_folder, read_json, write_text
from kleiber.records.locks import sweep_scratch, try_lock, wait_for_lock
from kleiber.records.progress import activity
from kleiber.records.regular_files import DamagedFile, create, file_sha256, make_folder, open_to_read, read_text, remove
from kleiber.types import Json

log = logging.getLogger(__name__)

SCHEMA = "kleiber.cache/3"
MANIFEST = "manifest.json"
FORMAT = 2  # part of every identity: raise it when the meaning of a token file changes
BLOCK_BYTES = 1 << 20  # read at once to check a file
CHECKED_BYTES = 8 << 30  # of a folder that is compared with its checksums whenever it is used
JOURNAL = ".journal"  # in a folder whose build can be continued
PART, SCRATCH = ".part", ".datasets-"  # a suffix and a prefix of names in the cache
WEEK = 7 * 24 * 3600.0
FULL = (*NO_SPACE, errno.EFBIG)  # the last one is that of a limit on the size of files
TOO_SMALL = "Not enough disk space."  # of `datasets`, which checks before it writes and then sets no errno
SHA256, SHA256_BYTES = re.compile("[0-9a-f]{64}"), 64
_WHOLE = ContextVar("whole", default=False)


def cache_root(folder: Path | str | None = None) -> Path:
    """Returns the cache folder: `folder`, else $KLEIBER_CACHE, else $XDG_CACHE_HOME/kleiber, else ~/.cache/kleiber.

    Creates it, and removes what killed processes left in it. Raises ValueError when it cannot be written.
    """
    try:
        root = cache_folder(folder)
        make_folder(root)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {root}")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the cache folder is not writable ({error}): set KLEIBER_CACHE=DIR to another one") from None
    sweep_cache(root)
    return root


@contextmanager
def whole_checks() -> Iterator[None]:
    """Within it, every byte of a folder is compared with its checksums, however large the folder is."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def digest(value: object) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def cached_folder(root: Path, name: str, identity: Json, build: Callable[[Path], Json]) -> tuple[Path, Json]:
    """Returns the cached folder for `identity` and its manifest, and builds it when it is missing or damaged.

    build  fills the folder and returns the notes that the manifest records; of several processes, one calls it

    Raises ConfigError for a full disk, and for one that returns other bytes than were written.
    """
    folder = root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:60]}-{digest(identity)}"
    manifest = _verified_manifest(folder, identity, logging.DEBUG)
    if manifest is not None:
        return folder, manifest

    def waiting() -> None:
        log.info("waiting for another process that prepares the same data (%s)", folder.name)

    with activity(f"preparing {name}"), wait_for_lock(root / f".{folder.name}.lock", waiting):
        manifest = _verified_manifest(folder, identity)  # another process may have built it while this one waited
        if manifest is None:
            _build(folder, identity, build)
            manifest = _verified_manifest(folder, identity)
            if manifest is None:
                raise ConfigError(
                    f"{folder} differs from what was just written to it: set KLEIBER_CACHE to another disk"
                )
    return folder, manifest


def file_hash(path: Path) -> str:
    """Returns the sha256 of a file, which the cache keeps as long as the file's inode, size and times do not change."""
    facts = path.stat()
    times = [facts.st_mtime_ns, facts.st_ctime_ns]
    place = cache_root() / "sha256" / digest([str(path.resolve()), facts.st_dev, facts.st_ino, facts.st_size, *times])
    with suppress(DamagedFile):
        if SHA256.fullmatch(saved := read_text(place, SHA256_BYTES)):
            return saved
    sha256 = file_sha256(path)
    write_text(make_folder(place.parents[1], place.parent.name) / place.name, sha256)
    return sha256


def _build(folder: Path, identity: Json, build: Callable[[Path], Json]) -> None:
    part = folder.with_name(f".{folder.name}{PART}")
    keep_resumable(part)  # left by a process that was killed, since this one holds the lock
    try:
        make_folder(part.parent, part.name)
        notes = build(part)
        remove(part / JOURNAL)
        manifests = {manifest_of(path) for path in part.glob("*.bin")}
        files = {path.name: _checksums(path) for path in sorted(part.iterdir()) if path not in manifests}
        manifest = {"schema": SCHEMA, "identity": identity, **notes, "files": files}
        remove(part / MANIFEST)
        with create(part / MANIFEST) as file:
            whole = manifest | {"checksum": digest(manifest)}
            file.write(json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False).encode())
            file.flush()
            with naming(part / MANIFEST):
                os.fsync(file.fileno())
        remove(folder)
        os.replace(part, folder)
    except Exception as error:  # not Ctrl-C or a request to make room, after which a later process goes on as well
        keep_resumable(part)
        if is_full_disk(error):
            remove(part)
            raise ConfigError(
                f"the cache {folder.parent} is full ({error}): free space on its disk, or set KLEIBER_CACHE=DIR to "
                "another one"
            ) from error
        raise


def manifest_of(path: Path) -> Path:
    """Returns the path of the manifest of a token file."""
    return path.with_suffix(".json")


def keep_resumable(part: Path) -> None:
    """Removes the folder of a build that was killed or failed, unless it has a journal."""
    if part.is_symlink() or not (part / JOURNAL).is_file():
        remove(part)


def sweep_cache(root: Path) -> None:
    """Removes what killed processes left in the cache, except for folders with a journal of less than a week."""
    sweep_scratch(root, SCRATCH)
    for part in root.glob(f".*{PART}"):
        with try_lock(part.with_name(f"{part.name.removesuffix(PART)}.lock")) as free:
            journal = part / JOURNAL
            if free and not (journal.is_file() and time.time() - journal.stat().st_mtime < WEEK):
                remove(part)


def is_full_disk(error: BaseException) -> bool:
    """Whether writing failed because a disk, a quota or the largest size of a file left no room."""
    return isinstance(error, OSError) and (error.errno in FULL or str(error).startswith(TOO_SMALL))


def _verified_manifest(folder: Path, identity: Json, level: int = logging.WARNING) -> Json | None:
    """Returns the manifest when all checksums are right; otherwise logs the damage and returns None."""
    if not os.path.lexists(folder):
        return None
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest.pop("checksum", "") != digest(manifest):
            raise DamagedFile(folder / MANIFEST, "it does not match its checksum")
        _check(folder, identity, manifest)
    except DamagedFile as error:
        log.log(level, "the cache is built again, because %s", error)
        return None
    return manifest


def _check(folder: Path, identity: Json, manifest: Json) -> None:
    """Raises DamagedFile for the first file of a cached folder that differs from what was written to it."""
    if manifest["schema"] != SCHEMA or digest(manifest["identity"]) != digest(identity):
        raise DamagedFile(folder / MANIFEST, "it belongs to other data")
    small = sum(sums["bytes"] for sums in manifest["files"].values()) <= CHECKED_BYTES or _WHOLE.get()
    for name, sums in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != sums["bytes"]:
                raise DamagedFile(path, f"it has {size:,} bytes instead of {sums['bytes']:,}")
            if small and fast_hash(path).hexdigest() != sums["xxh3"]:
                raise DamagedFile(path, "it does not match its checksum")
        except OSError as error:
            raise DamagedFile(path, str(error.strerror)) from None


def _checksums(path: Path) -> Json:
    """Returns size and checksums of a file: SHA-256 names its content, XXH3 finds damage twenty times as fast."""
    if path.suffix == ".bin" and manifest_of(path).is_file():
        return read_json(manifest_of(path))
    with open_to_read(path) as file, naming(path):
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path), "xxh3": fast_hash(path).hexdigest()}


def fast_hash(path: Path) -> xxhash.xxh3_64:
    """Returns the XXH3 checksum of a file."""
    checksum = xxhash.xxh3_64()
    with open_to_read(path) as file:
        while block := file.read(BLOCK_BYTES):
            checksum.update(block)
    return checksum
