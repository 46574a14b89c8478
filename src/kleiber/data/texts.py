"""The texts of a split: the rows of files of JSON lines and Parquet, those of other tables, and files of text."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kleiber.config.model_size import available_cores
from kleiber.data.blocks import Rows, cut_file, open_parquet, text_hashes
from kleiber.data.cache import JOURNAL
from kleiber.data.dataset import (
    load_declared,
    load_groups,
    loading,
    named_errors,
    notes_of,
    read_text,
    require_text_columns,
    standard_names,
    use_splits,
)
from kleiber.data.folders import suffix
from kleiber.data.input_files import list_files
from kleiber.data.listing import table_groups, with_columns
from kleiber.data.location import Location
from kleiber.data.parallel import ordered_map
from kleiber.data.sources import Document, RereadableDocument
from kleiber.data.splits import document_hashes
from kleiber.records.files import read_json, write_json
from kleiber.records.progress import activity
from kleiber.records.regular_files import DamagedFile, create, open_to_append
from kleiber.types import Json

if TYPE_CHECKING:
    from datasets import Dataset

HASHES = "hashes.bin"


class Texts:
    """The texts of a split, or of a part of it.

    documents  yields each text in pieces, whenever it is called; each can be read several times
    count      number of texts; None where they must be read to be counted
    """

    def __init__(self, documents: Callable[[], Iterator[Document]], count: int | None) -> None:
        self.documents, self.count = documents, count

    @property
    def parts(self) -> Sequence[Texts]:
        """The parts that are read in different ways."""
        return [self]

    def read(self) -> Iterator[str]:
        """Yields all texts in pieces."""
        return itertools.chain.from_iterable(self.documents())

    def write_hashes(self, folder: Path) -> Json:
        """Writes the hash and the normalized hash of each text to a file in `folder`, the build of a cached folder."""
        with create(folder / HASHES) as file:
            for document in self.documents():
                file.write(np.array(document_hashes(document), np.uint64).tobytes())
        return {}


class JoinedTexts(Texts):
    """The texts of several parts, one after another."""

    def __init__(self, parts: Sequence[Texts]) -> None:
        counts = [part.count for part in parts if part.count is not None]
        super().__init__(
            lambda: itertools.chain.from_iterable(part.documents() for part in parts),
            sum(counts) if len(counts) == len(parts) else None,
        )
        self._parts = parts

    @property
    def parts(self) -> Sequence[Texts]:
        return self._parts


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
) -> Iterator[tuple[dict[str, Texts], Json]]:
    """Opens the texts of the splits train, validation and test, as far as a data set has them, and notes on its files.

    root  folder for tables that `datasets` makes of files that it alone can read; they are deleted on exit
    """
    with open_texts(location, config, columns, root) as (texts, notes):
        names = standard_names(texts, location.name)
        yield {split: texts[theirs] for split, theirs in names.items()}, use_splits(notes, names)


@contextmanager
def open_texts(
    location: Location, config: str | None, columns: tuple[str, ...], root: Path
) -> Iterator[tuple[dict[str, Texts], Json]]:
    """Opens the texts of all splits of a data set, by its own names; otherwise as `open_rows`."""
    location = location.in_reach
    with named_errors(location, config):
        listing = with_columns(list_files(location, config), columns, location.name)
    groups = table_groups(listing, rows=False)
    with ExitStack() as stack:
        if listing.declared:
            scratch = stack.enter_context(loading(location, config, root))
            tables = [load_declared(location, config, scratch)]
        elif groups:
            tables = load_groups(location, groups, stack.enter_context(loading(location, config, root)))
        else:
            tables = []
        texts: dict[str, Texts] = {}
        for split in dict.fromkeys([*listing.files, *itertools.chain.from_iterable(tables)]):
            parts = [_table(of_group[split], columns, location) for of_group in tables if split in of_group]
            if not listing.declared:
                rows = listing.paths(split, texts=False, rows=True)
                files = listing.paths(split, texts=True, rows=False)
                parts += [RowTexts(rows, columns, location.name)] if rows else []
                parts += [_files(files)] if files else []
            texts[split] = parts[0] if len(parts) == 1 else JoinedTexts(parts)
        yield texts, notes_of(location, listing)


def _table(table: Dataset, columns: tuple[str, ...], location: Location) -> Texts:
    read = column_reader(table, columns, location.name)
    return Texts(lambda: ([text] for text in read()), len(table))


def _files(paths: Sequence[str]) -> Texts:
    """Returns the texts of files, each of which is one."""
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
