"""The cache on disk: folders that are whole or not there at all.

A folder is built under another name, its manifest is written last, then it is renamed. A lock file lets a second
process wait for the first. What is damaged is built again; nothing here reads a file that its manifest does not match.

Token files: each split of a source, encoded once, one flat file of ids that is mapped into memory.

`eos` stands before every document, so that every byte of text is a target and a split's bits per byte are exact.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
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

import numpy as np
from jaxtyping import Integer

from kleiber.data.tokenizers.bytes import Bytes, chunks, encode_many
from kleiber.types.batch import Tokenizer

log = logging.getLogger(__name__)

SCHEMA = "kleiber.cache/1"
MANIFEST = "manifest.json"
ALWAYS_WHOLE = 16 << 20  # bytes; files up to this size are checked whole at every load: 10 ms
BLOCK, BLOCKS = 1 << 16, 64

Manifest = dict[str, Any]


def cache_root(given: Path | str | None = None) -> Path:
    """`given`, else $KLEIBER_CACHE, else $XDG_CACHE_HOME/kleiber, else ~/.cache/kleiber; made when missing.

    Raises ValueError where it cannot be written.
    """
    try:
        root = Path(given or os.environ.get("KLEIBER_CACHE") or _home_cache() / "kleiber").expanduser()
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
        said = build(part)
        files = {path.name: _sums(path) for path in sorted(part.iterdir())}
        manifest = {"schema": SCHEMA, "identity": identity, **said, "files": files}
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
OURS = ("schema", "identity", "splits", "files")  # of a manifest; the rest is a source's notes
BATCH = 1 << 20  # characters handed to the tokenizer at once

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


@dataclass(frozen=True)
class TokenFile:
    """One split: its ids, the bytes of its text, and the bytes its ids account for (fewer if it is lossy)."""

    ids: Integer[np.ndarray, "time"]
    num_bytes: int
    counted_bytes: int
    sha256: str


def token_files(source: Source, tokenizer: Tokenizer, root: Path) -> tuple[dict[str, TokenFile], dict[str, Any]]:
    """The splits of `source` under `tokenizer`, from the cache or built, and their manifest.

    Raises ValueError for a source without text and for a tokenizer that gives ids outside its vocabulary.
    """
    identity = {"format": FORMAT, "source": source.identity(), "tokenizer": tokenizer.hash}

    def build(folder: Path) -> dict[str, Any]:
        with source.reading(root) as text:
            documents = text.documents
            counts = {split: _write(folder / f"{split}.bin", documents.get(split, ()), tokenizer) for split in SPLITS}
        if counts["train"]["tokens"] == 0:
            raise ValueError(f"{source.name} has no text to train on")
        return {"splits": counts, **text.notes}

    folder, manifest = cached(root, f"{source.name}-{tokenizer.name}", identity, build)
    return {split: _open(folder, split, manifest, tokenizer) for split in SPLITS}, manifest


class Kept:
    """A source whose text is costly to get: read from its token file of bytes, whatever the tokenizer."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    @contextmanager
    def reading(self, root: Path) -> Iterator[Reading]:
        splits, manifest = token_files(self.source, Bytes(), root)
        notes = {key: value for key, value in manifest.items() if key not in OURS}
        yield Reading({name: _documents(file.ids) for name, file in splits.items()}, notes)


def _documents(ids: Integer[np.ndarray, "time"]) -> Iterator[Document]:
    begins = np.flatnonzero(ids == Bytes.eos)
    for begin, end in itertools.pairwise([*begins.tolist(), len(ids)]):
        yield [ids[begin + 1 : end].astype(np.uint8).tobytes().decode()]


def dtype(vocab_size: int) -> np.dtype:
    """The narrowest unsigned type of a token file that holds every id."""
    if vocab_size > 1 << 32:
        raise ValueError(f"a vocabulary of {vocab_size} does not fit 32-bit token ids")
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _open(folder: Path, split: str, manifest: dict[str, Any], tokenizer: Tokenizer) -> TokenFile:
    path, count = folder / f"{split}.bin", manifest["splits"][split]
    kind = dtype(tokenizer.vocab_size)
    ids = np.memmap(path, dtype=kind, mode="r") if count["tokens"] else np.empty(0, kind)  # an empty file has no map
    return TokenFile(ids, count["bytes"], count["counted_bytes"], manifest["files"][path.name]["sha256"])


def _write(path: Path, documents: Iterable[Document], tokenizer: Tokenizer) -> dict[str, int]:
    count = {"documents": 0, "tokens": 0, "bytes": 0, "counted_bytes": 0}
    kind, eos = dtype(tokenizer.vocab_size), np.array([tokenizer.eos], dtype(tokenizer.vocab_size))
    with open(path, "wb") as file:
        for batch in _batches(documents):
            for (begins, text), ids in zip(batch, encode_many(tokenizer, [t for _, t in batch]), strict=True):
                _check(ids, tokenizer)
                if begins:
                    file.write(eos.tobytes())
                file.write(ids.astype(kind).tobytes())
                count["documents"] += begins
                count["tokens"] += len(ids) + begins
                count["bytes"] += len(text.encode("utf-8", "replace"))
                count["counted_bytes"] += int(tokenizer.token_bytes[ids].sum())
    return count


def _check(ids: Integer[np.ndarray, "time"], tokenizer: Tokenizer) -> None:
    if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
        raise ValueError(
            f"{tokenizer.name} gives id {int(ids.max())}, its vocabulary ends at {tokenizer.vocab_size - 1}"
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[bool, str]]]:
    """(begins a document, text) in batches of about a million characters; documents without text are left out."""
    batch, held = [], 0
    for document in documents:
        for i, text in enumerate(chunks(document)):
            batch.append((i == 0, text))
            held += len(text)
            if held >= BATCH:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch
