"""Blocks of the rows of files, which worker processes read and encode in turn.

The rows of a file are cut into blocks without being read: a file of JSON lines at every BLOCK_BYTES, where a line
belongs to the block in which it begins, and a Parquet file at its row groups. Compressed lines are cut while they are
decompressed. So the work that was done before a kill is skipped, not repeated.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt64

from kleiber.config.url_secrets import open_file_system
from kleiber.data.folders import suffix
from kleiber.data.read_errors import DAMAGED, compression, explain, is_url, not_an_object, open_bytes, unique_keys
from kleiber.data.sources import Piece, chunks
from kleiber.data.splits import HashSplit, document_hashes

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BLOCK_BYTES = 1 << 21  # bytes of a block of lines
DECODED = 256  # rows of Parquet that are decoded at once
TRAIN = HashSplit(("train",))
BOM = b"\xef\xbb\xbf"  # in front of some files


@dataclass(frozen=True)
class Rows:
    """The rows of a part of a file; each is a document, whose text is that of its columns, joined by a line break.

    path   file, or URL that fsspec opens
    begin  first byte of a part of lines, or first row group
    end    the byte or row group after it
    lines  the lines of a compressed file, which only the process that decompresses it can read
    split  the split that each row goes to
    """

    path: str
    columns: tuple[str, ...]
    begin: int = 0
    end: int = 0
    lines: bytes | None = None
    split: HashSplit = TRAIN

    def key(self) -> bytes:
        return f"{os.path.basename(self.path)} {self.begin} {self.end}".encode()

    def pieces(self) -> Iterator[Piece]:
        for text in self.texts():
            split = self.split(text)
            for i, piece in enumerate(chunks([text])):
                yield split, i == 0, piece

    def texts(self) -> Iterator[str]:
        """Yields the text of each row. Raises ValueError that names what is wrong with the file."""
        try:
            for values in self.rows():
                yield self._join(values)
        except WrongColumn:
            raise
        except Exception as error:  # of json, gzip, pyarrow and fsspec
            raise ValueError(explain(self.path, error)) from error

    def rows(self) -> Iterator[Iterable[object]]:
        """Yields the values of the columns of each row. Raises WrongColumn where no row has one of them."""
        raise NotImplementedError

    def names(self) -> Iterable[str]:
        """Returns the names of the columns that the rows have."""
        raise NotImplementedError

    def check_columns(self, name: str) -> None:
        """Raises WrongColumn for the first column that the rows lack; `name` is that of the data set."""
        try:
            names = self.names()
        except Exception as error:
            raise ValueError(explain(self.path, error)) from error
        for column in self._missing(names):
            raise WrongColumn(
                f"data.text={column}: data.path={name} has no such column; set data.text to one of {', '.join(names)}"
            )

    def _missing(self, names: Iterable[str]) -> list[str]:
        """Returns the columns that are not among the names, if there are any names."""
        present = set(names)
        return [column for column in self.columns if present and column not in present]

    def _require(self, names: Iterable[str], place: str = "") -> None:
        """Raises WrongColumn for the first column that the rows of these columns lack."""
        for column in self._missing(names):
            raise WrongColumn(
                f"data.text={column}: {self.path} has no such column{place}, unlike other rows of data.path: give the "
                f"column this name in all rows, or leave these out; their columns are {', '.join(names)}"
            )

    def _join(self, values: Iterable[object]) -> str:
        texts = []
        for column, value in zip(self.columns, values, strict=True):
            if not isinstance(value, str | None):
                kind = type(value).__name__
                raise WrongColumn(f"data.text={column} must be a column of text: in {self.path} it contains {kind}")
            texts.append(value or "")
        return "\n".join(texts)


class WrongColumn(ValueError):
    """A column is missing, or does not contain text."""


def text_hashes(rows: Rows) -> UInt64[np.ndarray, "rows 2"]:
    """Returns the hash and the normalized hash of the text of each row."""
    return np.array([document_hashes([text]) for text in rows.texts()], np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class JsonLines(Rows):
    """Lines of JSON."""

    def rows(self) -> Iterator[Iterable[object]]:
        objects = list(self._objects())
        self._require(_names(objects), f" from byte {self.begin:,} on" if self.begin else "")
        return (map(row.get, self.columns) for row in objects)

    def names(self) -> Iterable[str]:
        return _names(self._objects())

    def _objects(self) -> Iterator[dict[str, object]]:
        decode = json.JSONDecoder(object_pairs_hook=unique_keys).decode
        for line in (self._read() if self.lines is None else self.lines).removeprefix(BOM).split(b"\n"):
            if line and not line.isspace():
                row = decode(line.decode())
                if not isinstance(row, dict):
                    raise ValueError(not_an_object(row))
                yield row

    def _read(self) -> bytes:
        """Returns the lines that begin in this part of the file."""
        with open_bytes(self.path) as file:
            if self.begin:
                file.seek(self.begin - 1)
                file.readline()  # the end of a line that begins before
            lines = file.read(max(0, self.end - file.tell()))
            return lines if not lines or lines.endswith(b"\n") else lines + file.readline()


def _names(rows: Iterable[Iterable[str]]) -> Iterable[str]:
    """Returns the names that occur in any of the rows, in order."""
    return dict.fromkeys(name for row in rows for name in row)


@dataclass(frozen=True)
class ParquetRows(Rows):
    """Row groups of a Parquet file."""

    def rows(self) -> Iterator[Iterable[object]]:
        with open_parquet(self.path) as file:
            self._require(file.schema_arrow.names)
            for batch in file.iter_batches(DECODED, range(self.begin, self.end), list(self.columns)):
                yield from zip(*(batch.column(column).to_pylist() for column in self.columns), strict=True)

    def names(self) -> Iterable[str]:
        with open_parquet(self.path) as file:
            return file.schema_arrow.names


@dataclass(frozen=True)
class TextFile(Rows):
    """A file of text, which is a document."""

    def rows(self) -> Iterator[Iterable[object]]:
        with io.TextIOWrapper(open_bytes(self.path), encoding="utf-8-sig") as file:
            yield [file.read()]

    def names(self) -> Iterable[str]:
        return ["text"]


@contextmanager
def open_parquet(path: str) -> Iterator[ParquetFile]:
    """Opens a Parquet file or URL. Raises ValueError that names what is wrong with it."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with open_bytes(path) as file:
        try:
            opened = ParquetFile(file)
        except ArrowException as error:
            raise ValueError(explain(path, error)) from error
        yield opened


def cut_file(path: str, columns: tuple[str, ...]) -> Iterator[Rows]:
    """Yields the blocks of a file of JSON lines or Parquet, if its name says so; any other file is a text, a block."""
    if suffix(path) == ".parquet":
        yield from _cut_parquet(path, columns)
    elif suffix(path) != ".jsonl":
        yield TextFile(path, ("text",))
    elif compression(path):
        yield from _cut_stream(path, columns)
    else:
        size = file_size(path)
        for begin in range(0, size, BLOCK_BYTES):
            yield JsonLines(path, columns, begin, min(begin + BLOCK_BYTES, size))


def _cut_parquet(path: str, columns: tuple[str, ...]) -> Iterator[Rows]:
    """Yields row groups, several where they are small."""
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    begin, total = 0, 0
    for group, size in enumerate(sizes):
        total += size
        if total >= BLOCK_BYTES or group == len(sizes) - 1:
            yield ParquetRows(path, columns, begin, group + 1)
            begin, total = group + 1, 0


def _cut_stream(path: str, columns: tuple[str, ...]) -> Iterator[Rows]:
    """Yields the lines of a compressed file."""
    begin, left = 0, b""
    try:
        with open_bytes(path) as file:
            while block := file.read(BLOCK_BYTES):
                whole, line_break, rest = block.rpartition(b"\n")
                if not line_break:
                    left += block
                    continue
                lines = left + whole
                yield JsonLines(path, columns, begin, begin + len(lines), lines)
                begin, left = begin + len(lines) + 1, rest
    except DAMAGED as error:
        raise ValueError(explain(path, error)) from error
    if left:
        yield JsonLines(path, columns, begin, begin + len(left), left)


def file_size(path: str) -> int:
    """Returns the bytes of a file or URL."""
    if not is_url(path):
        return os.path.getsize(path)
    system, place = open_file_system(path)
    return int(system.info(place)["size"])
