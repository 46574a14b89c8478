"""What a column of labels holds: classes by number or by name, several classes a row, or a quantity.

The kind follows from the column's type: whole numbers, text and truth values are classes, lists are several classes a
row (numbers or names), fractions are quantities. A label is missing where it is empty or, for classes, negative. Whole
numbers with gaps are classes too, though a table of CSV then holds them as fractions. It refuses 0/1 indicators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

if TYPE_CHECKING:
    from datasets import Dataset

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
        given = list(column)
        if self.kind == "regression":
            values = np.array([np.nan if value is None else value for value in given], np.float32)
            # GLUE hides the labels of a test split behind -1; elsewhere -1 is a quantity like others.
            hidden = len(values) > 0 and bool((values == -1).all())
            return values, np.isfinite(values) & (not hidden)
        place = {value: i for i, value in enumerate(self.values)}
        if self.kind == "single":
            numbers = np.array([-1 if absent(value) else place[value] for value in given], np.int64)
            return numbers, numbers >= 0
        rows = np.zeros((len(given), len(self.values)), np.float32)
        for row, classes in zip(rows, given, strict=True):
            row[[place[value] for value in classes or () if not absent(value)]] = 1
        there = [classes is not None and (not classes or not all(map(absent, classes))) for classes in given]
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
    found: set[Any] = set()
    lengths: set[int] = set()
    for table in tables.values():
        for value in table[column]:
            found.update(_apart(value or (), column)) if several else found.add(value)
            if several:
                lengths.add(len(value or ()))
    if several and found == {0, 1} and lengths == {2}:  # each row names both, if these are classes
        raise ValueError(f"data.label={column}: every row is {INDICATORS}")
    if not several and str(getattr(feature, "dtype", "")).startswith(("float", "double")):
        if not _whole_with_gaps(found):
            return Labels("regression", ["value"], [])
        found = {value if value is None or np.isnan(value) else int(value) for value in found}
    values = sorted(value for value in found if not absent(value))
    named = getattr(inner if several else feature, "names", None)
    if named:
        values = list(range(len(named)))
    if len(values) < (1 if several else 2):
        negative = sorted(value for value in found if isinstance(value, int) and value < 0)
        told = f"; {negative} are negative, so they count as missing" if negative else ""
        raise ValueError(
            f"data.label={column}: there are {len(values)} classes ({values}), nothing to tell apart{told}"
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
