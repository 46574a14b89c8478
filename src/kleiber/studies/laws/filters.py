"""Parses row filters such as `loss < 4 and (N >= 1e8 or family in [dense, moe])`; nothing is evaluated as code.

Grammar: comparisons (= == != < <= > >=, `in [a, b]`, `not in`) of a column with a number or a text, combined by and,
or, not and parentheses. Texts may be quoted. Arithmetic, functions and comparisons of two columns are errors.
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
DEEPEST = 100  # parentheses and `not` inside each other
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def number(text: str) -> float | None:
    """Parses a number such as `20M`, `1.5B` or `2e7`; returns None if `text` is not a number."""
    match = NUMBER.match(text.strip())
    if not match:
        return None
    return float(text.strip().rstrip("kKMBT")) * UNITS[match.group(3)]


def keep(table: pd.DataFrame, text: str, roles: Mapping[str, str] | None = None) -> Mask:
    """Returns the mask of the rows of `table` that satisfy the filter `text`.

    `roles` maps names such as N to columns; a column of that name has precedence. Raises ValueError for an unknown
    column, with the nearest name, and for a syntax error, with its position.
    """
    return _Parser(table, text, roles or {}).read()


def column_of(table: pd.DataFrame, name: str, context: str) -> str:
    """Returns `name` if it is a column; otherwise raises ValueError with the nearest name and all columns."""
    if name in table.columns:
        return name
    names = [str(c) for c in table.columns]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{context}: the table has no column {name!r}{hint} Its columns: {', '.join(names)}")


class _Parser:
    """Recursive descent parser: or < and < not < comparison."""

    def __init__(self, table: pd.DataFrame, text: str, roles: Mapping[str, str]) -> None:
        self.table, self.text, self.roles = table, text, roles
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text.rstrip()):
            match = TOKEN.match(text, at)
            if not match:
                raise ValueError(f"--where {text!r}: syntax error at {text[at:].strip()!r}")
            self.tokens.append((str(match.lastgroup), str(match.group(str(match.lastgroup)))))
            at = match.end()
        self.at, self.depth = 0, 0

    def read(self) -> Mask:
        """Parses the whole text and returns the mask of its rows."""
        mask = self.disjunction()
        if self.at < len(self.tokens):
            raise self.error("and, or, or the end")
        return mask

    def disjunction(self) -> Mask:
        """Parses operands joined by `or`."""
        mask = self.conjunction()
        while self.take("or"):
            mask = mask | self.conjunction()
        return mask

    def conjunction(self) -> Mask:
        """Parses operands joined by `and`."""
        mask = self.operand()
        while self.take("and"):
            mask = mask & self.operand()
        return mask

    def operand(self) -> Mask:
        """Parses a negation, a parenthesis or a comparison. Raises ValueError for too many inside each other."""
        if self.depth > DEEPEST:
            raise ValueError(
                f"--where {self.text[:40]!r}...: more than {DEEPEST} parentheses or `not` are inside each other; "
                "remove some, or use several --where"
            )
        self.depth += 1
        mask = self.nested()
        self.depth -= 1
        return mask

    def nested(self) -> Mask:
        """Parses one operand, which may contain others."""
        if self.take("not"):
            return ~self.operand()
        if self.take("("):
            mask = self.disjunction()
            if not self.take(")"):
                raise self.error(")")
            return mask
        return self.comparison()

    def comparison(self) -> Mask:
        """Parses `COLUMN op VALUE`, `COLUMN in [..]` or `COLUMN not in [..]`."""
        name = self.name()
        if self.take("not"):
            if not self.take("in"):
                raise self.error("in")
            return ~self.among(name)
        if self.take("in"):
            return self.among(name)
        kind, op = self.peek()
        if kind != "op":
            raise self.error("one of = == != < <= > >= in")
        self.at += 1
        return self.compare(name, op, self.value())

    def among(self, name: str) -> Mask:
        """Parses a list of values; True where the column equals one of them."""
        if not (self.take("[") or self.take("(")):
            raise self.error("a list such as [a, b]")
        mask = self.compare(name, "==", self.value())
        while self.take(","):
            mask = mask | self.compare(name, "==", self.value())
        if not (self.take("]") or self.take(")")):
            raise self.error("]")
        return mask

    def compare(self, name: str, op: str, value: str) -> Mask:
        """Compares a column with a value, as numbers or as texts. Raises ValueError where the two do not fit."""
        column, limit = pd.Series(self.table[name]), number(value)
        if pd.api.types.is_bool_dtype(column):
            column = column.astype(str).str.lower()
            value = value.lower()
        numeric = pd.api.types.is_numeric_dtype(column)
        if numeric and limit is None:
            raise ValueError(f"--where {self.text!r}: column {name!r} contains numbers, and {value!r} is not a number")
        if not numeric and op not in ("=", "==", "!="):
            raise ValueError(
                f"--where {self.text!r}: column {name!r} contains text, which only =, != and in compare, not {op}"
            )
        left = column.to_numpy(dtype=np.float64) if numeric else column.astype(str).to_numpy(dtype=object)
        right = limit if numeric else value
        compare = {"=": np.equal, "==": np.equal, "!=": np.not_equal}
        order = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
        return np.asarray({**compare, **order}[op](left, right), dtype=bool)

    def name(self) -> str:
        """Parses the name of a column, or of a role."""
        kind, token = self.peek()
        if kind not in ("word", "quoted", "tick"):
            raise self.error("the name of a column of the table")
        self.at += 1
        token = token.strip("`\"'") if kind != "word" else token
        if token not in self.table.columns and token in self.roles:
            token = self.roles[token]
        return column_of(self.table, token, f"--where {self.text!r}")

    def value(self) -> str:
        """Parses a number or a text."""
        kind, token = self.peek()
        if kind not in ("word", "quoted"):
            raise self.error("a number or a text")
        self.at += 1
        return token[1:-1] if kind == "quoted" else token

    def peek(self) -> tuple[str, str]:
        """The kind and text of the next token, ('end', '') after the last one."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, token: str) -> bool:
        """Consumes the next token if it is the keyword or mark `token`."""
        kind, text = self.peek()
        if kind in ("word", "mark") and text.lower() == token:
            self.at += 1
            return True
        return False

    def error(self, wanted: str) -> ValueError:
        """A syntax error at the next token."""
        here = repr(self.peek()[1]) if self.peek()[1] else "the end"
        return ValueError(f"--where {self.text!r}: expected {wanted}, found {here}")
