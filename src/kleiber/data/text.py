"""Text from a file, a folder, a pattern, a URL, or the hub (see `input_files` for what is read of a folder).

Splits are those of the data set. A missing split is cut from the training text: by the hash of each document, or by
position when there is only one document. The text is neither cleaned nor normalized, except in files of text: a byte
order mark at their beginning is dropped, and their line breaks become line feeds.
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

from kleiber.config.stages import Quantity, quantity
from kleiber.data.cache import FORMAT, cached_folder
from kleiber.data.corpus import TextCorpus, parse_bytes, prepare
from kleiber.data.location import Location, Splits, locate, report_copy
from kleiber.data.overlap import Hashes, count_shared, hash_documents
from kleiber.data.reading import join_readings, read_from
from kleiber.data.sources import (
    Block,
    Document,
    Reading,
    RereadableDocument,
    Source,
    SourceText,
    limit_bytes,
    text_blocks,
)
from kleiber.data.splits import HELD_OUT_SHARE, HashSplit, split_limits
from kleiber.data.texts import HASHES, RowTexts, Texts, open_rows
from kleiber.types import Json, VocabSize
from kleiber.types.access import DataPath

log = logging.getLogger(__name__)

BUFFER = 4_000_000  # tokens whose windows are permuted in streaming


@dataclass(frozen=True)
class Text:
    """Text at `path`, in the column `text`; several columns are joined by a line break.

    path       a file, a folder, a pattern such as `texts/*.jsonl.zst`, a URL that fsspec opens, or a name on the hub
    rows       `documents`: every row of a table is a document, between the tokens of the separator, and so is every
               file of text; `stream`: they are pieces of one text
    max_bytes  at most that much text of each split
    separator  `bos`, `eos` or a special token of the tokenizer, in front of every document; [A, B]: B after it; `none`;
               null or `auto`: the tokens that the tokenizer puts around a text
    streaming  whether the text is encoded while a model trains on it (see `streaming`), instead of before
    shuffle_buffer
               tokens whose windows are permuted in streaming; None: 4M
    splits     `files`: the names of files and folders decide about splits; None or `auto`: a dataset card or the hub's
               names of shards do, and where there are none, all files are one split
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
    splits: Splits | None = None

    def source(self) -> TextSource:
        """Returns the text source.

        Raises ValueError for an unknown value of `rows`, a path that does not exist, and text that is not to be
        prepared.
        """
        if self.streaming:
            raise ValueError("data.streaming=true is for data=text itself, not for a data set made of it: remove it")
        if self.rows not in ("documents", "stream"):
            raise ValueError(f"data.rows={self.rows} must be documents or stream")
        return self._source(sampled=False)

    def _source(self, sampled: bool) -> TextSource:
        columns = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        location, limit = locate(self.path, self.splits, sampled), parse_bytes(self.max_bytes)
        return TextSource(location, self.config, columns, self.rows == "stream", limit)

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
        return replace(with_reading([source], corpus), config=corpus.manifest[source.name]["config"])

    def _stream(self, context: int, cache: Path | None) -> TextCorpus:
        if self.rows != "documents":
            raise ValueError(f"data.rows={self.rows} does not work with data.streaming=true: set data.rows=documents")
        from kleiber.data.streamed_corpus import prepare_stream

        source = self._source(sampled=True)
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
        return {"text": self.location.fingerprint(), "splits": self.location.by_name, **options}

    def reading(self, manifest: Json) -> Reading:
        """Returns what was read, given the manifest of the prepared text."""
        report_copy(self.location, manifest)
        in_splits = sum(count["documents"] + count["empty"] for count in manifest["splits"].values())
        documents = None if self.stream else manifest.get("documents", in_splits)
        return read_from(self.name, self.location, manifest, documents, "document")

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens the documents of each split; a split that the data set lacks is cut from its training text."""
        with open_rows(self.location, self.config, self.columns, root) as (texts, notes):
            notes["rows"] = {name: part.count for name, part in texts.items() if part.count is not None}
            splits = {name: HashSplit((name,)) for name in texts}
            if "validation" in texts:
                if not self.stream:
                    notes["overlap"] = self._overlap(texts, root)
            else:
                held_out = ("validation",) if "test" in texts else ("validation", "test")
                one_text = self.stream or texts["train"].count == 1
                hashes = np.empty((0, 2), np.uint64) if one_text else self._hashes("train", texts["train"], root)
                limits = split_limits(distinct := np.unique(hashes[:, 0]), len(held_out))
                if len(hashes) <= 1 or limits is None:
                    documents = {name: self._documents(t, name, splits[name]) for name, t in texts.items()}
                    documents |= _cut_by_position(texts["train"].read, held_out)
                    notes["documents"] = max(1, len(hashes))
                    yield SourceText(self._limited(documents), notes)
                    return
                report_cut(self.name, held_out, len(hashes))
                splits["train"] = HashSplit((*held_out, "train"), tuple(limits.tolist()))
                notes["distinct"] = len(distinct)
                is_held_out = hashes[:, 0] <= limits[0]
                notes["overlap"] = count_shared(hashes[hashes[:, 0] > limits[-1]], hashes[is_held_out])
            documents = {
                part: self._documents(t, part, splits[name]) for name, t in texts.items() for part in splits[name].names
            }
            rows = any(isinstance(part, RowTexts) for t in texts.values() for part in t.parts)
            in_blocks = rows and not self.stream and self.max_bytes is None
            yield SourceText(self._limited(documents), notes, self._blocks(texts, splits) if in_blocks else None)

    def _blocks(self, texts: Mapping[str, Texts], splits: Mapping[str, HashSplit]) -> Iterator[Block]:
        """Yields all texts in blocks; those of rows are read by the process that encodes them."""
        for name, split in splits.items():
            for part in texts[name].parts:
                if isinstance(part, RowTexts):
                    yield from (replace(block, split=split) for block in part.blocks())
                else:
                    yield from text_blocks({name: self._documents(part, name, split) for name in split.names})

    def _documents(self, texts: Texts, name: str, split: HashSplit) -> Iterable[Document]:
        """Returns the documents of the split `name` among the texts that `split` assigns."""
        if self.stream:
            return [RereadableDocument(texts.read)]
        documents = texts.documents()
        return (each for each in documents if len(split.names) == 1 or split.of_document(each) == name)

    def _hashes(self, split: str, texts: Texts, root: Path) -> Hashes:
        """Returns the hashes of each text, from the cache or computed now."""
        hashes = []
        for number, part in enumerate(texts.parts):
            identity = {"format": FORMAT, "hashes": self.identity() | {"max_bytes": None}, "part": [split, number]}
            folder, _ = cached_folder(root, f"{self.name}-hashes", identity, part.write_hashes)
            hashes.append(np.fromfile(folder / HASHES, np.uint64).reshape(-1, 2))
        return hashes[0] if len(hashes) == 1 else np.concatenate(hashes)

    def _overlap(self, texts: Mapping[str, Texts], root: Path) -> Json:
        """Returns how many validation documents are training documents too, among those that are read."""
        if self.max_bytes is None:
            hashes = {name: self._hashes(name, texts[name], root) for name in ("train", "validation")}
        else:
            hashes = {
                name: hash_documents(limit_bytes(texts[name].documents(), self.max_bytes))
                for name in ("train", "validation")
            }
        return count_shared(hashes["train"], hashes["validation"])

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


def with_reading(sources: Iterable[Source], corpus: TextCorpus) -> TextCorpus:
    """Returns the corpus with what was read of its sources, and logs which are local copies of the hub's data sets."""
    readings = [source.reading(corpus.manifest[source.name]) for source in sources if isinstance(source, TextSource)]
    return replace(corpus, reading=join_readings(readings))
