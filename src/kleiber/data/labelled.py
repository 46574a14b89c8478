"""Texts with labels: one or more columns of text, one of classes, several classes or a quantity; a row a sample.

A row reads begin text eos [text eos]: `begin` is the tokenizer's class token, or eos where it has none. Too long rows
lose the end of their longest text. Rows without a label are left out, rows without text are kept; both are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Int, Integer, Shaped

from kleiber.data import padding
from kleiber.data.cache import SPLITS, cache_root, digest
from kleiber.data.corpus import TextCorpus, as_bytes, choose_tokenizer
from kleiber.data.padding import Held, numbers, pad, sizes
from kleiber.data.sources.open import locate
from kleiber.data.sources.table import Kind, Row, Table, batches, labels_of, must_have, table_name
from kleiber.data.token_files import dtype
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples, Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

METRICS: dict[Kind, tuple[str, ...]] = {
    "single": ("accuracy", "f1", "macro_f1", "mcc"),
    "multi": ("accuracy", "micro_f1", "macro_f1"),
    "regression": ("pearson", "spearman", "rmse"),
}


@dataclass
class LabelledCorpus(TextCorpus):
    """Labelled texts. num_tokens are real ones, specials included.

    kind         of its labels; `num_classes` is 1 for a quantity
    label        the column that they stand in
    metric       the name of the score that the task is known by
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
class Labelled:
    """A table at `path`: a file, a folder in hub layout, or a name on the hub.

    text       the column, or several: [sentence1,sentence2]
    label      the column; its type decides between classes, several classes a row, and a quantity
    name       of the task, in metrics; null: after the path and the config
    metric     the score it is known by: accuracy, f1 (of class 1), macro_f1, mcc; micro_f1; pearson, spearman, rmse;
               null: accuracy, micro_f1 or pearson, by the kind of label
    max_bytes  at most that much text of each split
    share      of the training rows, for curves over the number of labels; `seed` draws which
    """

    path: str
    config: str | None = None
    text: str | list[str] = "text"
    label: str = "label"
    name: str | None = None
    metric: str | None = None
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    max_bytes: int | float | str | None = None
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"data.share={self.share} is a share of the training rows: give a number in (0, 1]")

    @property
    def columns(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else list(self.text)

    def table(self) -> Table:
        """The rows, and the columns that must be in them."""
        if not self.columns:
            raise ValueError("data.text=[]: name a column of text")
        place = locate(self.path)

        def texts(row: Row) -> list[str]:
            return [row[column] or "" for column in self.columns]

        def checked(table: Dataset) -> None:
            """Raises ValueError for a column that is missing or holds no text."""
            wanted = [("data.text", column) for column in self.columns]
            must_have(table, [*wanted, ("data.label", self.label)], place.name)
            for column in self.columns:
                kind = getattr(table.features[column], "dtype", "a structure")
                if kind not in ("string", "large_string"):
                    raise ValueError(f"data.text={column}: the column of {place.name} holds {kind}, not text")

        meaning = ["labelled", self.columns, self.label]
        name = self.name or table_name(place, self.config)
        return Table(place, self.config, name, texts, checked, meaning, as_bytes(self.max_bytes))

    def prepare(self, context: int, cache: Path | None = None) -> LabelledCorpus:
        """Encodes what is not in the cache. Raises ValueError where no row to train on or to score has a label."""
        table, root = self.table(), cache_root(cache)
        tokenizer = choose_tokenizer(self.tokenizer, self.vocab_size, [table], root)
        folder, manifest = table.kept(
            tokenizer, root, lambda f, splits: _encode(f, splits, table, self.label, tokenizer)
        )
        parts = len(self.columns)
        if context < 1 + 2 * parts:
            raise ValueError(f"model.context={context} leaves no room for {parts} texts and their separators")
        samples = {name: LabelledRows(folder, name, parts, context, tokenizer) for name in manifest["splits"]}
        labels, drawn = dict(manifest["labels"]), []
        if self.share < 1:
            drawn = [self.share, self.seed]
            samples["train"].keep(self.share, self.seed)
            if labels["kind"] == "regression":
                left = samples["train"].labels
                labels |= {"center": float(left.mean()), "scale": float(left.std()) or 1.0}
        held = {name: Held(rows) for name, rows in samples.items() if name != "train" and len(rows)}
        if len(samples["train"]) == 0 or "validation" not in held:
            use = "train" if len(samples["train"]) == 0 else "score"
            raise ValueError(
                f"data.path={self.path}: no rows to {use} on have a label: validation is scored, test where there is "
                "none, and a share of train where there is neither"
            )
        corpus = LabelledCorpus(
            name=table.name,
            config=manifest["config"],
            hash=digest([tokenizer.hash, parts, labels, [f["sha256"] for f in manifest["files"].values()], *drawn]),
            tokenizer=tokenizer,
            train=samples["train"],
            validation={table.name: held["validation"]},
            test={table.name: held["test"]} if "test" in held else {},
            manifest={table.name: manifest},
            num_tokens=samples["train"].num_tokens,
            num_bytes=samples["train"].num_bytes,
            label=self.label,
            metric=_metric(self.metric, labels["kind"], len(labels["label_names"])),
            **labels,
        )
        for line in _described(corpus, samples, manifest):
            log.info("%s", line)
        return corpus


class LabelledRows(Samples):
    """Samples of one split: tokens, `real` and labels. `truncated` of them lost text to model.context."""

    padded = True

    def __init__(self, folder: Path, split: str, parts: int, context: int, tokenizer: Tokenizer) -> None:
        self.pieces = padding.read(folder / split, dtype(tokenizer.vocab_size))
        self.labels: Shaped[np.ndarray, "rows *classes"] = np.load(folder / f"{split}.labels.npy")
        self.parts, self.context = parts, context
        self.eos, begin = tokenizer.eos, tokenizer.cls
        self.begin = begin if begin >= 0 else tokenizer.eos
        lengths = self.pieces.lengths.reshape(-1, parts)
        self.kept = shortened(lengths, context - 1 - parts)
        self.truncated = int((self.kept < lengths).any(1).sum())
        self.lengths = self.kept.sum(1) + 1 + parts
        flat = sizes(self.pieces.starts[:-1], self.kept.reshape(-1), self.pieces.flat, tokenizer)
        self.sizes = flat.reshape(-1, parts).sum(1)
        self.place: Int[np.ndarray, "rows"] = np.arange(len(self.labels))
        self.num_tokens, self.num_bytes = int(self.lengths.sum()), int(self.sizes.sum())

    def keep(self, share: float, seed: int) -> None:
        """Leaves a share of the rows, one at least; a larger share of the same seed has those of a smaller one."""
        chosen = np.random.default_rng(seed).permutation(len(self))[: max(1, round(share * len(self)))]
        self.labels, self.lengths, self.sizes = self.labels[chosen], self.lengths[chosen], self.sizes[chosen]
        self.kept, self.place = self.kept[chosen], self.place[chosen]
        self.num_tokens, self.num_bytes = int(self.lengths.sum()), int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, i: int) -> Integer[np.ndarray, "time"]:
        ids: list[Any] = [[self.begin]]
        for part in range(self.parts):
            ids += [self.pieces[int(self.place[i]) * self.parts + part][: self.kept[i, part]], [self.eos]]
        return np.concatenate(ids).astype(np.int64)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        tokens, real = pad([self.row(int(i)) for i in index], self.context, self.eos)
        labels = torch.from_numpy(self.labels[index])
        return Batch(tokens=tokens, real=real, labels=labels, samples=numbers(index, epoch, len(self)))


def shortened(lengths: Int[np.ndarray, "rows parts"], room: int) -> Int[np.ndarray, "rows parts"]:
    """Lengths that sum to at most `room` in each row: the longest is cut first, until the rest are as long."""
    order = np.argsort(lengths, axis=1, kind="stable")
    left = np.full(len(lengths), room)
    kept = np.empty_like(lengths)
    for place in range(lengths.shape[1]):
        column = order[:, place, None]
        share = left // (lengths.shape[1] - place)
        taken = np.minimum(np.take_along_axis(lengths, column, 1)[:, 0], share)
        np.put_along_axis(kept, column, taken[:, None], 1)
        left = left - taken
    return kept


def _encode(folder: Path, splits: dict[str, Dataset], table: Table, label: str, tokenizer: Tokenizer) -> dict[str, Any]:
    labels = labels_of(splits, label)
    counts: dict[str, dict[str, Any]] = {}
    for name in (split for split in SPLITS if split in splits):
        split = splits[name]
        values, there = labels.encoded(split[label])
        kept = split.select(np.flatnonzero(there))
        empty = 0

        def pieces(kept: Dataset = kept) -> Iterator[Integer[np.ndarray, "_"]]:
            """Ids of each text of each row."""
            nonlocal empty
            for batch in batches(kept):
                texts = [table.texts(row) for row in batch]
                empty += sum(not any(text.strip() for text in row) for row in texts)
                yield from tokenizer.encode_many([text for row in texts for text in row])

        padding.write(folder / name, pieces(), dtype(tokenizer.vocab_size))
        np.save(folder / f"{name}.labels.npy", values[there])
        counts[name] = {"rows": len(kept), "without_label": int((~there).sum()), "without_text": empty}
        if labels.kind != "regression":
            members = np.bincount(values[there], minlength=len(labels.names)) if values.ndim == 1 else values.sum(0)
            counts[name]["of_class"] = [int(count) for count in members]
    description: dict[str, Any] = {"kind": labels.kind, "label_names": labels.names}
    train = np.load(folder / "train.labels.npy")
    if labels.kind == "regression" and len(train):
        description |= {"center": float(train.mean()), "scale": float(train.std()) or 1.0}
    return {"labels": description, "splits": counts}


def _metric(asked: str | None, kind: Kind, classes: int) -> str:
    assert kind in get_args(Kind)
    if asked is None:
        return {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}[kind]
    if asked not in METRICS[kind]:
        raise ValueError(f"data.metric={asked} does not score {kind} labels: take one of {', '.join(METRICS[kind])}")
    if asked == "f1" and classes > 2:
        raise ValueError(f"data.metric=f1 is that of the second of two classes, and here are {classes}: take macro_f1")
    return asked


def _described(corpus: LabelledCorpus, samples: dict[str, LabelledRows], manifest: dict[str, Any]) -> Iterator[str]:
    for name, rows_ in samples.items():
        count = manifest["splits"][name]
        left = f", {count['without_label']:,} without a label left out" if count["without_label"] else ""
        empty = f", {count['without_text']:,} without text" if count["without_text"] else ""
        cut = f", {rows_.truncated:,} cut to model.context={rows_.context}" if rows_.truncated else ""
        kept = f", {len(rows_):,} of them kept" if len(rows_) < count["rows"] else ""
        yield f"{corpus.name} {name}: {count['rows']:,} rows{left}{empty}{cut}{kept}"
        if "of_class" in count and count["rows"]:
            shares = [number / count["rows"] for number in count["of_class"]]
            listed = ", ".join(f"{n} {s:.1%}" for n, s in list(zip(corpus.label_names, shares, strict=True))[:20])
            yield f"{corpus.name} {name}: {listed}; the largest class alone scores {max(shares):.1%}"
