"""Parses the texts of `kleiber fit`: row filters, columns of roles, points and numbers; none is evaluated as code.

A filter such as `loss < 4 and (N >= 1e8 or family in [dense, moe])` consists of comparisons (= == != < <= > >=,
`in [a, b]`, `not in`) of a column with a number or a text, combined by and, or, not and parentheses. Texts may be
quoted. Python's `ast` finds its structure after every word was replaced by a name, so it can contain no other code.
Arithmetic, functions and comparisons of two columns are errors.
"""

import ast
import difflib
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.config.errors import listed

Mask = NDArray[np.bool_]
TOKEN = re.compile(r"""(?P<word>"[^"]*"|'[^']*'|`[^`]+`|[^\s()\[\],<>=!"'`]+)|[<>=!]=|\S""")
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?([kKMBT]?)$")
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
KEYWORDS = ("and", "or", "not", "in")
EQUALITY = (ast.Eq, ast.NotEq)
COMPARISONS = {
    ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}  # fmt: skip


def number(text: str) -> float | None:
    """Parses a number such as `20M`, `1.5B` or `2e7`; returns None if `text` is not a number."""
    match = NUMBER.match(text.strip())
    if not match:
        return None
    return float(text.strip().rstrip("kKMBT")) * UNITS[match.group(3)]


def keep(table: pd.DataFrame, text: str, roles: Mapping[str, str] | None = None, option: str = "--where") -> Mask:
    """Returns the mask of the rows of `table` that satisfy the filter `text`.

    roles   columns by a shorter name such as N; a column of that name has precedence
    option  of the command line that contains the filter, which errors name

    Raises ValueError for an unknown column, with the nearest name, and for a syntax error, with its position.
    """
    row_filter = _Filter(table, text, roles or {}, option)
    try:
        return row_filter.mask(ast.parse(row_filter.source, mode="eval").body)
    except SyntaxError as error:
        if error.msg.startswith("too many nested"):
            raise row_filter.nested() from None
        raise row_filter.error((error.offset or 0) - 1) from None
    except (MemoryError, RecursionError):
        raise row_filter.nested() from None


def column_of(table: pd.DataFrame, name: str, context: str) -> str:
    """Returns `name` if it is a column; otherwise raises ValueError with the nearest name and all columns."""
    if name in table.columns:
        return name
    names = [str(c) for c in table.columns]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{context}: the table has no column {name!r}{hint} Its columns: {listed(names)}")


def _are_truth_values(column: pd.Series) -> bool:
    """Whether a column of text has truth values, as true, false and null or as True and False."""
    texts = set() if pd.api.types.is_numeric_dtype(column) else {str(value).lower() for value in column.dropna()}
    return bool(texts & {"true", "false"}) and texts <= {"true", "false", "null"}


class _Filter:
    """A filter as Python source, in which a word is the name `_i` of its place i."""

    def __init__(self, table: pd.DataFrame, text: str, roles: Mapping[str, str], option: str) -> None:
        self.table, self.text, self.roles, self.option = table, text, roles, option
        self.source = ""
        self.tokens: dict[int, str] = {}  # by their place in `source`
        for match in TOKEN.finditer(text):
            token, place = match.group(), len(self.source)
            self.tokens[place] = token
            name = token.lower() if token.lower() in KEYWORDS else f"_{place}"
            self.source += (name if match["word"] else "==" if token == "=" else token) + " "

    def mask(self, node: ast.expr) -> Mask:
        """Returns the mask of a part of the filter. Raises ValueError where it is none of the allowed parts."""
        match node:
            case ast.BoolOp(op=ast.And()):
                return np.logical_and.reduce([self.mask(part) for part in node.values])
            case ast.BoolOp():
                return np.logical_or.reduce([self.mask(part) for part in node.values])
            case ast.UnaryOp(op=ast.Not()):
                return ~self.mask(node.operand)
            case ast.Compare(left=ast.Name(id=name), ops=[ast.In() | ast.NotIn() as op], comparators=[values]):
                among = np.logical_or.reduce([self.compare(name, ast.Eq(), value) for value in self.listed(values)])
                return among if isinstance(op, ast.In) else ~among
            case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[value]):
                return self.compare(name, op, value)
        raise self.error(node.col_offset)

    def listed(self, node: ast.expr) -> list[ast.expr]:
        """Returns the values of a list such as [a, b], (a, b) or (a)."""
        if isinstance(node, ast.List | ast.Tuple) and node.elts:
            return node.elts
        if isinstance(node, ast.Name) and self.source[: node.col_offset].endswith("( "):
            return [node]
        raise self.error(node.col_offset)

    def compare(self, name: str, op: ast.cmpop, node: ast.expr) -> Mask:
        """Compares a column with a value, as numbers or as texts. Raises ValueError where the two do not fit."""
        if not isinstance(node, ast.Name):
            raise self.error(node.col_offset)
        column_name, value = self.column(name), self.unquoted(node.id)
        column, limit = pd.Series(self.table[column_name]), number(value)
        if pd.api.types.is_bool_dtype(column) or _are_truth_values(column):
            column, value = column.astype(str).str.lower(), value.lower()
        numeric = pd.api.types.is_numeric_dtype(column)
        if numeric and value == "null" and isinstance(op, EQUALITY):
            return np.asarray(column.isna() if isinstance(op, ast.Eq) else column.notna(), dtype=bool)
        if numeric and limit is None:
            raise ValueError(
                f"{self.option} {self.text!r}: column {column_name!r} contains numbers, and {value!r} is not a number"
            )
        if not numeric and not isinstance(op, EQUALITY):
            raise ValueError(
                f"{self.option} {self.text!r}: column {column_name!r} contains text, which only =, != and in compare, "
                "not < <= > >="
            )
        left = column.to_numpy(dtype=np.float64) if numeric else column.astype(str).to_numpy(dtype=object)
        return np.asarray(COMPARISONS[type(op)](left, limit if numeric else value), dtype=bool)

    def unquoted(self, name: str) -> str:
        """Returns the text of the word that has this name in `source`, without quotes."""
        text = self.tokens[int(name[1:])]
        return text[1:-1] if text[0] in "'\"`" else text

    def column(self, name: str) -> str:
        """Returns the column that a word names, itself or by its role."""
        text = self.unquoted(name)
        column = text if text in self.table.columns else self.roles.get(text, text)
        return column_of(self.table, column, f"{self.option} {self.text!r}")

    def error(self, place: int) -> ValueError:
        """The error of a filter whose structure is wrong at a place in `source`."""
        here = repr(self.tokens[place]) if place in self.tokens else "the end"
        return ValueError(
            f"{self.option} {self.text!r}: syntax error at {here}; a filter consists of comparisons such as loss < 4 "
            "or family in [a, b], joined by and, or and not"
        )

    def nested(self) -> ValueError:
        """The error of a filter whose parts are nested too deeply to be parsed."""
        return ValueError(
            f"{self.option} {self.text[:40]!r}...: too many parentheses or `not` are inside each other; remove some"
        )


def parse_map(text: str | None, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Parses `N=params,D=tokens` to columns by role; `extra` are those of --params, --data, --loss, --compute."""
    roles = {role: column for role, column in (extra or {}).items() if column}
    for item in filter(None, (text or "").split(",")):
        role, equals, column = (part.strip() for part in item.partition("="))
        if not equals or not role or not column:
            raise ValueError(f"--map {item!r} must have the form ROLE=COLUMN, such as N=params,D=tokens,L=loss")
        if roles.setdefault(role, column) != column:
            raise ValueError(f"--map {item!r} contradicts {role}={roles[role]}; remove one of them")
    return roles


def parse_values(items: Iterable[str], option: str) -> dict[str, float]:
    """Parses items such as `E=1.8` or `N=7B` to numbers by name.

    Raises ValueError for a malformed item, and for a name with two different values.
    """
    values: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        name, value = name.strip(), number(text)
        if value is None or not name:
            raise ValueError(f"{option} {item!r} must have the form NAME=NUMBER, such as E=1.8 or D=20B")
        if values.setdefault(name, value) != value:
            raise ValueError(f"{option} {item!r} contradicts {name}={values[name]:g}; remove one of them")
    return values


def parse_point(text: str) -> dict[str, float]:
    """Parses a point such as `N=7B,D=140B` to numbers by name. Raises ValueError for a malformed part."""
    point = parse_values(filter(None, text.replace(" ", ",").split(",")), "predict")
    if not point:
        raise ValueError("predict: the point to predict is missing; add it, such as N=1e9 D=20e9")
    return point


def parse_numbers(text: str, option: str) -> list[float]:
    """Parses numbers that are separated by commas. Raises ValueError, which names `option`, for other text."""
    read = [number(item) for item in text.split(",")]
    if any(value is None for value in read):
        raise ValueError(f"{option} {text!r} must be numbers separated by commas, such as 1e20,1e21")
    return [value for value in read if value is not None]


def check_roles(columns: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raises ValueError for a column of --map whose role is none of those that are allowed."""
    for role, column in columns.items():
        if role not in allowed:
            raise ValueError(f"--map {role}={column}: the role {role} must be one of {', '.join(allowed)}")
