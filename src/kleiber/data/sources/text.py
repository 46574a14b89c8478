"""Any text: a name on the hub, a folder in hub layout, or a file (.txt, .jsonl, .parquet, .csv, also .gz).

Splits are the data set's own where it has them. A split that it lacks is cut from the training text: by the hash of
each document, or by position when there is only one. What text means is not touched: no cleaning, no normalisation.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from kleiber.data.cache import Document, Reading
from kleiber.data.corpus import TextCorpus, as_bytes, prepare
from kleiber.data.sources.open import Place, locate, opened

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "validation_matched"),  # the last of MNLI
    "test": ("test",),
}
SHARE = 0.05  # of the training text for each split that a data set lacks


@dataclass(frozen=True)
class Text:
    """Text at `path`, in the column `text` (several columns are joined by a line break).

    rows       whether a row is a document (`documents`: eos between them) or a piece of one stream (`stream`); the
               lines of a .txt file are always one stream, and each file of a folder of .txt files is a document
    max_bytes  at most that much text of each split
    """

    path: str
    config: str | None = None
    text: str | list[str] = "text"
    rows: Literal["documents", "stream"] = "documents"
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    max_bytes: int | float | str | None = None

    def source(self) -> TextSource:
        if self.rows not in ("documents", "stream"):
            raise ValueError(f"data.rows={self.rows} is not one of documents, stream")
        columns = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        return TextSource(locate(self.path), self.config, columns, self.rows == "stream", as_bytes(self.max_bytes))

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Encodes what is not in the cache and cuts it into windows of `context` + 1 tokens."""
        source = self.source()
        corpus = prepare(source.name, "", [source], self.tokenizer, self.vocab_size, context, cache)
        manifest = corpus.manifest[source.name]
        if source.place.copied:
            log.info("%s", _local(source, manifest))
        return replace(corpus, config=manifest["config"])


@dataclass(frozen=True)
class TextSource:
    place: Place
    config: str | None
    columns: tuple[str, ...]
    stream: bool
    max_bytes: int | None

    @property
    def name(self) -> str:
        last = self.place.name.rstrip("/").rsplit("/", 1)[-1]
        stem = last if not self.place.kind else last.split(".", 1)[0]
        return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip(".-") or "text"

    def identity(self) -> dict[str, Any]:
        options = {"config": self.config, "columns": self.columns, "stream": self.stream, "max_bytes": self.max_bytes}
        return {"text": self.place.stamp(), **options}

    @contextmanager
    def reading(self, root: Path) -> Iterator[Reading]:
        """Documents by split; a split that the data set lacks is cut from its training text."""
        with opened(self.place, self.config, root) as (tables, config):
            splits = known_splits(tables, self.place.name)
            rows = {name: len(split) for name, split in splits.items()}
            texts = {name: _column(split, self.columns, self.place.name) for name, split in splits.items()}
            whole = self.stream or self.place.kind == "text"
            documents: dict[str, Iterable[Document]] = {
                name: [_Again(read)] if whole else ([text] for text in read()) for name, read in texts.items()
            }
            if "validation" not in splits:
                documents |= self._cut(texts["train"], whole or rows["train"] == 1, "test" not in splits)
            limited = {name: _limited(split, self.max_bytes) for name, split in documents.items()}
            fingerprints = {name: split._fingerprint for name, split in splits.items()}
            yield Reading(limited, {"config": config, "rows": rows, "fingerprints": fingerprints})

    def _cut(self, read: Callable[[], Iterator[str]], single: bool, test: bool) -> dict[str, Iterable[Document]]:
        parts = ("validation", "test") if test else ("validation",)
        marks = np.unique(np.fromiter((mark(text) for text in read()), np.uint64)) if not single else np.empty(0)
        if len(marks) <= len(parts):  # one document, or so few that a split would be left without any
            return _by_position(read, parts)
        log.info("%s: %s cut from %d different documents by their hash", self.name, " and ".join(parts), len(marks))
        cuts = thresholds(marks, len(parts))

        def chosen(part: int) -> Iterator[Document]:
            return ([text] for text in read() if int(np.searchsorted(cuts, np.uint64(mark(text)), "left")) == part)

        return {name: chosen(part) for part, name in enumerate((*parts, "train"))}


class _Again:
    """One document that can be read more than once, and is never whole in memory."""

    def __init__(self, read: Callable[[], Iterator[str]]) -> None:
        self.read = read

    def __iter__(self) -> Iterator[str]:
        return self.read()


def known_splits(tables: dict[str, Dataset], name: str) -> dict[str, Dataset]:
    """The splits under our names; a lone split of another name is taken as training text."""
    splits = {ours: tables[name] for ours, names in NAMES.items() for name in names if name in tables}
    if "train" not in splits:
        if len(tables) != 1:
            raise ValueError(f"data.path={name} has no split `train`: it has {', '.join(tables)}")
        splits = {"train": next(iter(tables.values()))}
    if unused := len(tables) - len(splits):
        log.info("%s: %d of the splits %s left out", name, unused, ", ".join(tables))
    return splits


def _column(split: Dataset, columns: tuple[str, ...], name: str) -> Callable[[], Iterator[str]]:
    have = split.column_names
    for column in columns:
        if column not in have:
            raise ValueError(f"data.text={column}: {name} has no such column; it has {', '.join(have)}")
        if (kind := getattr(split.features[column], "dtype", "a structure")) not in ("string", "large_string"):
            raise ValueError(f"data.text={column}: the column of {name} holds {kind}, not text")

    def read() -> Iterator[str]:
        chosen = cast(Any, split.select_columns(list(columns)))
        for batch in chosen.iter(batch_size=256):
            for values in zip(*(batch[column] for column in columns), strict=True):
                yield "\n".join(value or "" for value in values)

    return read


def mark(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest(), "big")


def thresholds(ordered: np.ndarray, parts: int) -> np.ndarray:
    """The largest mark of each part: 5 % of the different documents, at least one; equal documents have equal marks."""
    count = max(1, round(SHARE * len(ordered)))
    return ordered[[count * (part + 1) - 1 for part in range(parts)]]


def _by_position(read: Callable[[], Iterator[str]], parts: tuple[str, ...]) -> dict[str, Iterable[Document]]:
    """The end of the text is held out, its last characters for the test."""
    total = sum(len(piece) for piece in read())
    names = ("train", *parts)
    held = int(SHARE * total)
    ends = [total - held * (len(parts) - i) for i in range(len(names))]
    spans = dict(zip(names, itertools.pairwise([0, *ends]), strict=True))
    log.info("one document: split by position into %s characters", {n: b - a for n, (a, b) in spans.items()})
    return {name: [_Again(lambda a=a, b=b: _between(read(), a, b))] for name, (a, b) in spans.items()}


def _between(pieces: Iterator[str], begin: int, end: int) -> Iterator[str]:
    at = 0
    for piece in pieces:
        if at < end and at + len(piece) > begin:
            yield piece[max(0, begin - at) : end - at]
        at += len(piece)


def _limited(documents: Iterable[Document], limit: int | None) -> Iterator[Document]:
    """Documents up to `limit` bytes of text, the last one cut."""
    left = float("inf") if limit is None else limit

    def pieces(document: Document) -> Iterator[str]:
        """Pieces of a document up to the limit."""
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
        if left <= 0:
            return
        yield pieces(document)


def _local(source: TextSource, manifest: dict[str, Any]) -> str:
    rows = manifest["rows"]
    sizes = (
        f"{name} {rows.get(name, 0):,} rows {count['bytes']:,} bytes" for name, count in manifest["splits"].items()
    )
    config = f" {manifest['config']}" if manifest["config"] else ""
    return f"{source.name}{config} from {source.place.local} (may be a sample of the hub's): {', '.join(sizes)}"
