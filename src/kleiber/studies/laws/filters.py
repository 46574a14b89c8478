"""Row filters written as text, `loss < 4 and (N >= 1e8 or family in [dense, moe])`, parsed here and never evaluated.

Grammar: comparisons (= == != < <= > >=, `in [a, b]`, `not in`) between a column and a number or a word, joined by
and, or, not and parentheses. Words may be quoted. It refuses arithmetic, functions and two columns in one comparison.
"""

import difflib
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<tick>`[^`]+`)|(?P<op><=|>=|==|!=|<|>|=)|(?P<mark>[()\[\],])|(?P<word>[^\s()\[\],<>=!"'`]+))"""
)
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?([kKMBT]?)$")
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def number(text: str) -> float | None:
    """`20M`, `1.5B`, `2e7` as a float; None when `text` is not a number."""
    found = NUMBER.match(text.strip())
    if not found:
        return None
    return float(text.strip().rstrip("kKMBT")) * UNITS[found.group(3)]


def keep(table: pd.DataFrame, text: str, roles: Mapping[str, str] | None = None) -> Mask:
    """Rows of `table` for which `text` holds; `roles` (N -> params) are read where no column has that name.

    Errors: ValueError with the column and the nearest names, or with the place where the text stops making sense.
    """
    return _Reader(table, text, roles or {}).read()


def column_of(table: pd.DataFrame, name: str, context: str) -> str:
    """`name` if it is a column; ValueError with the columns found and the nearest one otherwise."""
    if name in table.columns:
        return name
    names = [str(c) for c in table.columns]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{context}: no column {name!r}{hint} Columns: {', '.join(names)}")


class _Reader:
    """Recursive descent over the tokens: or < and < not < comparison."""

    def __init__(self, table: pd.DataFrame, text: str, roles: Mapping[str, str]):
        self.table, self.text, self.roles = table, text, roles
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            found = TOKEN.match(text, at)
            if not found:
                raise ValueError(f"--where {text!r}: cannot read {text[at:].strip()!r}")
            self.tokens.append((str(found.lastgroup), str(found.group(str(found.lastgroup)))))
            at = found.end()
        self.at = 0

    def read(self) -> Mask:
        mask = self.either()
        if self.at < len(self.tokens):
            raise self.confused("end or and/or")
        return mask

    def either(self) -> Mask:
        mask = self.both()
        while self.take("or"):
            mask = mask | self.both()
        return mask

    def both(self) -> Mask:
        mask = self.one()
        while self.take("and"):
            mask = mask & self.one()
        return mask

    def one(self) -> Mask:
        if self.take("not"):
            return ~self.one()
        if self.take("("):
            mask = self.either()
            if not self.take(")"):
                raise self.confused(")")
            return mask
        return self.comparison()

    def comparison(self) -> Mask:
        name = self.name()
        if self.take("not"):
            if not self.take("in"):
                raise self.confused("in")
            return ~self.among(name)
        if self.take("in"):
            return self.among(name)
        kind, op = self.peek()
        if kind != "op":
            raise self.confused("one of = == != < <= > >= in")
        self.at += 1
        return self.compare(name, op, self.value())

    def among(self, name: str) -> Mask:
        if not (self.take("[") or self.take("(")):
            raise self.confused("a list such as [a, b]")
        mask = self.compare(name, "==", self.value())
        while self.take(","):
            mask = mask | self.compare(name, "==", self.value())
        if not (self.take("]") or self.take(")")):
            raise self.confused("]")
        return mask

    def compare(self, name: str, op: str, value: str) -> Mask:
        column, limit = pd.Series(self.table[name]), number(value)
        if pd.api.types.is_bool_dtype(column):
            column = column.astype(str).str.lower()
            value = value.lower()
        numeric = pd.api.types.is_numeric_dtype(column)
        if numeric and limit is None:
            raise ValueError(f"--where {self.text!r}: column {name!r} holds numbers, {value!r} is not one")
        if not numeric and op not in ("=", "==", "!="):
            raise ValueError(f"--where {self.text!r}: column {name!r} holds words, {op} needs numbers")
        left = column.to_numpy(dtype=np.float64) if numeric else column.astype(str).to_numpy(dtype=object)
        right = limit if numeric else value
        compare = {"=": np.equal, "==": np.equal, "!=": np.not_equal}
        order = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
        return np.asarray({**compare, **order}[op](left, right), dtype=bool)

    def name(self) -> str:
        kind, token = self.peek()
        if kind not in ("word", "quoted", "tick"):
            raise self.confused("a column")
        self.at += 1
        token = token.strip("`\"'") if kind != "word" else token
        if token not in self.table.columns and token in self.roles:
            token = self.roles[token]
        return column_of(self.table, token, f"--where {self.text!r}")

    def value(self) -> str:
        kind, token = self.peek()
        if kind not in ("word", "quoted"):
            raise self.confused("a number or a word")
        self.at += 1
        return token[1:-1] if kind == "quoted" else token

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, token: str) -> bool:
        kind, found = self.peek()
        if kind in ("word", "mark") and found.lower() == token:
            self.at += 1
            return True
        return False

    def confused(self, wanted: str) -> ValueError:
        found = repr(self.peek()[1]) if self.peek()[1] else "the end"
        return ValueError(f"--where {self.text!r}: expected {wanted}, found {found}")
