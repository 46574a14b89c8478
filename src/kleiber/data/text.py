"""Text from a file (.parquet; .txt, .jsonl, .csv, also with .gz or .zst), a folder, a pattern, a URL, or the hub.

Splits are those of the data set. A missing split is cut from the training text: by the hash of each document, or by
position when there is only one document. The text is neither cleaned nor normalized, except in .txt files: a byte order
mark at their beginning is dropped, and their line breaks become line feeds.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt64

from kleiber.config.stages import Quantity, quantity
from kleiber.data.cache import FORMAT, cached_folder
from kleiber.data.corpus import TextCorpus, parse_bytes, prepare
from kleiber.data.dataset import read_text_file
from kleiber.data.location import Location, locate, report_copy
from kleiber.data.sources import Document, RereadableDocument, Source, SourceText, limit_bytes
from kleiber.data.splits import HELD_OUT_SHARE, HashSplit, split_limits
from kleiber.data.streamed_corpus import prepare_stream
from kleiber.data.texts import HASHES, RowTexts, Texts, open_rows
from kleiber.types import Json, VocabSize
from kleiber.types.access import DataPath

log = logging.getLogger(__name__)

BUFFER = 4_000_000  # tokens whose windows are permuted in streaming


@dataclass(frozen=True)
class Text:
    """Text at `path`, in the column `text`; several columns are joined by a line break.

    path       a file, a folder in hub layout, a pattern such as `texts/*.jsonl.zst`, a URL that fsspec opens, or a name
               on the hub
    rows       `documents`: every row is a document, between the tokens of the separator; `stream`: rows are pieces of
               one text. The lines of a .txt file are always one text, and every file of a folder of .txt files is a
               document.
    max_bytes  at most that much text of each split
    separator  `bos`, `eos` or a special token of the tokenizer, in front of every document; [A, B]: B after it; `none`;
               null or `auto`: the tokens that the tokenizer puts around a text
    streaming  whether the text is encoded while a model trains on it (see `streaming`), instead of before
    shuffle_buffer
               tokens whose windows are permuted in streaming; None: 4M
    """

    path: DataPath
    config: str | None = None
    text: str | list[str] = "text"
    rows: Literal["documents", "stream"] = "documents"
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    max_bytes: Quantity | None = None
    separator: str | list[str] | None = None
    streaming: bool | None = None
    shuffle_buffer: Quantity | None = None

    def source(self) -> TextSource:
        """Returns the text source.

        Raises ValueError for an unknown value of `rows`, a path that does not exist, and text that is not to be
        prepared.
        """
        if self.streaming:
            raise ValueError("data.streaming=true is for data=text itself, not for a data set made of it: remove it")
        if self.rows not in ("documents", "stream"):
            raise ValueError(f"data.rows={self.rows} must be documents or stream")
        columns = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        return TextSource(locate(self.path), self.config, columns, self.rows == "stream", parse_bytes(self.max_bytes))

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Encodes the text that is not in the cache, and cuts it into windows of context + 1 tokens.

        In streaming, encodes the held-out text alone.
        """
        if self.streaming:
            return self._stream(context, cache)
        if self.shuffle_buffer is not None:
            raise ValueError(
                f"data.shuffle_buffer={self.shuffle_buffer} needs data.streaming=true: without it, all samples are "
                "shuffled"
            )
        source = self.source()
        corpus = prepare(
            source.name, "", [source], self.tokenizer, self.vocab_size, context, cache, separator=self.separator
        )
        report_copies([source], corpus)
        return replace(corpus, config=corpus.manifest[source.name]["config"])

    def _stream(self, context: int, cache: Path | None) -> TextCorpus:
        if self.rows != "documents":
            raise ValueError(f"data.rows={self.rows} does not work with data.streaming=true: set data.rows=documents")
        source = replace(self, streaming=None).source()
        buffer = BUFFER if self.shuffle_buffer is None else round(quantity(self.shuffle_buffer))
        return prepare_stream(
            source.name, source.location, self.config, source.columns, self.tokenizer, self.vocab_size, self.separator,
            source.max_bytes, context, buffer, cache,
        )  # fmt: skip


@dataclass(frozen=True)
class TextSource:
    """The text in some columns of a data set; `stream` joins all rows into one document."""

    location: Location
    config: str | None
    columns: tuple[str, ...]
    stream: bool
    max_bytes: int | None

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9._-]+", "-", self.location.stem.lower()).strip(".-") or "text"

    def identity(self) -> Json:
        options = {"config": self.config, "columns": self.columns, "stream": self.stream, "max_bytes": self.max_bytes}
        return {"text": self.location.fingerprint(), **options}

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens the documents of each split; a split that the data set lacks is cut from its training text."""
        if self.location.kind == "text":
            documents = _cut_by_position(self._read_file, ("validation", "test"))
            yield SourceText(self._limited(documents), {"config": "", "rows": {"train": 1}})
            return
        with open_rows(self.location, self.config, self.columns, root) as (texts, config):
            rows = {name: part.count for name, part in texts.items() if part.count is not None}
            notes: Json = {"config": config, "rows": rows}
            splits = {name: HashSplit((name,)) for name in texts}
            if "validation" not in texts:
                held_out = ("validation",) if "test" in texts else ("validation", "test")
                hashes = np.empty(0, np.uint64) if self.stream else self._hashes(texts["train"], root)
                limits = split_limits(distinct := np.unique(hashes), len(held_out))
                if len(hashes) <= 1 or limits is None:
                    documents = {name: self._documents(t, name, splits[name]) for name, t in texts.items()}
                    documents |= _cut_by_position(texts["train"].read, held_out)
                    yield SourceText(self._limited(documents), notes)
                    return
                report_cut(self.name, held_out, len(hashes))
                splits["train"] = HashSplit((*held_out, "train"), tuple(limits.tolist()))
                notes["distinct"] = len(distinct)
            documents = {
                part: self._documents(t, part, splits[name]) for name, t in texts.items() for part in splits[name].names
            }
            files = {name: t for name, t in texts.items() if isinstance(t, RowTexts)}
            in_blocks = len(files) == len(texts) and not self.stream and self.max_bytes is None
            blocks = (replace(block, split=splits[name]) for name, t in files.items() for block in t.blocks())
            yield SourceText(self._limited(documents), notes, blocks if in_blocks else None)

    def _documents(self, texts: Texts, name: str, split: HashSplit) -> Iterable[Document]:
        """Returns the documents of the split `name` among the texts that `split` assigns."""
        if self.stream:
            return [RereadableDocument(texts.read)]
        documents = texts.documents()
        return (each for each in documents if len(split.names) == 1 or split.of_document(each) == name)

    def _hashes(self, texts: Texts, root: Path) -> UInt64[np.ndarray, "_"]:
        """Returns the hash of each text, from the cache or computed now."""
        identity = {"format": FORMAT, "hashes": self.identity() | {"max_bytes": None}}
        folder, _ = cached_folder(root, f"{self.name}-hashes", identity, texts.write_hashes)
        return np.fromfile(folder / HASHES, np.uint64)

    def _read_file(self) -> Iterator[str]:
        """Yields the text of a .txt file in pieces. Raises ValueError for another column than `text`."""
        if self.columns != ("text",):
            raise ValueError(
                f"data.text={','.join(self.columns)}: data.path={self.location.name} is a text file, whose only column "
                "is text; set data.text=text"
            )
        return read_text_file(self.location)

    def _limited(self, documents: Mapping[str, Iterable[Document]]) -> dict[str, Iterable[Document]]:
        return {name: limit_bytes(split, self.max_bytes) for name, split in documents.items()}


@cache  # a new tokenizer and the encoding after it read the same text
def report_cut(name: str, held_out: tuple[str, ...], documents: int) -> None:
    """Prints which splits are cut from how many documents, once in a process."""
    log.info("%s: %s cut from %s documents by their hash", name, " and ".join(held_out), f"{documents:,}")


def _cut_by_position(read: Callable[[], Iterator[str]], held_out: tuple[str, ...]) -> dict[str, Iterable[Document]]:
    """Cuts 5 % of the characters for each held-out split from the end of the text."""
    total = sum(len(piece) for piece in read())
    names = ("train", *held_out)
    size = int(HELD_OUT_SHARE * total)
    ends = [total - size * (len(held_out) - i) for i in range(len(names))]
    spans = dict(zip(names, itertools.pairwise([0, *ends]), strict=True))
    log.info("one document, cut by position into splits of %s characters", {n: b - a for n, (a, b) in spans.items()})
    return {name: [RereadableDocument(lambda a=a, b=b: _slice(read(), a, b))] for name, (a, b) in spans.items()}


def _slice(pieces: Iterator[str], begin: int, end: int) -> Iterator[str]:
    """Yields the characters from `begin` to `end` of a text in pieces."""
    start = 0
    for piece in pieces:
        if start >= end:
            return
        if start + len(piece) > begin:
            yield piece[max(0, begin - start) : end - start]
        start += len(piece)


def report_copies(sources: Iterable[Source], corpus: TextCorpus) -> None:
    """Logs which sources of a corpus are local copies of the hub's data sets."""
    for source in sources:
        if isinstance(source, TextSource):
            report_copy(source.location, corpus.manifest[source.name])
