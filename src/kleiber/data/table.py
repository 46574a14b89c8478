"""Data sets whose samples are rows of a table: their splits and their encoding.

Splits are those of the data set. Without a validation split the test split is used for validation. Without both, a
twentieth of the training rows is held out by a hash. Equal rows, and all answers to a prompt, go to the same split.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kleiber.config.stages import Quantity
from kleiber.data.cache import FORMAT, cache_root, cached_folder
from kleiber.data.corpus import EncodedSplit, EncodedTable, choose_tokenizer, parse_bytes
from kleiber.data.dataset import open_splits, rows, table_name
from kleiber.data.location import Location, Splits, locate, report_copy
from kleiber.data.order import permutation
from kleiber.data.overlap import count_shared, hash_documents
from kleiber.data.reading import read_from
from kleiber.data.sources import Document, SourceText
from kleiber.data.splits import split_by_hash
from kleiber.data.token_files import id_dtype
from kleiber.types import Json, Row, VocabSize
from kleiber.types.access import DataPath
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableData:
    """Settings of a data set whose samples are rows of the table at `path`.

    config      configuration of the data set; null: the default one
    name        of the task, in metrics; null: from the path and the config
    tokenizer   bytes, bpe (trained on the training rows), or a name on the hub, or a folder
    vocab_size  entries of bpe
    max_bytes   at most that much text of each split
    separator   token in front of every conversation: `bos`, `eos`, or its text; null or `auto`: the tokenizer's
    splits      `files`: the names of files and folders decide about splits; null or `auto`: a dataset card or the hub's
                names of shards do, and where there are none, all files are one split
    """

    path: DataPath
    config: str | None = None
    name: str | None = None
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    max_bytes: Quantity | None = None
    separator: str | list[str] | None = None
    splits: Splits | None = None

    def identity(self) -> list[object]:
        """Returns JSON-able settings that change the encoded rows, such as the columns that are read."""
        raise NotImplementedError

    def check_columns(self, table: Dataset, name: str) -> None:
        """Raises ValueError when a table lacks a column; called for each split before any row is read."""
        raise NotImplementedError

    def texts(self, row: Row) -> list[str]:
        """Returns the texts of a row, which a vocabulary may be trained on. Raises ValueError for an invalid row."""
        raise NotImplementedError

    def prompt_texts(self, row: Row) -> list[str] | None:
        """Returns the texts of the prompt, which decide the split; [] for the whole row, None to not hold it out."""
        return []

    def encode(self, splits: dict[str, Dataset], tokenizer: Tokenizer) -> Iterator[EncodedSplit]:
        """Yields the encoded rows of each split, in the order of `splits`."""
        return (self.encode_split(split, tokenizer) for split in splits.values())

    def encode_split(self, rows: Dataset, tokenizer: Tokenizer) -> EncodedSplit:
        """Encodes the rows of one split."""
        raise NotImplementedError

    def table(self) -> Table:
        """Finds the table at data.path. Raises ValueError if there is none."""
        location = locate(self.path, self.splits)
        return Table(self, location, self.name or table_name(location, self.config), parse_bytes(self.max_bytes))

    def load(self, cache: Path | None) -> EncodedTable:
        """Returns the encoded rows from the cache, encoded now if the cache does not have them."""
        table, root = self.table(), cache_root(cache)
        tokenizer = choose_tokenizer(self.tokenizer, self.vocab_size, [table], root, self.separator)
        return table.load_encoded(tokenizer, root)


@dataclass(frozen=True)
class Table:
    """The table of a data set, in splits; it is also a source of text, with every text of every row as a document."""

    data: TableData
    location: Location
    name: str
    max_bytes: int | None

    def identity(self) -> Json:
        options = {"config": self.data.config, "meaning": self.data.identity(), "max_bytes": self.max_bytes}
        return {"table": self.location.fingerprint(), "splits": self.location.by_name, **options}

    @contextmanager
    def splits(self, root: Path) -> Iterator[tuple[dict[str, Dataset], Json]]:
        """Opens the tables train, validation and, if there is another split, test; and notes for the manifest."""
        with open_splits(self.location, self.data.config, root, self.data.check_columns) as (splits, notes):
            for name, split in splits.items():
                self.data.check_columns(split, self.location.name)
                self._check_rows(name, split)
            yield {name: self._limit(split) for name, split in self._with_validation(splits).items()}, notes

    def _check_rows(self, split: str, table: Dataset) -> None:
        """Raises ValueError for the first row that cannot be read, with its number."""
        for number, row in enumerate(rows(table)):
            try:
                self.data.texts(row)
            except ValueError as error:
                raise ValueError(f"{self.location.name}, {split} row {number}: {error}") from None

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens every text of every row as a document."""
        with self.splits(root) as (splits, notes):
            documents: dict[str, Iterable[Document]] = {
                name: ([text] for row in rows(split) for text in self.data.texts(row)) for name, split in splits.items()
            }
            yield SourceText(documents, notes)

    def load_encoded(self, tokenizer: Tokenizer, root: Path) -> EncodedTable:
        """Returns the encoded rows from the cache, encoded now if the cache does not have them."""

        def build(folder: Path) -> Json:
            """Writes the rows of each split; returns what the manifest records."""
            counts, sizes = {}, {}
            with self.splits(root) as (splits, notes):
                hashes = {
                    name: hash_documents(self.data.texts(row) for row in rows(splits[name]))
                    for name in ("train", "validation")
                }
                notes["overlap"] = count_shared(hashes["train"], hashes["validation"])
                for name, split in zip(splits, self.data.encode(splits, tokenizer), strict=True):
                    split.write(folder / name, id_dtype(tokenizer.vocab_size))
                    counts[name], sizes[name] = split.counts, len(splits[name])
                    notes |= split.notes
            return {"rows": sizes, "splits": counts, **notes}

        identity = {"format": FORMAT, "source": self.identity(), "tokenizer": tokenizer.data_hash}
        folder, manifest = cached_folder(root, f"{self.name}-{tokenizer.name}", identity, build)
        report_copy(self.location, manifest)
        reading = read_from(self.name, self.location, manifest, sum(manifest["rows"].values()), "row")
        return EncodedTable(self.name, self.data.path, tokenizer, root, folder, manifest, reading)

    def _with_validation(self, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        if "validation" in splits:
            return splits
        if "test" in splits:
            log.info("%s has no validation split: its test split is used for validation", self.name)
            return {"train": splits["train"], "validation": splits["test"]}
        table = splits["train"]
        assigned = split_by_hash((self._shared_text(row) for row in rows(table)), 1)
        if assigned is None:
            reason = f"its {len(table)} rows are too few or too similar to hold any out: add a validation split"
            raise ValueError(f"data.path={self.location.name} has no validation split, and {reason}")
        train, validation = np.flatnonzero(assigned == 1), np.flatnonzero(assigned == 0)
        log.info("%s: %d of %d rows held out for validation by their hash", self.name, len(validation), len(table))
        return {"train": table.select(train), "validation": table.select(validation)}

    def _shared_text(self, row: Row) -> str | None:
        """Returns the text whose hash determines the split of a row: its prompt, or the whole row if that is empty."""
        prompt = self.data.prompt_texts(row)
        texts = prompt if prompt is None or any(text.strip() for text in prompt) else self.data.texts(row)
        return None if texts is None else "\x1f".join(texts)

    def _limit(self, table: Dataset) -> Dataset:
        """Returns at most `max_bytes` of text, of rows in a fixed random order, so that a sorted table stays mixed."""
        if self.max_bytes is None:
            return table
        sizes = [sum(len(text.encode("utf-8", "replace")) for text in self.data.texts(row)) for row in rows(table)]
        order = permutation(len(table), 0)
        count = max(1, int(np.searchsorted(np.cumsum(np.array(sizes, int)[order]), self.max_bytes, "right")))
        return table.select(np.sort(order[:count]))
