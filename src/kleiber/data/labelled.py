"""Labeled texts: one or more columns of text, and one of classes, several classes a row, or a quantity.

A sample is a row of the table: begin text eos [text eos], where `begin` is the tokenizer's class token, or the token in
front of a document where it has none. A row that is too long loses the end of its longest text. Rows without a label
are left out, rows without text are kept, and both are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Gt, Le
from jaxtyping import Int, Integer, Shaped

from kleiber.data.batches import pad, sample_numbers, text_bytes
from kleiber.data.corpus import EncodedSplit, TableRows, TextCorpus
from kleiber.data.dataset import require_columns, require_text_columns, row_batches
from kleiber.data.labels import Kind, center_and_scale, read_labels
from kleiber.data.table import TableData
from kleiber.data.token_files import id_dtype, read_rows
from kleiber.records.arrays import read_array
from kleiber.types import Json, Row, Seed
from kleiber.types.batch import Batch
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

METRICS: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "f1", "macro_f1", "mcc"),
    "multi": ("accuracy", "micro_f1", "macro_f1"),
    "regression": ("pearson", "spearman", "rmse"),
}
DEFAULT_METRICS: dict[Kind, str] = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}


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
