"""Writes the tokens of documents to files of a fixed size, and goes on where a writer was killed.

Text comes in blocks of a few megabytes, which worker processes encode in turn. Their tokens are appended in the order
of the text, so the files depend on the text and the tokenizer alone. `train-00000.bin` is followed by
`train-00001.bin` once it has SHARD_TOKENS tokens; each has a manifest with its size and checksums.

After every block, the folder's journal tells what has been written so far, with a checksum of it and of the text that
it stands for. A later call with the same blocks goes on from there, and the files become those of an unbroken call. It
begins anew where they do not match the journal.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from jaxtyping import Integer

from kleiber.config.errors import ConfigError
from kleiber.config.model_size import available_cores
from kleiber.config.system_errors import naming
from kleiber.data.cache import BLOCK_BYTES, JOURNAL, fast_hash, manifest_of, remove
from kleiber.data.parallel import ordered_map
from kleiber.data.sources import BATCH_CHARACTERS, SPLITS, Block, Piece
from kleiber.records.files import read_json, write_json
from kleiber.records.progress import activity
from kleiber.records.regular_files import DamagedFile, open_to_append, open_to_read
from kleiber.types import Json
from kleiber.types.tokenizer import Tokenizer

log = logging.getLogger(__name__)

SHARD_TOKENS = 1 << 27  # tokens of a file: 256 MiB, or 512 MiB for a vocabulary of more than 65,536


@dataclass
class Counts:
    """What a split contains, but for its empty documents. `counted_bytes` is lower than `bytes` if ids lose text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    counted_bytes: int = 0
    empty: int = 0


@dataclass(frozen=True)
class Encoder:
    """Encodes the pieces of a block, each document between the tokens of the separator.

    The token after a document is put in front of the next one, since a document may go on in the next block.
    """

    tokenizer: Tokenizer
    dtype: np.dtype

    def __call__(self, block: Block) -> dict[str, tuple[bytes, Counts]]:
        """Returns the token ids of each split as bytes, and their counts. Raises ValueError for an invalid id."""
        separator = self.tokenizer.separator
        between = np.array([end for end in (separator.after, separator.before) if end is not None], self.dtype)
        ids: dict[str, list[np.ndarray]] = {}
        counts: dict[str, Counts] = {}
        for pieces in _batches(block.pieces()):
            encoded = self.tokenizer.encode_many([text for _, _, text in pieces])
            for (split, begins, text), piece in zip(pieces, encoded, strict=True):
                self._check(piece)
                count, parts = counts.setdefault(split, Counts()), ids.setdefault(split, [np.empty(0, self.dtype)])
                if not text:
                    count.empty += 1
                    continue
                parts += [between] * begins + [piece.astype(self.dtype)]
                count.documents += begins
                count.bytes += len(text.encode("utf-8", "replace"))
                count.counted_bytes += int(self.tokenizer.token_bytes[piece].sum())
        return {split: (np.concatenate(ids[split]).tobytes(), count) for split, count in counts.items()}

    def _check(self, ids: Integer[np.ndarray, "_"]) -> None:
        if len(ids) and int(ids.max()) >= self.tokenizer.vocab_size:
            name, last = self.tokenizer.name, self.tokenizer.vocab_size - 1
            raise ValueError(f"tokenizer {name} returned id {int(ids.max())}, and its vocabulary ends at id {last}")


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Yields pieces of about a million characters together, so that memory does not depend on the size of a block."""
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[2])
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def write_tokens(folder: Path, blocks: Iterable[Block], tokenizer: Tokenizer, dtype: np.dtype) -> Json:
    """Writes the tokens of all blocks to files in `folder`, and returns the `Counts` of each split.

    Goes on where a process was killed that wrote the same blocks. All cores encode. Raises ValueError for an id outside
    of the vocabulary, and ConfigError where the text has changed since.
    """
    blocks = iter(blocks)
    keys: deque[bytes] = deque()
    with (
        activity(f"encoding text with tokenizer {tokenizer.name}", unit="bytes") as work,
        Journal(folder, tokenizer, dtype) as journal,
    ):
        journal.skip(blocks)
        for encoded in ordered_map(Encoder(tokenizer, dtype), _note_keys(blocks, keys), available_cores()):
            journal.append(encoded, keys.popleft())
            work.done = sum(split.counts.bytes for split in journal.splits.values())
        return journal.finish()


def report_empty(name: str, counts: Json) -> None:
    """Prints how many documents of each split have no text."""
    for split, count in counts.items():
        empty = count["empty"]
        if empty:
            of = f"{empty:,} of {empty + count['documents']:,}"
            log.info("%s: %s documents of the %s split have no text, and are left out", name, of, split)


def _note_keys(blocks: Iterator[Block], keys: deque[bytes]) -> Iterator[Block]:
    for block in blocks:
        keys.append(block.key())
        yield block


class Journal:
    """The files of all splits in a folder, and the journal of what they contain."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.after = [] if tokenizer.separator.after is None else [tokenizer.separator.after]
        self.path = folder / JOURNAL
        try:
            self._open(read_json(self.path) if self.path.exists() else None)
        except (DamagedFile, KeyError, TypeError, FileNotFoundError):
            self._open(None)

    def _open(self, written: Json | None) -> None:
        """Opens the files behind what the journal tells, and removes all others. Raises DamagedFile if they differ."""
        states = {split: SplitState(**written["splits"][split]) if written else SplitState() for split in SPLITS}
        kept = {self.path.name, *(name for split, state in states.items() for name in state.names(split))}
        for path in self.folder.iterdir():
            if path.name not in kept:
                remove(path)
        self.num_blocks, self.written_text = (written["blocks"], written["text"]) if written else (0, None)
        self.text_hash = xxhash.xxh3_64()
        self.splits = {
            split: SplitWriter(self.folder, split, state, self.dtype, len(self.after))
            for split, state in states.items()
        }

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        for split in self.splits.values():
            split.file.close()

    def skip(self, blocks: Iterator[Block]) -> None:
        """Takes the blocks that the files contain already.

        Raises ConfigError where these are others, and removes the journal, so that the next call begins anew.
        """
        for block in itertools.islice(blocks, self.num_blocks):
            self.text_hash.update(block.key())
        if self.written_text not in (None, self.text_hash.hexdigest()):
            remove(self.path)
            raise ConfigError(
                f"the text of {self.folder.name} has changed while it was being prepared: run the command again"
            )

    def append(self, encoded: Mapping[str, tuple[bytes, Counts]], key: bytes) -> None:
        """Appends the tokens of a block to the files, and then notes them in the journal."""
        for split, (ids, counts) in encoded.items():
            self.splits[split].append(ids, counts)
        self.num_blocks += 1
        self.text_hash.update(key)
        for split in self.splits.values():
            split.file.flush()
        states = {name: asdict(split.state()) for name, split in self.splits.items()}
        write_json(self.path, {"blocks": self.num_blocks, "text": self.text_hash.hexdigest(), "splits": states})

    def finish(self) -> Json:
        """Appends what stands behind the last documents, closes the files, and returns the counts by split."""
        for split in self.splits.values():
            if split.counts.documents:
                split.write(np.asarray(self.after).astype(self.dtype).tobytes())
            split.close_shard()
        return {name: asdict(split.counts) for name, split in self.splits.items()}


@dataclass(frozen=True)
class SplitState:
    """What the files of a split contain: `shard` whole files, and `size` bytes with a checksum in the next one."""

    counts: Mapping[str, int] = field(default_factory=dict)
    shard: int = 0
    size: int = 0
    xxh3: str = field(default_factory=lambda: xxhash.xxh3_64().hexdigest())

    def names(self, split: str) -> set[str]:
        """The names of the files that match this state."""
        whole = {shard_name(split, i) for i in range(self.shard)}
        manifests = {manifest_of(Path(name)).name for name in whole}
        return whole | manifests | {shard_name(split, self.shard)}


def shard_name(split: str, number: int) -> str:
    """Returns the name of a token file."""
    return f"{split}-{number:05d}.bin"


class SplitWriter:
    """Appends the tokens of a split to files of SHARD_TOKENS tokens. Raises DamagedFile where `state` is another."""

    def __init__(self, folder: Path, split: str, state: SplitState, dtype: np.dtype, skipped: int) -> None:
        self.folder, self.split, self.itemsize, self.shard = folder, split, dtype.itemsize, state.shard
        self.skipped = skipped * dtype.itemsize  # bytes in front of the first document that belong to none before it
        self.counts = Counts(**state.counts)
        for number in range(state.shard):
            path = self.path(number)
            if fast_hash(path).hexdigest() != read_json(manifest_of(path))["xxh3"]:
                raise DamagedFile(path, "it does not match its checksum")
        self._open(state.size, state.xxh3)

    def path(self, number: int) -> Path:
        return self.folder / shard_name(self.split, number)

    def _open(self, size: int = 0, checksum: str | None = None) -> None:
        path = self.path(self.shard)
        self.file: IO[bytes] = open_to_append(path)  # closed by `close_shard` or the journal
        self.size = size
        self.xxh3, self.sha256 = file_checksums(path, size)
        if checksum not in (None, self.xxh3.hexdigest()):
            self.file.close()
            raise DamagedFile(path, "it does not match its checksum")
        os.truncate(path, size)

    def state(self) -> SplitState:
        return SplitState(asdict(self.counts), self.shard, self.size, self.xxh3.hexdigest())

    def append(self, ids: bytes, counts: Counts) -> None:
        """Appends token ids and adds their counts."""
        self.write(ids if self.counts.documents else ids[self.skipped :])
        self.counts.documents += counts.documents
        self.counts.bytes += counts.bytes
        self.counts.counted_bytes += counts.counted_bytes
        self.counts.empty += counts.empty

    def write(self, ids: bytes) -> None:
        """Writes token ids, and begins a new file whenever one is full."""
        self.counts.tokens += len(ids) // self.itemsize
        limit = SHARD_TOKENS * self.itemsize
        while self.size + len(ids) > limit:
            part, ids = ids[: limit - self.size], ids[limit - self.size :]
            self._write(part)
            self.close_shard()
            self.shard += 1
            self._open()
        self._write(ids)

    def _write(self, ids: bytes) -> None:
        self.file.write(ids)
        self.size += len(ids)
        self.xxh3.update(ids)
        self.sha256.update(ids)

    def close_shard(self) -> None:
        """Closes the file and writes its manifest."""
        with naming(self.path(self.shard)):
            self.file.flush()
            os.fsync(self.file.fileno())
        self.file.close()
        sums = {"bytes": self.size, "sha256": self.sha256.hexdigest(), "xxh3": self.xxh3.hexdigest()}
        write_json(manifest_of(self.path(self.shard)), {"tokens": self.size // self.itemsize, **sums})


def file_checksums(path: Path, size: int) -> tuple[xxhash.xxh3_64, hashlib._Hash]:
    """Returns the XXH3 and SHA-256 checksums of the first `size` bytes of a file, to which others can be added."""
    xxh3, sha256 = xxhash.xxh3_64(), hashlib.sha256()
    with open_to_read(path) as file:
        while block := file.read(min(BLOCK_BYTES, size)):
            xxh3.update(block)
            sha256.update(block)
            size -= len(block)
    return xxh3, sha256
