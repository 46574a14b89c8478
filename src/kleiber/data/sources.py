"""Text sources: the documents of a data set in splits, and blocks of them that are encoded at once.

Documents are read in this process, and memory does not depend on their length. Blocks of files can be read in other
processes (`blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kleiber.types import Json

SPLITS = ("train", "validation", "test")
CHUNK = 1 << 16  # characters encoded at once
BATCH_CHARACTERS = 1 << 20  # characters of a block of text

Document = Iterable[str]  # pieces of text that follow one another without a gap
Piece = tuple[str, bool, str]  # split, whether it begins a document, text


@runtime_checkable
class Block(Protocol):
    """A part of the text of a data set.

    key     differs for blocks of different text
    pieces  yields its pieces of text in order; pieces of a document follow one another without a gap, and an empty
            document is an empty piece
    """

    def key(self) -> bytes: ...
    def pieces(self) -> Iterator[Piece]: ...


@dataclass(frozen=True)
class SourceText:
    """The documents of each split, each of which can be read once, and the notes of a source for the manifest.

    blocks  the same text in blocks that can be read in other processes; None where the documents are read in this one
    """

    documents: Mapping[str, Iterable[Document]]
    notes: Json
    blocks: Iterable[Block] | None = None


class RereadableDocument:
    """A document that can be read several times, and is never in memory as a whole."""

    def __init__(self, read: Callable[[], Iterator[str]]) -> None:
        self.read = read

    def __iter__(self) -> Iterator[str]:
        return self.read()


@runtime_checkable
class Source(Protocol):
    """Text in splits.

    identity   JSON-able facts that determine the text and are cheap to collect; they name the folder in the cache
    open_text  opens the text; called only when the cache does not hold it
    """

    @property
    def name(self) -> str: ...
    def identity(self) -> Json: ...
    def open_text(self, root: Path) -> AbstractContextManager[SourceText]: ...


def limit_bytes(documents: Iterable[Document], limit: int | None) -> Iterator[Document]:
    """Yields documents up to `limit` bytes of text, and cuts the last one; all for None.

    Each document must be read before the next one is asked for.
    """
    left = float("inf") if limit is None else limit

    def pieces(document: Document) -> Iterator[str]:
        """Yields the pieces of a document up to the limit."""
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
        yield pieces(document)
        if left <= 0:
            return


def chunks(pieces: Iterable[str], size: int = CHUNK) -> Iterator[str]:
    """Yields the same text in chunks of about `size` characters, which bounds memory for long lines and documents.

    A cut is before white space that follows another character. Every GPT-2-like pattern begins a new word there, so the
    ids are those of the whole text. Only where `size` characters have no such place is a word cut. An empty text has
    one empty chunk.
    """
    text = ""
    for piece in pieces:
        for start in range(0, len(piece), size):
            text += piece[start : start + size]
            while len(text) > size:
                cut = _cut(text, size)
                yield text[:cut]
                text = text[cut:]
    yield text


def _cut(text: str, size: int) -> int:
    for place in range(size, 0, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return size


@dataclass(frozen=True)
class TextBlock:
    """A block of text that is in memory."""

    split: str
    texts: list[tuple[bool, str]]

    def key(self) -> bytes:
        return "".join(text for _, text in self.texts).encode("utf-8", "replace")

    def pieces(self) -> Iterator[Piece]:
        return ((self.split, begins, text) for begins, text in self.texts)


def text_blocks(documents: Mapping[str, Iterable[Document]]) -> Iterator[TextBlock]:
    """Yields the documents of each split in blocks of about a million characters."""
    for split in SPLITS:
        texts, characters = [], 0
        for document in documents.get(split, ()):
            for i, text in enumerate(chunks(document)):
                texts.append((i == 0, text))
                characters += max(1, len(text))
                if characters >= BATCH_CHARACTERS:
                    yield TextBlock(split, texts)
                    texts, characters = [], 0
        if texts:
            yield TextBlock(split, texts)


@dataclass(frozen=True)
class Reading:
    """What was read of the files of a corpus.

    files     for each data set, which files were read and which were left out
    overlap   for each data set, how many validation documents are training documents
    warnings  what may make a result misleading, each with the key to change
    """

    files: tuple[str, ...] = ()
    overlap: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


NOTHING_READ = Reading()
