"""Token files: encoded text in memory-mapped files, and the windows of text that are samples of it.

`token_files` encodes each split of a text source into files of ids. A token of the tokenizer's separator precedes every
document (unless data.separator=none), so every byte of text is a target, and bits per byte are exact.
`write_rows` and `read_rows` keep rows of unequal length, such as conversations.

A sample of text is a window of context + 1 ids. Training windows start at another offset in every epoch. Validation
windows never move or overlap and contain every target exactly once, so a sum over them does not depend on the batches.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Integer

from kleiber.data.batches import sample_numbers
from kleiber.data.cache import FORMAT, cached_folder
from kleiber.data.sources import SPLITS, Document, Source, SourceText, text_blocks
from kleiber.data.token_writer import report_empty, write_tokens
from kleiber.data.tokenizers import Bytes
from kleiber.records.arrays import read_array, write_array
from kleiber.records.files import many_open_files, replaced
from kleiber.records.regular_files import create, open_to_read
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Samples
from kleiber.types.tokenizer import Tokenizer

MANIFEST_KEYS = ("schema", "identity", "splits", "files")  # the other keys of a manifest are notes of the source
GOLDEN_RATIO = 0.6180339887498949
AT_ONCE = 1 << 18  # ids whose bytes are in memory together


class Shards:
    """The token ids of several files as one array. What is read is copied from the files, and nothing else."""

    def __init__(self, parts: Sequence[Integer[np.ndarray, "_"]]) -> None:
        self.parts, self.dtype = parts, np.result_type(*parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def part(self, begin: int, end: int) -> Shards:
        """Returns the ids from `begin` to `end`, mapped and not copied."""
        spans = zip(self.parts, self.starts.tolist(), strict=False)
        return Shards([part[max(0, begin - start) : max(0, end - start)] for part, start in spans])

    def __getitem__(self, index: slice | Int[np.ndarray, "*places"]) -> Integer[np.ndarray, "*places"]:
        """Returns the ids at these places, or from one place to another."""
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            assert step == 1, "ids are read in their order"
            first, last = np.searchsorted(self.starts, [begin, max(begin, end - 1)], "right") - 1
            spans = [(self.parts[i], self.starts[i]) for i in range(first, min(last + 1, len(self.parts)))]
            pieces = [part[max(0, begin - start) : max(0, end - start)] for part, start in spans]
            return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])
        owner = np.searchsorted(self.starts, index, "right") - 1
        ids = np.empty(index.shape, self.dtype)
        for i in np.unique(owner):
            ids[owner == i] = self.parts[i][index[owner == i] - self.starts[i]]
        return ids

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.empty(0, self.dtype), *self.parts]).astype(dtype or self.dtype, copy=False)


TokenIds = Integer[np.ndarray, "_"] | Shards


def join_files(parts: Sequence[Integer[np.ndarray, "_"]]) -> TokenIds:
    """Returns the ids of files in order as one array: that of the file itself where there is only one."""
    return parts[0] if len(parts) == 1 else Shards(parts)


@dataclass(frozen=True)
class TokenFile:
    """The token ids of one split, mapped from its files.

    num_bytes      bytes of its text
    counted_bytes  bytes that its ids stand for; fewer than num_bytes under a lossy tokenizer
    """

    ids: TokenIds
    num_bytes: int
    counted_bytes: int
    sha256: str


def token_files(source: Source, tokenizer: Tokenizer, root: Path) -> tuple[dict[str, TokenFile], Json]:
    """Returns the token file of each split of `source`, from the cache or newly encoded, and their manifest.

    Raises ValueError for a tokenizer that gives ids outside its vocabulary.
    """
    identity = {"format": FORMAT, "source": source.identity(), "tokenizer": tokenizer.data_hash}

    def build(folder: Path) -> Json:
        """Writes the files of each split; returns their counts and the notes of the source."""
        with source.open_text(root) as text:
            blocks = text_blocks(text.documents) if text.blocks is None else text.blocks
            counts = write_tokens(folder, blocks, tokenizer, id_dtype(tokenizer.vocab_size))
            report_empty(source.name, counts)
            return {"splits": counts, **text.notes}

    folder, manifest = cached_folder(root, f"{source.name}-{tokenizer.name}", identity, build)
    return {split: _open(folder, split, manifest, tokenizer) for split in SPLITS}, manifest


class CachedSource:
    """A source that is slow to read, cached as a token file of bytes, from which every tokenizer reads its text."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name

    def identity(self) -> Json:
        return self.source.identity()

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        splits, manifest = token_files(self.source, Bytes(), root)
        notes = {key: value for key, value in manifest.items() if key not in MANIFEST_KEYS}
        yield SourceText({name: _documents(np.asarray(file.ids)) for name, file in splits.items()}, notes)


def _documents(ids: Integer[np.ndarray, "time"]) -> Iterator[Document]:
    begins = np.flatnonzero(ids == Bytes.eos)
    for begin, end in itertools.pairwise([*begins.tolist(), len(ids)]):
        yield [ids[begin + 1 : end].astype(np.uint8).tobytes().decode()]


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds every id. Raises ValueError for more than 2^32 ids."""
    if vocab_size > 1 << 32:
        raise ValueError(f"vocab_size={vocab_size} of the tokenizer must be <= 2^32, since token ids have 32 bits")
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _open(folder: Path, split: str, manifest: Json, tokenizer: Tokenizer) -> TokenFile:
    names = sorted(name for name in manifest["files"] if name.rpartition("-")[0] == split)
    files = [manifest["files"][name] for name in names]
    dtype, count = id_dtype(tokenizer.vocab_size), manifest["splits"][split]
    with many_open_files():
        ids = [map_file(folder / name, dtype) for name in names]
    sums = [file["sha256"] for file in files]
    sha256 = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return TokenFile(join_files(ids), count["bytes"], count["counted_bytes"], sha256)


def map_file(path: Path, dtype: np.dtype, offset: int = 0) -> Integer[np.ndarray, "_"]:
    """Maps the numbers in a file, from the byte `offset` on.

    The system reads what is used, and not megabytes ahead of each sample.
    """
    if path.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype)
    with open_to_read(path) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype, offset=offset)


def count_bytes(ids: TokenIds, tokenizer: Tokenizer, begin: int, end: int) -> int:
    """Returns the bytes of text that the ids from `begin` to `end` stand for."""
    starts = range(begin, end, AT_ONCE)
    return sum(int(tokenizer.token_bytes[ids[start : min(start + AT_ONCE, end)]].sum()) for start in starts)


@dataclass(frozen=True)
class TokenRows:
    """Rows of unequal length in one array: row i is flat[starts[i] : starts[i + 1]]."""

    flat: Integer[np.ndarray, "_"]
    starts: Int[np.ndarray, "_"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> Integer[np.ndarray, "_"]:
        return self.flat[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, "_"]:
        return np.diff(self.starts)


def write_rows(path: Path, rows: Iterable[Integer[np.ndarray, "_"]], dtype: np.dtype) -> None:
    """Writes rows of unequal length to `path`.bin and `path`.starts.npy."""
    lengths = [0]
    ids = path.with_suffix(".bin")
    with replaced(ids) as part, create(part) as file:
        for row in rows:
            file.write(np.asarray(row).astype(dtype).tobytes())
            lengths.append(len(row))
    write_array(path.with_suffix(".starts.npy"), np.cumsum(lengths, dtype=np.int64))


def read_rows(path: Path, dtype: np.dtype) -> TokenRows:
    """Returns the rows that `write_rows` wrote at `path`, mapped from the files."""
    starts = read_array(path.with_suffix(".starts.npy"))
    return TokenRows(map_file(path.with_suffix(".bin"), dtype), starts)


class TrainWindows(Samples):
    """Windows of context + 1 ids, `context` apart; in epoch e all start frac(e * golden ratio) * context later.

    num_tokens and num_bytes are those of one epoch. The sample numbers of a batch count on through the epochs, so masks
    differ between epochs. Raises ValueError for a text shorter than one window.
    """

    def __init__(self, file: TokenFile, context: int, name: str = "the text") -> None:
        if len(file.ids) < context + 1:
            raise ValueError(
                f"{name} has {len(file.ids)} tokens to train on, fewer than one window of model.context={context} and "
                f"its target: use more text, or set model.context={max(1, len(file.ids) - 1)} or less"
            )
        self.context, self.file = context, file
        ids = file.ids
        self._views = (
            np.lib.stride_tricks.sliding_window_view(ids, context + 1) if isinstance(ids, np.ndarray) else None
        )
        self._count = (len(file.ids) - 1) // context
        self.num_tokens = self._count * context
        self.num_bytes = round(file.num_bytes * self.num_tokens / (len(file.ids) - 1))

    def __len__(self) -> int:
        return self._count

    def starts(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Int[np.ndarray, "batch"]:
        """The places in the file at which the windows of these numbers begin in that epoch."""
        shift = int(epoch * GOLDEN_RATIO % 1 * self.context)
        return np.minimum(index * self.context + shift, len(self.file.ids) - self.context - 1)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns the windows of these numbers in an epoch."""
        starts, length = self.starts(index, epoch), self.context + 1
        if self._views is None:
            windows = np.stack([self.file.ids[start : start + length] for start in starts.tolist()])
        else:
            windows = self._views[starts]
        tokens = torch.from_numpy(windows.astype(np.int64))
        return Batch(tokens=tokens, samples=sample_numbers(index, epoch, len(self)))


class ValidationWindows(HeldOut):
    """Consecutive windows: window i predicts tokens i * context + 1 to (i + 1) * context; the last one may be short.

    A short window is padded with eos, where weights are 0 and `real` is False. The num_tokens targets stand for exactly
    num_bytes bytes of text. Under a lossy tokenizer, bytes are scaled to the bytes of the whole split.
    """

    def __init__(self, file: TokenFile, context: int, tokenizer: Tokenizer, targets: int | None = None) -> None:
        self.context, self.file = context, file
        self._tokenizer = tokenizer
        all_targets = max(0, len(file.ids) - 1)
        self.num_tokens = all_targets if targets is None else min(targets, all_targets)
        self._count = -(-self.num_tokens // context)
        whole = self.num_tokens == all_targets and tokenizer.separator.before is not None
        self.num_bytes = file.num_bytes if whole or not file.num_bytes else self._bytes()

    def _bytes(self) -> int:
        counted = count_bytes(self.file.ids, self._tokenizer, 1, self.num_tokens + 1)
        return round(counted * self.file.num_bytes / self.file.counted_bytes)

    def first(self, tokens: int | None) -> ValidationWindows:
        """Returns the first `tokens` targets, rounded down to whole windows, at least one window; all for None."""
        if tokens is None or tokens >= self.num_tokens:
            return self
        targets = max(1, tokens // self.context) * self.context
        return ValidationWindows(self.file, self.context, self._tokenizer, targets)

    def __len__(self) -> int:
        return self._count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns the windows of these numbers; padding of the last window has weight 0."""
        assert epoch == 0, "held-out text is read once"
        positions = index[:, None] * self.context + np.arange(self.context + 1)
        real = positions <= self.num_tokens
        ids = self.file.ids[np.minimum(positions, self.num_tokens)].astype(np.int64)
        batch = Batch(tokens=torch.from_numpy(ids), samples=sample_numbers(index, 0, len(self)))
        if not real.all():
            batch.real = torch.from_numpy(real)
            batch.weights = batch.real.float()
            batch.tokens = batch.tokens.where(batch.real, self._tokenizer.eos)
        return batch
