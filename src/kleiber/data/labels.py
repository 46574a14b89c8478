"""Columns of labels: what kind they are, the classes that they have, and labels as numbers.

The type of a label column decides the kind of labels: whole numbers, text and truth values are classes, lists are
several classes a row (numbers or names), fractions are quantities. A label is missing where it is empty or, for a
class, negative. Whole numbers with gaps are classes too, although a CSV table then contains them as fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

from kleiber.types import Json

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset, Value

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


def _whole_with_gaps(values: set[Any]) -> bool:
    """Whether a column of fractions contains whole numbers and missing values only."""
    present = [value for value in values if value is not None and not np.isnan(value)]
    return 0 < len(present) < len(values) and all(float(value).is_integer() for value in present)
