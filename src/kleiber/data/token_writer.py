"""Writes the tokens of documents to a file, and goes on with a file whose writer was killed.

A journal beside the file gets a line after every batch of about a million characters: what has been written so far,
with a checksum of it and of the text that it stands for. A later call with the same documents goes on from there, and
the file becomes that of an unbroken call. It begins anew where the file does not match its journal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from jaxtyping import Integer

from kleiber.config.errors import ConfigError
from kleiber.data.cache import Document, chunks, fast_hash, journal_of
from kleiber.records.progress import activity
from kleiber.types import Json
from kleiber.types.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # characters that the tokenizer gets at once

Batch = list[tuple[bool, str]]  # pieces of text, and for each whether it begins a document


@dataclass
class Counts:
    """What a token file contains. `counted_bytes` are those that its ids stand for: fewer under a lossy tokenizer."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    counted_bytes: int = 0


def write_tokens(path: Path, documents: Iterable[Document], tokenizer: Tokenizer, dtype: np.dtype) -> dict[str, int]:
    """Writes the tokens of all documents, each between the tokens of the separator, and returns their `Counts`.

    Goes on with the file where a process was killed that wrote the same documents. Raises ValueError for an id outside
    of the vocabulary, and ConfigError where the documents have changed since.
    """
    with open(path, "ab") as file, open(journal_of(path), "a", encoding="utf-8") as journal:
        writer = TokenWriter(file, tokenizer, dtype)
        batches = _batches(documents)
        writer.resume(path, journal, batches)
        with activity(f"encoding the {path.stem} text with tokenizer {tokenizer.name}", unit="bytes") as work:
            for batch in batches:
                writer.write(batch)
                writer.record(journal)
                work.done = writer.counts.bytes
        writer.finish()
    return asdict(writer.counts)


class TokenWriter:
    """Appends batches of text to a file as token ids of type `dtype`."""

    def __init__(self, file: IO[bytes], tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.file, self.tokenizer, self.dtype = file, tokenizer, dtype
        ends = (tokenizer.separator.before, tokenizer.separator.after)
        self.before, self.after = ([] if end is None else [end] for end in ends)
        self._start()

    def _start(self) -> None:
        self.counts, self.num_batches = Counts(), 0
        self.ids_hash, self.text_hash = xxhash.xxh3_64(), xxhash.xxh3_64()

    def write(self, batch: Batch) -> None:
        """Encodes and appends a batch."""
        for (begins, text), ids in zip(batch, self.tokenizer.encode_many([t for _, t in batch]), strict=True):
            self._check(ids)
            if begins:
                self._append([*(self.after if self.counts.documents else ()), *self.before])
            self._append(ids)
            self.counts.documents += begins
            self.counts.bytes += self._hash_text(text)
            self.counts.counted_bytes += int(self.tokenizer.token_bytes[ids].sum())
        self.num_batches += 1

    def finish(self) -> None:
        """Appends what stands behind the last document."""
        if self.counts.documents:
            self._append(self.after)

    def record(self, journal: IO[str]) -> None:
        """Appends what has been written to the journal, after the file itself."""
        self.file.flush()
        hashes = {"ids": self.ids_hash.hexdigest(), "text": self.text_hash.hexdigest()}
        journal.write(json.dumps({"batches": self.num_batches, "counts": asdict(self.counts), **hashes}) + "\n")
        journal.flush()

    def resume(self, path: Path, journal: IO[str], batches: Iterator[Batch]) -> None:
        """Takes the batches that the file at `path` already contains, and empties file and journal if they differ."""
        line = _last_line(journal_of(path))
        size = line["counts"]["tokens"] * self.dtype.itemsize if line else 0
        if line:
            self.ids_hash = fast_hash(path, size)
        if not line or self.ids_hash.hexdigest() != line["ids"]:
            self._start()
            os.truncate(path, 0)
            os.truncate(journal_of(path), 0)
            return
        os.truncate(path, size)
        for _ in range(line["batches"]):
            for _, text in next(batches, []):
                self._hash_text(text)
        if self.text_hash.hexdigest() != line["text"]:
            raise ConfigError(f"the text of {path.name} has changed while it was being prepared: run the command again")
        self.counts, self.num_batches = Counts(**line["counts"]), line["batches"]
        os.truncate(journal_of(path), 0)  # a line of it may be cut
        self.record(journal)

    def _check(self, ids: Integer[np.ndarray, "_"]) -> None:
        """Raises ValueError for an id outside of the vocabulary."""
        if len(ids) and int(ids.max()) >= self.tokenizer.vocab_size:
            raise ValueError(
                f"tokenizer {self.tokenizer.name} returned id {int(ids.max())}, and its vocabulary ends at id "
                f"{self.tokenizer.vocab_size - 1}"
            )

    def _append(self, ids: Integer[np.ndarray, "_"] | Sequence[int]) -> None:
        raw = np.asarray(ids).astype(self.dtype).tobytes()
        self.file.write(raw)
        self.ids_hash.update(raw)
        self.counts.tokens += len(ids)

    def _hash_text(self, text: str) -> int:
        """Adds a piece of text to the checksum; returns its bytes."""
        raw = text.encode("utf-8", "replace")
        self.text_hash.update(raw)
        return len(raw)


def _last_line(journal: Path) -> Json | None:
    """Returns the last whole line of a journal; None where it has none."""
    lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def _batches(documents: Iterable[Document]) -> Iterator[Batch]:
    """Yields (whether it begins a document, text) in batches of about a million characters, without empty documents."""
    batch, characters = [], 0
    for document in documents:
        for i, text in enumerate(chunks(document)):
            batch.append((i == 0, text))
            characters += len(text)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch
