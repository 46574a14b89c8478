"""The logged rows of a run in its metrics.jsonl, and those that analyses read.

Lines that a killed run did not finish, or that are damaged, are skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.records.files import LONGEST, load_json
from kleiber.records.lines import read_lines
from kleiber.records.regular_files import DamagedFile
from kleiber.types import Json, Row

METRICS_FILE = "metrics.jsonl"
MOST_ROWS = 200  # rows of each kind and stage that an analysis reads
MOST_KINDS = 2000  # kinds of rows that it reads
MAX_LOG_BYTES = 2**27  # of a log all of whose rows are kept in memory
PER_EXPERT = "moe/load/"
LOGGED = {int, float, str, bool, type(None)}  # types of the values in a row

Kind = tuple[str | None, ...] | None  # stage and keys of a row


class LoggedRows:
    """The rows of a metrics.jsonl, without damaged ones; none where the run has logged nothing.

    They are read again each time, so that a long log does not fill the memory.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE

    def __iter__(self) -> Iterator[Json]:
        return (row for _, row in read_lines(self.path, parse_row))


def read_rows(folder: Path) -> list[Json]:
    """All rows of metrics.jsonl in a run's folder; see `LoggedRows`. Raises DamagedFile for a log that is too long."""
    rows = LoggedRows(folder)
    size = rows.path.stat().st_size if rows.path.exists() else 0
    if size > MAX_LOG_BYTES:
        raise DamagedFile(rows.path, f"it has {size:,} bytes, more than {MAX_LOG_BYTES:,}")
    return list(rows)


def parse_row(line: str) -> Json:
    """The row in a line of metrics.jsonl. Raises ValueError for anything else than a logged row."""
    row = load_json(line)
    if not isinstance(row, dict) or not is_row(row):
        raise ValueError(f"{line[:LONGEST]} is no logged row")
    return row


def is_row(row: object) -> bool:
    """Whether a value is a logged row: an integer "step", a "stage" that is a text, and numbers, texts and nulls."""
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and isinstance(row.get("stage"), str | None)
        and LOGGED.issuperset(map(type, row.values()))
    )


def rows_with(rows: Iterable[Row], prefix: str) -> list[Row]:
    """The rows with a key that begins with `prefix`."""
    return [row for row in rows if any(key.startswith(prefix) for key in row)]


def condense(rows: Iterable[Row]) -> list[Json]:
    """The rows that analyses read: at most MOST_ROWS of each stage and kind, evenly spread, with the last.

    Rows of one kind have the same keys. Loads of single experts are left out, because their number grows with the
    number of experts. The rows are read twice, and only those that are kept stay in memory.

    Raises ConfigError for more than MOST_KINDS kinds.
    """
    counts: Counter[Kind] = Counter()
    for row in rows:
        kind = kind_of_row(row)
        counts[kind] += kind is not None
        if len(counts) > MOST_KINDS:
            raise ConfigError(f"{METRICS_FILE} has rows with more than {MOST_KINDS:,} different sets of keys")
    kept = {kind: set(thin(range(count))) for kind, count in counts.items()}
    condensed, read = [], Counter[Kind]()
    for row in rows:
        kind = kind_of_row(row)
        if kind is not None and read[kind] in kept.get(kind, ()):
            condensed.append({key: value for key, value in row.items() if not key.startswith(PER_EXPERT)})
        read[kind] += 1
    return condensed


def kind_of_row(row: Row) -> Kind:
    """The stage and the keys of a row, without those of single experts; None for a row that has no other keys."""
    keys = sorted(key for key in row if not key.startswith(PER_EXPERT))
    return (row.get("stage"), *keys) if set(keys) - {"stage", "step"} else None


def thin(numbers: Sequence[int]) -> list[int]:
    """At most MOST_ROWS of the numbers, evenly spread, with the first and the last."""
    if len(numbers) <= MOST_ROWS:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]
