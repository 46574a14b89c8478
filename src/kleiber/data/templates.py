"""Templates of text over the columns of a table, such as `Translate: {en}`."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from kleiber.types import Row

LIST = "\n"  # between the entries of a list in a prompt


@dataclass(frozen=True)
class Template:
    r"""Literal texts and columns in turn; \n is a line break, and {{ and }} are braces.

    key     of the config, for errors
    pieces  each a literal text and the field that follows it; None at the end
    """

    key: str
    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, key: str, text: str) -> Template:
        """Raises ValueError, which names the key, for a text that is no template or names no column."""
        try:
            parsed = [*string.Formatter().parse(text.replace("\\n", "\n"))]
        except ValueError as error:
            raise ValueError(f"{key}={text}: {error}; write {{{{ and }}}} for braces") from None
        for _, field, form, conversion in parsed:
            if field is not None and (form or conversion or not field or "." in field):
                raise ValueError(
                    f"{key}={text}: {{{field}}} must be a column, as in {{question}}, or an entry of it, as in "
                    "{answers[text]}"
                )
        template = cls(key, tuple((literal, field) for literal, field, _, _ in parsed))
        if not template.columns:
            raise ValueError(f"{key}={text} must name a column of the data in braces, as in {{question}}")
        return template

    @property
    def fields(self) -> list[str]:
        """The fields, each once."""
        return [*dict.fromkeys(field for _, field in self.pieces if field is not None)]

    @property
    def columns(self) -> list[str]:
        """The columns that the fields read."""
        return [*dict.fromkeys(field.partition("[")[0] for field in self.fields)]

    def values(self, row: Row) -> dict[str, list[str]]:
        """Returns the texts of each field: several for a list. Raises ValueError for a value that is no text."""
        return {field: _texts(field, row) for field in self.fields}

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the text with the fields replaced by these values."""
        return "".join(literal + ("" if field is None else values[field]) for literal, field in self.pieces)

    def fill_around(self, field: str, values: Mapping[str, str]) -> tuple[str, str]:
        """Returns the text before the first place of a field, and that after it."""
        place = [name for _, name in self.pieces].index(field)
        before, after = Template(self.key, self.pieces[:place]), Template(self.key, self.pieces[place + 1 :])
        return before.fill(values) + self.pieces[place][0], after.fill(values)

    def fill_each(self, row: Row) -> list[str]:
        """Returns a text for each entry of the lists in the row; one where there is no list.

        Raises ValueError for lists of unequal length.
        """
        values = self.values(row)
        lengths = {field: len(entries) for field, entries in values.items() if _is_list(_lookup(field, row))}
        if len({*lengths.values()}) > 1:
            counted = ", ".join(f"{{{field}}} {length}" for field, length in lengths.items())
            raise ValueError(f"{self.key} needs lists of equal length, and their entries are {counted}")
        count = next(iter(lengths.values()), 1)
        return [
            self.fill({field: entries[i] if field in lengths else entries[0] for field, entries in values.items()})
            for i in range(count)
        ]


def _lookup(field: str, row: Row) -> object:
    try:
        value, _ = string.Formatter().get_field(field, (), row)
    except (KeyError, TypeError, IndexError):
        value = row[field.partition("[")[0]]
        raise ValueError(f"{{{field}}}: the column has no such entry, but {value!r:.80}") from None
    return value


def _is_list(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _texts(field: str, row: Row) -> list[str]:
    value = _lookup(field, row)
    return [_text(field, entry) for entry in (value if _is_list(value) else [value])]


def _text(field: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{{{field}}}: {value!r:.80} must be text, a number or a list of them")
