"""Labeled texts: one or more columns of text, and one of classes, several classes a row, or a quantity.

A sample is a row of the table: begin text eos [text eos], where `begin` is the tokenizer's class token, or the token in
front of a document where it has none. A row that is too long loses the end of its longest text. Rows without a label
are left out, rows without text are kept, and both are counted.

The type of a label column decides the kind of labels: whole numbers, text and truth values are classes, lists are
several classes a row (numbers or names), fractions are quantities. A label is missing where it is empty or, for a
class, negative. Whole numbers with gaps are classes too, although a CSV table then contains them as fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from jaxtyping import Bool, Int, Integer, Shaped

from kleiber.data.batches import pad, sample_numbers, text_bytes
from kleiber.data.corpus import EncodedSplit, TableRows, TextCorpus
from kleiber.data.dataset import require_columns, require_text_columns, row_batches
from kleiber.data.table import TableData
from kleiber.data.token_files import id_dtype, read_rows
from kleiber.records.arrays import read_array
from kleiber.types import Json, Row, Seed
from kleiber.types.batch import Batch
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset, Value

METRICS: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "f1", "macro_f1", "mcc"),
    "multi": ("accuracy", "micro_f1", "macro_f1"),
    "regression": ("pearson", "spearman", "rmse"),
}
DEFAULT_METRICS: dict[Kind, str] = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}
INDICATORS = "a list of 0/1 indicators; a list must name the classes that the row has: [0, 2] instead of [1, 0, 1]"

Kind = Literal["single", "multi", "regression"]
Class = int | float | str | bool  # a class as its column spells it


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


def _whole_with_gaps(values: set[float | None]) -> bool:
    """Whether a column of fractions contains whole numbers and missing values only."""
    present = [value for value in values if value is not None and not np.isnan(value)]
    return 0 < len(present) < len(values) and all(float(value).is_integer() for value in present)


@dataclass
class LabelledCorpus(TextCorpus):
    """Labeled texts. num_tokens counts all tokens of the rows, special ones included.

    kind           of the labels; a quantity has num_classes 1
    label          the column of labels
    metric         the main score of the task
    center, scale  mean and standard deviation of the training labels of a quantity
    """

    kind: Kind = "single"
    label: str = "label"
    label_names: list[str] = field(default_factory=list)
    metric: str = "accuracy"
    center: float = 0.0
    scale: float = 1.0

    @property
    def num_classes(self) -> int:
        return len(self.label_names)


@dataclass(frozen=True)
class Labelled(TableData):
    """Labeled texts in a table at `path`: a file, a folder in hub layout, or a name on the hub.

    text       the column, or several: [sentence1,sentence2]
    label      the column; its type decides between classes, several classes a row, and a quantity
    name       of the task, in metrics; null: from the path and the config
    metric     the main score: accuracy, f1 (of class 1), macro_f1, mcc; micro_f1; pearson, spearman, rmse;
               null: accuracy, micro_f1 or pearson, by the kind of label
    max_bytes  at most that much text of each split
    share      of the training rows, for curves over the number of labels; `seed` determines which rows
    """

    text: str | list[str] = "text"
    label: str = "label"
    metric: str | None = None
    share: Annotated[float, Gt(0), Le(1)] = 1.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("data.text=[] must name at least one column")

    @property
    def columns(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else list(self.text)

    def identity(self) -> list[object]:
        return ["labelled", self.columns, self.label]

    def check_columns(self, table: Dataset, name: str) -> None:
        require_text_columns(table, self.columns, name)
        require_columns(table, [self.label], name, "data.label")

    def texts(self, row: Row) -> list[str]:
        return [row[column] or "" for column in self.columns]

    def encode(self, splits: dict[str, Dataset], tokenizer: Tokenizer) -> Iterator[EncodedSplit]:
        """Yields the rows of each split that have a label, with their labels as numbers."""
        labels = read_labels(splits, self.label)
        for name, split in splits.items():
            values, present = labels.encode(split[self.label])
            encoded = self.encode_split(split.select(np.flatnonzero(present)), tokenizer)
            encoded.arrays["labels"] = values[present]
            encoded.counts["without_label"] = int((~present).sum())
            if labels.kind != "regression":
                encoded.counts["of_class"] = labels.count_classes(values[present])
            if name == "train":
                encoded.notes["labels"] = labels.describe(values[present])
            yield encoded

    def encode_split(self, rows: Dataset, tokenizer: Tokenizer) -> EncodedSplit:
        """Encodes every text of every row."""
        dtype, empty = id_dtype(tokenizer.vocab_size), 0
        ids: list[Integer[np.ndarray, "_"]] = []
        for batch in row_batches(rows):
            texts = [self.texts(row) for row in batch]
            empty += sum(not any(text.strip() for text in row) for row in texts)
            ids += [piece.astype(dtype) for piece in tokenizer.encode_many([text for row in texts for text in row])]
        return EncodedSplit(ids, {"rows": len(rows), "without_text": empty})

    def prepare(self, context: int, cache: Path | None = None) -> LabelledCorpus:
        """Encodes the rows that are not in the cache. Raises ValueError for a split without labels."""
        encoded, parts = self.load(cache), len(self.columns)
        labels = dict(encoded.manifest["labels"])
        if context < 1 + 2 * parts:
            raise ValueError(f"model.context={context} must be >= {1 + 2 * parts} for {parts} texts and separators")

        def read(path: Path) -> LabelledRows:
            rows = LabelledRows(path, parts, context, encoded.tokenizer, labels["label_names"])
            if path.name == "train" and self.share < 1:
                rows.keep(self.share, self.seed)
            return rows

        samples = encoded.samples(read)
        drawn = [self.share, self.seed] if self.share < 1 else []
        if drawn and labels["kind"] == "regression":
            labels |= center_and_scale(samples["train"].labels)
        metric = _choose_metric(self.metric, labels["kind"], len(labels["label_names"]))
        identity = [parts, labels, encoded.checksums, *drawn]
        return encoded.corpus(LabelledCorpus, samples, identity, label=self.label, metric=metric, **labels)


class LabelledRows(TableRows):
    """Samples of one split: tokens, `real` and labels. `truncated` counts those that model.context cuts."""

    def __init__(self, path: Path, parts: int, context: int, tokenizer: Tokenizer, label_names: list[str]) -> None:
        self.pieces = read_rows(path, id_dtype(tokenizer.vocab_size))
        self.labels: Shaped[np.ndarray, "rows *classes"] = read_array(path.with_suffix(".labels.npy"))
        self.parts, self.context, self.label_names = parts, context, label_names
        self.eos = tokenizer.eos
        self.begin = tokenizer.cls if tokenizer.cls >= 0 else tokenizer.begin
        lengths = self.pieces.lengths.reshape(-1, parts)
        self.text_lengths = truncate_longest(lengths, context - 1 - parts)
        self.truncated = int((self.text_lengths < lengths).any(1).sum())
        self.lengths = self.text_lengths.sum(1) + 1 + parts
        sizes = text_bytes(self.pieces.starts[:-1], self.text_lengths.reshape(-1), self.pieces.flat, tokenizer)
        self.sizes = sizes.reshape(-1, parts).sum(1)
        self.row_numbers: Int[np.ndarray, "rows"] = np.arange(len(self.labels))
        self.count_tokens()

    def keep(self, share: float, seed: int) -> None:
        """Keeps a share of the rows, at least one. A larger share of the same seed contains a smaller one."""
        chosen = np.random.default_rng(seed).permutation(len(self))[: max(1, round(share * len(self)))]
        self.labels, self.lengths, self.sizes = self.labels[chosen], self.lengths[chosen], self.sizes[chosen]
        self.text_lengths, self.row_numbers = self.text_lengths[chosen], self.row_numbers[chosen]
        self.count_tokens()

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, i: int) -> Integer[np.ndarray, "time"]:
        """Returns the token ids of sample i."""
        ids: list[Integer[np.ndarray, "_"]] = [np.array([self.begin])]
        first = int(self.row_numbers[i]) * self.parts
        for part in range(self.parts):
            ids += [self.pieces[first + part][: self.text_lengths[i, part]], np.array([self.eos])]
        return np.concatenate(ids).astype(np.int64)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        tokens, real = pad([self.row(int(i)) for i in index], self.context, self.eos)
        labels = torch.from_numpy(self.labels[index])
        return Batch(tokens=tokens, real=real, labels=labels, samples=sample_numbers(index, epoch, len(self)))

    def describe(self, counts: Json) -> str:
        """Returns the number of rows, what was left out or cut, and the share of each class."""
        rows = counts["rows"]
        text = (
            f"{rows:,} rows"
            + (f", {counts['without_label']:,} without a label left out" if counts["without_label"] else "")
            + (f", {counts['without_text']:,} without text" if counts["without_text"] else "")
            + (f", {self.truncated:,} cut to model.context={self.context}" if self.truncated else "")
            + (f", {len(self):,} of them kept" if len(self) < rows else "")
        )
        if not rows or "of_class" not in counts:
            return text
        shares = [number / rows for number in counts["of_class"]]
        listed = ", ".join(f"{n} {s:.1%}" for n, s in list(zip(self.label_names, shares, strict=True))[:20])
        largest = self.label_names[shares.index(max(shares))]
        return f"{text}; {listed}; predicting {largest}, the largest class of these rows, scores {max(shares):.1%}"

    def explain_empty(self, split: str) -> str:
        return f"no row of the {split} split has a label"


def truncate_longest(lengths: Int[np.ndarray, "rows parts"], room: int) -> Int[np.ndarray, "rows parts"]:
    """Returns lengths that sum to at most `room` in each row: the longest text is cut until others are as long."""
    order = np.argsort(lengths, axis=1, kind="stable")
    left = np.full(len(lengths), room)
    truncated = np.empty_like(lengths)
    for place in range(lengths.shape[1]):
        column = order[:, place, None]
        share = left // (lengths.shape[1] - place)
        taken = np.minimum(np.take_along_axis(lengths, column, 1)[:, 0], share)
        np.put_along_axis(truncated, column, taken[:, None], 1)
        left = left - taken
    return truncated


def _choose_metric(metric: str | None, kind: Kind, classes: int) -> str:
    if metric is None:
        return DEFAULT_METRICS[kind]
    if metric not in METRICS[kind]:
        raise ValueError(f"data.metric={metric} must be one of {', '.join(METRICS[kind])} for {kind} labels")
    if metric == "f1" and classes > 2:
        raise ValueError(f"data.metric=f1 needs two classes, and there are {classes}: set data.metric=macro_f1")
    return metric
