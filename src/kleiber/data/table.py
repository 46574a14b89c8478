"""Data sets whose samples are rows of a table: their splits, their encoding, and columns of labels.

Splits are those of the data set. Without a validation split the test split is used for validation. Without both, a
twentieth of the training rows is held out by a hash. Equal rows, and all answers to a prompt, go to the same split.

The type of a label column decides the kind of labels: whole numbers, text and truth values are classes, lists are
several classes a row (numbers or names), fractions are quantities. A label is missing where it is empty or, for a
class, negative. Whole numbers with gaps are classes too, although a CSV table then contains them as fractions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

from kleiber.config.stages import Quantity
from kleiber.data.cache import FORMAT, cache_root, cached_folder
from kleiber.data.corpus import EncodedSplit, EncodedTable, choose_tokenizer, parse_bytes
from kleiber.data.dataset import open_splits, rows, table_name
from kleiber.data.location import Location, locate, report_copy
from kleiber.data.order import permutation
from kleiber.data.sources import Document, SourceText
from kleiber.data.splits import split_by_hash
from kleiber.data.token_files import id_dtype
from kleiber.types import Json, Row, VocabSize
from kleiber.types.access import DataPath
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset, Value

log = logging.getLogger(__name__)

INDICATORS = "a list of 0/1 indicators; a list must name the classes that the row has: [0, 2] instead of [1, 0, 1]"

Kind = Literal["single", "multi", "regression"]
Class = int | float | str | bool  # a class as its column spells it


@dataclass(frozen=True)
class TableData:
    """Settings of a data set whose samples are rows of the table at `path`.

    config      configuration of the data set; null: the default one
    name        of the task, in metrics; null: from the path and the config
    tokenizer   bytes, bpe (trained on the training rows), or a name on the hub, or a folder
    vocab_size  entries of bpe
    max_bytes   at most that much text of each split
    separator   token in front of every conversation: `bos`, `eos`, or its text; null or `auto`: the tokenizer's
    """

    path: DataPath
    config: str | None = None
    name: str | None = None
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    max_bytes: Quantity | None = None
    separator: str | list[str] | None = None

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
        location = locate(self.path)
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
        return {"table": self.location.fingerprint(), **options}

    @contextmanager
    def splits(self, root: Path) -> Iterator[tuple[dict[str, Dataset], str]]:
        """Opens the tables train, validation and, if there is another split, test; and the config they belong to."""
        with open_splits(self.location, self.data.config, root) as (splits, config):
            for name, split in splits.items():
                self.data.check_columns(split, self.location.name)
                self._check_rows(name, split)
            yield {name: self._limit(split) for name, split in self._with_validation(splits).items()}, config

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
        with self.splits(root) as (splits, config):
            documents: dict[str, Iterable[Document]] = {
                name: ([text] for row in rows(split) for text in self.data.texts(row)) for name, split in splits.items()
            }
            yield SourceText(documents, {"config": config})

    def load_encoded(self, tokenizer: Tokenizer, root: Path) -> EncodedTable:
        """Returns the encoded rows from the cache, encoded now if the cache does not have them."""

        def build(folder: Path) -> Json:
            """Writes the rows of each split; returns what the manifest records."""
            counts, sizes, notes = {}, {}, {}
            with self.splits(root) as (splits, config):
                for name, split in zip(splits, self.data.encode(splits, tokenizer), strict=True):
                    split.write(folder / name, id_dtype(tokenizer.vocab_size))
                    counts[name], sizes[name] = split.counts, len(splits[name])
                    notes |= split.notes
            return {"config": config, "rows": sizes, "splits": counts, **notes}

        identity = {"format": FORMAT, "source": self.identity(), "tokenizer": tokenizer.data_hash}
        cached = cached_folder(root, f"{self.name}-{tokenizer.name}", identity, build)
        report_copy(self.location, cached[1])
        return EncodedTable(self.name, self.data.path, tokenizer, root, *cached)

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


@dataclass(frozen=True)
class Labels:
    """The labels of a column.

    names   classes for people, in order
    values  the same classes as the column spells them
    """

    kind: Kind
    names: list[str]
    values: Sequence[Class]

    def encode(self, column: Iterable[Any]) -> tuple[Shaped[np.ndarray, "rows *classes"], Bool[np.ndarray, "rows"]]:
        """Returns the labels as numbers, and which rows have one.

        Numbers are class numbers (int64), a row of 0 and 1 for several classes (float32), or quantities (float32).
        """
        entries = list(column)
        if self.kind == "regression":
            values = np.array([np.nan if value is None else value for value in entries], np.float32)
            # GLUE writes -1 for the hidden labels of a test split; elsewhere -1 is a quantity like others.
            hidden = len(values) > 0 and bool((values == -1).all())
            return values, np.isfinite(values) & (not hidden)
        place = {value: i for i, value in enumerate(self.values)}
        if self.kind == "single":
            numbers = np.array([-1 if is_missing(value) else place[value] for value in entries], np.int64)
            return numbers, numbers >= 0
        rows = np.zeros((len(entries), len(self.values)), np.float32)
        for row, classes in zip(rows, entries, strict=True):
            row[[place[value] for value in classes or () if not is_missing(value)]] = 1
        present = [classes is not None and (not classes or not all(map(is_missing, classes))) for classes in entries]
        return rows, np.array(present, bool)

    def count_classes(self, values: Shaped[np.ndarray, "rows *classes"]) -> list[int]:
        """Returns the number of rows of each class, from labels as `encode` returns them."""
        return [int(n) for n in (np.bincount(values, minlength=len(self.names)) if values.ndim == 1 else values.sum(0))]

    def describe(self, train: Shaped[np.ndarray, "rows *classes"]) -> Json:
        """Returns what the manifest records about the labels, given those of the training rows."""
        moments = center_and_scale(train) if self.kind == "regression" and len(train) else {}
        return {"kind": self.kind, "label_names": self.names, **moments}


def is_missing(value: object) -> bool:
    """Whether a class is missing: null, an empty name, or a negative number."""
    return value is None or value == "" or (isinstance(value, int | float) and not value >= 0)


def center_and_scale(values: Shaped[np.ndarray, "rows"]) -> dict[str, float]:
    """Returns the mean and the standard deviation of quantities; a scale of 1 where all are equal."""
    return {"center": float(values.mean()), "scale": float(values.std()) or 1.0}


def read_labels(tables: dict[str, Dataset], column: str) -> Labels:
    """Returns the kind of prediction and the distinct classes of a column, over the tables of all splits.

    Raises ValueError for a column that contains neither classes, lists of classes nor numbers.
    """
    from datasets import ClassLabel, LargeList, List, Value

    feature = tables["train"].features[column]
    several = isinstance(feature, List | LargeList)
    entry = feature.feature if several else feature
    if not isinstance(entry, ClassLabel | Value):
        raise ValueError(f"data.label={column} must be a column of classes, lists of classes or numbers, not {feature}")
    if several:
        distinct: set[Any] = _classes_in_lists(tables, column, entry)
    else:
        distinct = {value for table in tables.values() for value in table[column]}
        if _is_fraction(entry):
            if not _whole_with_gaps(distinct):
                return Labels("regression", ["value"], [])
            distinct = {value if value is None or np.isnan(value) else int(value) for value in distinct}
    values = sorted(value for value in distinct if not is_missing(value))
    names = [str(value) for value in values]
    if isinstance(entry, ClassLabel) and entry.names:
        names, values = list(entry.names), list(range(len(entry.names)))
    if len(values) < (1 if several else 2):
        negative = sorted(value for value in distinct if isinstance(value, int) and value < 0)
        hint = f"; {negative} are negative, which stands for a missing label" if negative else ""
        raise ValueError(f"data.label={column} must have at least 2 classes: it has {len(values)} ({values}){hint}")
    return Labels("multi" if several else "single", names, values)


def _is_fraction(entry: ClassLabel | Value) -> bool:
    return str(entry.dtype).startswith(("float", "double"))


def _classes_in_lists(tables: dict[str, Dataset], column: str, entry: ClassLabel | Value) -> set[Class | None]:
    """Returns the distinct classes of a column of lists. Raises ValueError for lists that do not name classes."""
    if _is_fraction(entry):
        raise ValueError(
            f"data.label={column} contains lists of fractions, and only one quantity can be learned: set it to a "
            "column of one of them, or to lists of classes as whole numbers or names"
        )
    lists: list[Sequence[Class | None]] = [value or () for table in tables.values() for value in table[column]]
    for classes in lists:
        if len(set(classes)) < len(classes):
            raise ValueError(
                f"data.label={column}: the row {list(classes)[:20]} names a class twice, or it is {INDICATORS}"
            )
    distinct = {value for classes in lists for value in classes}
    if distinct == {0, 1} and {len(classes) for classes in lists} == {2}:  # every row would have both classes
        raise ValueError(f"data.label={column}: every row is {INDICATORS}")
    return distinct


def _whole_with_gaps(values: set[Any]) -> bool:
    """Whether a column of fractions contains whole numbers and missing values only."""
    present = [value for value in values if value is not None and not np.isnan(value)]
    return 0 < len(present) < len(values) and all(float(value).is_integer() for value in present)
