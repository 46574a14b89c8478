"""The texts of the rows of a split, from files of JSON lines and Parquet, from .txt files, or from a table."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kleiber.config.model_size import available_cores
from kleiber.data.blocks import Rows, cut_file, open_parquet, text_hashes
from kleiber.data.cache import JOURNAL
from kleiber.data.dataset import named_errors, open_splits, read_text, require_text_columns, standard_splits
from kleiber.data.input_files import row_files
from kleiber.data.location import Location, suffix
from kleiber.data.parallel import ordered_map
from kleiber.data.sources import Document, RereadableDocument
from kleiber.data.splits import document_hash
from kleiber.records.files import read_json, write_json
from kleiber.records.progress import activity
from kleiber.records.regular_files import DamagedFile, open_to_append
from kleiber.types import Json

if TYPE_CHECKING:
    from datasets import Dataset

HASHES = "hashes.bin"


class Texts:
    """The texts of the rows of a split.

    documents  yields the text of each row, in pieces, whenever it is called; each can be read several times
    count      number of rows; None where they must be read to be counted
    """

    def __init__(self, documents: Callable[[], Iterator[Document]], count: int | None) -> None:
        self.documents, self.count = documents, count

    def read(self) -> Iterator[str]:
        """Yields the text of all rows in pieces."""
        return itertools.chain.from_iterable(self.documents())

    def write_hashes(self, folder: Path) -> Json:
        """Writes the hash of each text to a file in `folder`, the build of a folder of the cache."""
        np.fromiter(map(document_hash, self.documents()), np.uint64).tofile(folder / HASHES)
        return {}


class RowTexts(Texts):
    """The texts of rows in files of JSON lines or Parquet.

    paths    files or URLs, in order
    columns  whose texts are joined by a line break
    name     of the data set, for errors
    """

    def __init__(self, paths: Sequence[str], columns: tuple[str, ...], name: str) -> None:
        self.paths, self.columns, self.name = paths, columns, name
        super().__init__(lambda: ([text] for block in self.blocks() for text in block.texts()), self._count())

    def _count(self) -> int | None:
        if any(suffix(path) != ".parquet" for path in self.paths):
            return None
        total = 0
        for path in self.paths:
            with open_parquet(path) as file:
                total += file.metadata.num_rows
        return total

    def blocks(self) -> Iterator[Rows]:
        """Yields the rows in blocks. Raises WrongColumn where the first block lacks a column."""
        blocks = (block for path in self.paths for block in cut_file(path, self.columns))
        for block in itertools.islice(blocks, 1):
            block.check_columns(self.name)
            yield block
        yield from blocks

    def write_hashes(self, folder: Path) -> Json:
        """Does so on all cores, and goes on where a process was killed that did the same."""
        journal, path = folder / JOURNAL, folder / HASHES
        with open_to_append(path) as file, activity(f"hashing the documents of {self.name}", unit="documents") as work:
            blocks, size = _read_journal(journal)
            if size > path.stat().st_size:
                blocks, size = 0, 0
            os.truncate(path, size)
            remaining = itertools.islice(self.blocks(), blocks, None)
            for hashes in ordered_map(text_hashes, remaining, available_cores()):
                blocks, size = blocks + 1, size + file.write(hashes.tobytes())
                file.flush()
                write_json(journal, {"blocks": blocks, "bytes": size})
                work.done += len(hashes)
        return {}


def _read_journal(path: Path) -> tuple[int, int]:
    """Returns the blocks that a build has done, and the bytes that it has written for them."""
    try:
        done = read_json(path)
        return int(done["blocks"]), int(done["bytes"])
    except (FileNotFoundError, DamagedFile, KeyError, TypeError):
        return 0, 0


@contextmanager
def open_rows(
    location: Location, config: str | None, columns: tuple[str, ...], root: Path
) -> Iterator[tuple[dict[str, Texts], str]]:
    """Opens the texts of the rows of each split that a data set has, and the config that they belong to.

    root  folder for tables that `datasets` makes of files that it alone can read; they are deleted on exit
    """
    with named_errors(location, config):
        files, chosen = row_files(location, config) or ({}, "")
    if files:
        splits = standard_splits(files, location.name)
        yield {split: _open_files(paths, columns, location.name) for split, paths in splits.items()}, chosen
        return
    with open_splits(location, config, root) as (tables, chosen):
        texts: dict[str, Texts] = {}
        for split, table in tables.items():
            read = column_reader(table, columns, location.name)
            texts[split] = Texts(lambda read=read: ([text] for text in read()), len(table))
        yield texts, chosen


def _open_files(paths: Sequence[str], columns: tuple[str, ...], name: str) -> Texts:
    """Returns the texts of the rows in files of JSON lines or Parquet, or those of .txt files, each of which is one."""
    if suffix(paths[0]) != ".txt":
        return RowTexts(paths, columns, name)
    return Texts(lambda: (RereadableDocument(partial(read_text, path)) for path in paths), len(paths))


def column_reader(split: Dataset, columns: tuple[str, ...], name: str) -> Callable[[], Iterator[str]]:
    """Returns a function that yields the text of each row. Raises ValueError for a column without text."""
    require_text_columns(split, columns, name)

    def read() -> Iterator[str]:
        for batch in split.select_columns(list(columns)).iter(batch_size=256):
            assert isinstance(batch, dict)
            for values in zip(*(batch[column] for column in columns), strict=True):
                yield "\n".join(value or "" for value in values)

    return read
