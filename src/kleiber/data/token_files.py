"""Token files: each split of a source, encoded once into a memory-mapped file of ids, and its windows.

`eos` stands before every document, so that every byte of text is a target and a split's bits per byte are exact.

A sample is a window of context + 1 ids. Training windows start at another offset in every epoch. Validation windows
never move, never overlap, and hold every target exactly once, so a sum over them does not depend on the batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer

from kleiber.data.cache import FORMAT, SPLITS, Document, Reading, Source, cached
from kleiber.data.tokenizers.byte_level import Bytes, chunks
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Samples, Tokenizer

OURS = ("schema", "identity", "splits", "files")  # of a manifest; the rest is a source's notes
BATCH = 1 << 20  # characters handed to the tokenizer at once


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
        """Writes a file a split; returns their counts and the notes of the source."""
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
            for (begins, text), ids in zip(batch, tokenizer.encode_many([t for _, t in batch]), strict=True):
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


GOLDEN = 0.6180339887498949


class TrainWindows(Samples):
    """Windows of context + 1 ids, `context` apart; in epoch e all are moved by frac(e * golden ratio) * context.

    num_tokens and num_bytes are of one epoch: the unique text. `samples` counts on through the epochs (index + epoch *
    number of windows), so that masks differ between epochs. Raises ValueError for a text shorter than one window.
    """

    def __init__(self, file: TokenFile, context: int, name: str = "the text") -> None:
        if len(file.ids) < context + 1:
            raise ValueError(
                f"{name} has {len(file.ids)} tokens to train on, fewer than one window of model.context={context} and "
                f"its target: give more text or set model.context={max(1, len(file.ids) - 1)} or less"
            )
        self.context, self.file = context, file
        self._windows = np.lib.stride_tricks.sliding_window_view(file.ids, context + 1)
        self._count = (len(file.ids) - 1) // context
        self.num_tokens = self._count * context
        self.num_bytes = round(file.num_bytes * self.num_tokens / (len(file.ids) - 1))

    def __len__(self) -> int:
        return self._count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        shift = int(epoch * GOLDEN % 1 * self.context)
        starts = np.minimum(index * self.context + shift, len(self._windows) - 1)
        tokens = torch.from_numpy(self._windows[starts].astype(np.int64))
        return Batch(tokens=tokens, samples=torch.from_numpy(index + epoch * self._count))


class ValidationWindows(HeldOut):
    """Consecutive windows: window i predicts targets i * context + 1 to (i + 1) * context; the last one may be short.

    A short window is padded with eos of weight 0 and `real` False. `num_tokens` targets stand for exactly `num_bytes`
    bytes of text. A tokenizer that is lossy is scaled to the bytes of the whole split.
    """

    def __init__(self, file: TokenFile, context: int, tokenizer: Tokenizer, targets: int | None = None) -> None:
        self.context, self.file = context, file
        self._tokenizer = tokenizer
        everything = max(0, len(file.ids) - 1)
        self.num_tokens = everything if targets is None else min(targets, everything)
        self._count = -(-self.num_tokens // context)
        self.num_bytes = file.num_bytes if self.num_tokens == everything else self._bytes()

    def _bytes(self) -> int:
        counted = int(self._tokenizer.token_bytes[self.file.ids[1 : self.num_tokens + 1]].sum())
        return round(counted * self.file.num_bytes / self.file.counted_bytes)

    def first(self, tokens: int | None) -> ValidationWindows:
        """The first `tokens` targets (all for None), in whole windows: the fixed set that every evaluation scores."""
        if tokens is None or tokens >= self.num_tokens:
            return self
        targets = max(1, tokens // self.context) * self.context
        return ValidationWindows(self.file, self.context, self._tokenizer, targets)

    def __len__(self) -> int:
        return self._count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Windows of these numbers; padding of the last one has weight 0."""
        assert epoch == 0, "validation text is read once"
        places = index[:, None] * self.context + np.arange(self.context + 1)
        real = places <= self.num_tokens
        ids = self.file.ids[np.minimum(places, self.num_tokens)].astype(np.int64)
        batch = Batch(tokens=torch.from_numpy(ids), samples=torch.from_numpy(np.asarray(index, np.int64)))
        if not real.all():
            batch.real = torch.from_numpy(real)
            batch.weights = batch.real.float()
            batch.tokens = batch.tokens.where(batch.real, self._tokenizer.eos)
        return batch
