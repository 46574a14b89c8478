"""Tables of a data set, a row a sample: their splits, the columns they must have, and the kinds of labels.

Splits are the data set's own. Without a validation split the test split is scored, and without either the rows whose
hash is among the lowest twentieth are held out of training: equal rows fall on the same side, and so do all answers to
one prompt.

The type of a column of labels decides their kind: whole numbers, text and truth values are classes, lists are several
classes a row (numbers or names), fractions are quantities. A label is missing where it is empty or, for classes,
negative. Whole numbers with gaps are classes too, although a CSV table then holds them as fractions. Rows of 0/1
indicators are refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

from kleiber.data.cache import FORMAT, Document, Reading, cached
from kleiber.data.sampler import permutation
from kleiber.data.sources.open import Place, opened
from kleiber.data.sources.text import known_splits, mark, thresholds
from kleiber.types.contracts import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows at `place`, as a source of text too: `texts(row)` is what a vocabulary may be trained on.

    checked    called with the columns of each split before any row is read; raises ValueError for what is missing
    meaning    what decides the content beside the files (columns, template): part of the cache's identity
    max_bytes  at most that much text of each split, of rows in a fixed random order: a sorted table stays mixed
    together   texts that keep the rows that share them on one side of a split; None: those of the whole row
    """

    place: Place
    config: str | None
    name: str
    texts: Callable[[Row], list[str]]
    checked: Callable[[Dataset], None]
    meaning: Any
    max_bytes: int | None = None
    together: Callable[[Row], list[str]] | None = None

    def identity(self) -> dict[str, Any]:
        options = {"config": self.config, "meaning": self.meaning, "max_bytes": self.max_bytes}
        return {"table": self.place.stamp(), **options}

    @contextmanager
    def splits(self, root: Path) -> Iterator[tuple[dict[str, Dataset], str]]:
        """The tables `train`, `validation` and, where there is one more, `test`, and the config they belong to."""
        with opened(self.place, self.config, root) as (tables, config):
            splits = known_splits(tables, self.place.name)
            for name, split in splits.items():
                self.checked(split)
                self._legible(name, split)
            yield {name: self._limited(split) for name, split in self._held_out(splits).items()}, config

    def _legible(self, split: str, table: Dataset) -> None:
        """Raises ValueError for the first row that cannot be read, with its number."""
        for number, row in enumerate(rows(table)):
            try:
                self.texts(row)
            except ValueError as error:
                raise ValueError(f"{self.place.name}, {split} row {number}: {error}") from None

    @contextmanager
    def reading(self, root: Path) -> Iterator[Reading]:
        """Every text of every row as a document."""
        with self.splits(root) as (splits, config):
            documents: dict[str, Iterable[Document]] = {
                name: ([text] for row in rows(split) for text in self.texts(row)) for name, split in splits.items()
            }
            yield Reading(documents, {"config": config})

    def kept(
        self, tokenizer: Tokenizer, root: Path, build: Callable[[Path, dict[str, Dataset]], dict[str, Any]]
    ) -> tuple[Path, dict[str, Any]]:
        """The cached folder of the encoded rows and its manifest; `build(folder, splits)` fills it on a miss."""

        def fill(folder: Path) -> dict[str, Any]:
            with self.splits(root) as (splits, config):
                counts = {name: len(split) for name, split in splits.items()}
                return {"config": config, "rows": counts, **build(folder, splits)}

        identity = {"format": FORMAT, "source": self.identity(), "tokenizer": tokenizer.hash}
        return cached(root, f"{self.name}-{tokenizer.name}", identity, fill)

    def _held_out(self, splits: dict[str, Dataset]) -> dict[str, Dataset]:
        if "validation" in splits:
            return splits
        if "test" in splits:
            log.info("%s has no validation split: its test split is scored", self.name)
            return {"train": splits["train"], "validation": splits["test"]}
        table = splits["train"]
        marks = np.fromiter((self._mark(row) for row in rows(table)), np.uint64, len(table))
        different = np.unique(marks)
        if len(different) < 2:
            raise ValueError(
                f"data.path={self.place.name} has {len(table)} rows and no validation split: none can be held out"
            )
        held = marks <= thresholds(different, 1)[0]
        log.info("%s has no validation split: %d of %d rows held out by hash", self.name, held.sum(), len(table))
        return {"train": table.select(np.flatnonzero(~held)), "validation": table.select(np.flatnonzero(held))}

    def _mark(self, row: Row) -> int:
        """Rows of one mark are held out together; a row of an empty prompt is marked by the whole of it."""
        shared = self.together(row) if self.together is not None else []
        return mark("\x1f".join(shared if any(text.strip() for text in shared) else self.texts(row)))

    def _limited(self, table: Dataset) -> Dataset:
        if self.max_bytes is None:
            return table
        sizes = np.fromiter((sum(len(t.encode("utf-8", "replace")) for t in self.texts(r)) for r in rows(table)), int)
        order = permutation(len(table), 0)
        count = max(1, int(np.searchsorted(np.cumsum(sizes[order]), self.max_bytes, "right")))
        return table.select(np.sort(order[:count]))


def rows(table: Dataset) -> Iterator[Row]:
    """The rows as dictionaries."""
    return (row for batch in batches(table) for row in batch)


def batches(table: Dataset, size: int = 1000) -> Iterator[list[Row]]:
    """The rows in lists of `size`."""
    for batch in table.iter(batch_size=size):
        assert isinstance(batch, dict)
        yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def table_name(place: Place, config: str | None) -> str:
    """A short name for metrics: the last part of the path, and the config where one was asked for."""
    last = place.name.rstrip("/").rsplit("/", 1)[-1]
    stem = last if not place.kind else last.split(".", 1)[0]
    whole = stem if config is None else f"{stem}-{config}"
    return re.sub(r"[^a-z0-9_-]+", "-", whole.lower()).strip("-") or "table"


def must_have(table: Dataset, wanted: Iterable[tuple[str, str]], name: str) -> None:
    """Raises ValueError for the first (key, column) whose column is missing; it names those that are there."""
    for key, column in wanted:
        if column not in table.column_names:
            raise ValueError(f"{key}={column}: {name} has no such column; it has {', '.join(table.column_names)}")


Kind = Literal["single", "multi", "regression"]
INDICATORS = "one of indicators; a list holds the classes that a row has, so write [0, 2] and not [1, 0, 1]"


@dataclass(frozen=True)
class Labels:
    """`values` are the classes in order, as the column spells them; `names` say them to a person."""

    kind: Kind
    names: list[str]
    values: list[Any]

    def encoded(self, column: Iterable[Any]) -> tuple[Shaped[np.ndarray, "rows *classes"], Bool[np.ndarray, "rows"]]:
        """Class numbers (int64), rows of 0 and 1 (float32) or quantities (float32), and which rows have a label."""
        entries = list(column)
        if self.kind == "regression":
            values = np.array([np.nan if value is None else value for value in entries], np.float32)
            # GLUE hides the labels of a test split behind -1; elsewhere -1 is a quantity like others.
            hidden = len(values) > 0 and bool((values == -1).all())
            return values, np.isfinite(values) & (not hidden)
        place = {value: i for i, value in enumerate(self.values)}
        if self.kind == "single":
            numbers = np.array([-1 if absent(value) else place[value] for value in entries], np.int64)
            return numbers, numbers >= 0
        rows = np.zeros((len(entries), len(self.values)), np.float32)
        for row, classes in zip(rows, entries, strict=True):
            row[[place[value] for value in classes or () if not absent(value)]] = 1
        there = [classes is not None and (not classes or not all(map(absent, classes))) for classes in entries]
        return rows, np.array(there, bool)


def absent(value: Any) -> bool:
    """Whether a class is missing: none, an empty name, a negative number."""
    return value is None or value == "" or (isinstance(value, int | float) and not value >= 0)


def labels_of(tables: dict[str, Dataset], column: str) -> Labels:
    """The kind of the column and its classes, over all splits. Raises ValueError for a column without labels."""
    feature: Any = tables["train"].features[column]
    inner = getattr(feature, "feature", None)
    several = inner is not None
    _readable(feature, inner, column)
    distinct: set[Any] = set()
    lengths: set[int] = set()
    for table in tables.values():
        for value in table[column]:
            distinct.update(_apart(value or (), column)) if several else distinct.add(value)
            if several:
                lengths.add(len(value or ()))
    if several and distinct == {0, 1} and lengths == {2}:  # each row names both, if these are classes
        raise ValueError(f"data.label={column}: every row is {INDICATORS}")
    if not several and str(getattr(feature, "dtype", "")).startswith(("float", "double")):
        if not _whole_with_gaps(distinct):
            return Labels("regression", ["value"], [])
        distinct = {value if value is None or np.isnan(value) else int(value) for value in distinct}
    values = sorted(value for value in distinct if not absent(value))
    named = getattr(inner if several else feature, "names", None)
    if named:
        values = list(range(len(named)))
    if len(values) < (1 if several else 2):
        negative = sorted(value for value in distinct if isinstance(value, int) and value < 0)
        hint = f"; {negative} are negative, so they count as missing" if negative else ""
        raise ValueError(
            f"data.label={column}: there are {len(values)} classes ({values}), nothing to tell apart{hint}"
        )
    return Labels("multi" if several else "single", list(named or map(str, values)), values)


def _readable(feature: Any, inner: Any, column: str) -> None:
    """Raises ValueError for a column of structures, of lists of lists, or of lists of fractions."""
    kind = str(getattr(feature if inner is None else inner, "dtype", "a structure"))
    named = hasattr(feature if inner is None else inner, "names")
    if not named and (kind.startswith(("struct", "list", "dict", "a structure")) or getattr(inner, "feature", None)):
        raise ValueError(f"data.label={column} holds {feature}: give a column of classes, lists of classes or numbers")
    if inner is not None and kind.startswith(("float", "double")):
        raise ValueError(
            f"data.label={column} holds lists of fractions: several quantities a row are not learned; give a column of "
            "one of them, or lists of classes as whole numbers or names"
        )


def _apart(classes: Sequence[Any], column: str) -> Sequence[Any]:
    """The classes of one row. Raises ValueError where one stands there twice."""
    if len(set(classes)) < len(classes):
        raise ValueError(f"data.label={column}: the row {list(classes)[:20]} names a class twice, or is {INDICATORS}")
    return classes


def _whole_with_gaps(values: set[Any]) -> bool:
    there = [value for value in values if value is not None and not np.isnan(value)]
    return 0 < len(there) < len(values) and all(float(value).is_integer() for value in there)
