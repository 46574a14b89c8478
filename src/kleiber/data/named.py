"""Data that an extension offers under a name, such as builtin/occupations: text, rows of a table, or both.

The `__init__.py` of its package lists it, as NAMED = {"builtin/occupations": "named.OccupationData"}. Evaluations,
mixtures and `kleiber data` find it by that name.
"""

from __future__ import annotations

from collections.abc import Sequence

from kleiber.config.errors import ConfigError
from kleiber.config.extensions import import_offer, offers
from kleiber.data.sources import Source
from kleiber.types import Row


class NamedData:
    """Data of one name; a subclass has a text, rows, or both.

    name  as users write it
    use   the evaluation that reads the rows, for errors
    """

    name: str
    use: str

    def text(self, max_bytes: int | None = None) -> Source:
        """The text, at most `max_bytes` of each split. Raises ValueError where there is none."""
        raise ValueError(f"{self.name} has rows, and no text: use it with evals={self.use}")

    def evaluated_text(self) -> Source:
        """The text as evaluations read it, which may be a smaller one."""
        return self.text()

    def rows(self) -> Sequence[Row] | None:
        """The rows of the table; None for data that is text alone."""
        return None


def find_named(name: str) -> NamedData | None:
    """The data that an extension offers under a name; None where there is none.

    Raises ConfigError where what it offers is no `NamedData`.
    """
    if name not in offers("NAMED"):
        return None
    data = import_offer("NAMED", name, name)()
    if not isinstance(data, NamedData):
        raise ConfigError(f"{name}: {type(data).__name__} must be a NamedData of kleiber.data")
    return data


def names() -> list[str]:
    """All names of data that extensions offer."""
    return sorted(offers("NAMED"))
