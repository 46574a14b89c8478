"""runs.jsonl.gz: the results of the runs of a study in one file, which can be read without the runs' folders.

A line is a leaf of a run's tree of stages, `{run, config, summary, rows}`:

run      name of the run's folder
config   content of config.yaml
summary  content of summary.json, with the stages from the root to this leaf alone; the leaf is the last of them
rows     logged rows of these stages (`kleiber.records.metrics.condense`) as columns (`pack_rows`); those of
         shared stages are with the first leaf

Every append writes a separate gzip member, under a lock, and flushes it to disk. So a kill can truncate the last member
only; readers skip a truncated member, and the next append removes it.

The rows of a run have few different sets of keys, and many of their numbers are of single precision. Columns of such
numbers, written with as many digits as they have, take three quarters of the bytes of the rows in a gzip file, and are
equal to the last digit when they are read.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import zlib
from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kleiber.config.errors import ConfigError, Status
from kleiber.config.nested import map_strings
from kleiber.config.system_errors import naming
from kleiber.records.files import LONGEST, parse_json, refuse_interpolations
from kleiber.records.metrics import is_row
from kleiber.records.regular_files import DamagedFile, open_to_append, open_to_read
from kleiber.records.terminal import print_line
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.records.catalog import Run

NAME = "runs.jsonl.gz"
KEYS = {"run", "config", "summary", "rows"}
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
PIECE = 2**20  # bytes that are read or uncompressed at once
MAX_BYTES, MAX_ROW_BYTES = 2**29, 2**26  # of all rows and of one row, uncompressed
MAX_VALUES = 2**24  # numbers, texts, lists and objects in all rows; each takes 100 bytes of memory, or more
KEPT_BYTES = 2**25  # of rows that are uncompressed only once
RUN_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]+")  # joined to a folder, it names a place right below it


def pack_rows(rows: Sequence[Row]) -> Json:
    """The rows as `{order, kinds}`, which take three quarters of the bytes in a gzip file; see `unpack_rows`.

    kinds  of the rows with the same keys: by key the values of all of them (`pack_column`)
    order  the number of each row's kind
    """
    kinds: dict[tuple[str, ...], dict[str, list[object]]] = {}
    for row in rows:
        columns = kinds.setdefault(tuple(row), {key: [] for key in row})
        for key, value in row.items():
            columns[key].append(value)
    numbers = {keys: number for number, keys in enumerate(kinds)}
    packed = [{key: pack_column(values) for key, values in columns.items()} for columns in kinds.values()]
    return {"order": [numbers[tuple(row)] for row in rows], "kinds": packed}


def pack_column(values: list[object]) -> list[object] | Json:
    """The values, or `{"single": values}` with fewer digits where all of them are numbers of single precision."""
    numbers = [value for value in values if type(value) is float]
    if len(numbers) < len(values) or array("f", numbers).tolist() != numbers:
        return values
    return {"single": [shortest_single(number) for number in numbers]}


def shortest_single(number: float) -> float:
    """The number of fewest digits that is `number` in single precision."""
    rounded = (float(f"{number:.{digits}g}") for digits in range(6, 10))
    return next(short for short in rounded if array("f", [short])[0] == number)


def unpack_rows(packed: Json) -> list[Json]:
    """The rows of `pack_rows`.

    Raises ValueError, TypeError, KeyError, IndexError, AttributeError or OverflowError for anything else.
    """
    kinds = [zip(*map(unpack_column, columns.values()), strict=True) for columns in packed["kinds"]]
    keys = [tuple(columns) for columns in packed["kinds"]]
    rows = [dict(zip(keys[kind], next(kinds[kind], ()), strict=True)) for kind in packed["order"]]
    if any(next(values, None) is not None for values in kinds):
        raise ValueError("there are more values than rows")
    return rows


def unpack_column(column: Sequence[object] | Json) -> Sequence[object]:
    """The values of a column of `pack_column`."""
    return array("f", column["single"]).tolist() if isinstance(column, dict) else column


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds the rows atomically: readers see all of them or none. Raises OSError where the file cannot be written."""
    if not rows:
        return
    packed = ({**row, "rows": pack_rows(row["rows"])} for row in rows)
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in packed)
    member = gzip.compress(text.encode(), mtime=0)
    with naming(path), open_to_append(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(_measure(file, path)[0])
        file.write(member)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def errors_printed(path: Path, names: str) -> Iterator[None]:
    """Prints why the runs of these names could not be added, in place of an error: their results are in folders too."""
    try:
        yield
    except (OSError, ValueError) as error:
        print_line(f"{names} could not be added to {path}: {error}", err=True)


def read(path: Path) -> list[Json]:
    """All rows in the order in which they were written.

    Raises DamagedFile, which names the row, for damage and for rows that kleiber does not write; also where all rows
    together are larger than MAX_BYTES or MAX_VALUES, before they fill the memory.
    """
    rows, values = [], 0
    with open_to_read(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            values += line.count(b",") + line.count(b"[") + line.count(b"{")
            if values > MAX_VALUES:
                raise DamagedFile(path, f"its first {number:,} rows have {values:,} values, more than {MAX_VALUES:,}")
            rows.append(parse_row(line, number, path))
    return rows


def parse_row(line: bytes, number: int, path: Path) -> Json:
    """The row in a line. Raises DamagedFile, which names its number, for one that kleiber does not write."""
    try:
        row = parse_json(line.decode("utf-8"), path, max_values=None)
        refuse_interpolations(row.get("config"), path, "config")
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"the row of line {number} is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise DamagedFile(path, f"the row of line {number} is nested too deeply") from None
    except DamagedFile as error:
        raise DamagedFile(path, f"the row of line {number}: {error.reason}") from None
    if not row.keys() >= KEYS:
        raise DamagedFile(path, f"the row of line {number} must have the keys run, config, summary and rows")
    try:
        rows = unpack_rows(row["rows"])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        rows = None
    for key, is_right, form in (
        ("run", isinstance(row["run"], str) and RUN_NAME.fullmatch(row["run"]), "the name of a folder"),
        ("config", isinstance(row["config"], dict), "an object"),
        ("summary", isinstance(row["summary"], dict), "an object"),
        ("rows", isinstance(rows, list) and all(map(is_row, rows)), "the columns of logged rows"),
    ):
        if not is_right:
            raise DamagedFile(path, f"{key}={str(row[key])[:LONGEST]} of line {number} must be {form}")
    return {**row, "rows": rows}


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yields the lines of the complete members of a gzip file. Raises DamagedFile for a line that is too long."""
    end, kept = _measure(file, path)
    file.seek(0)
    rest, number = b"", 0
    for piece in _pieces_before(end, file, path) if kept is None else kept:
        *lines, rest = (rest + piece).split(b"\n")
        number += len(lines)
        yield from lines
        if len(rest) > MAX_ROW_BYTES:
            raise DamagedFile(path, f"the row of line {number + 1} has more than {MAX_ROW_BYTES:,} bytes")


def _measure(file: BinaryIO, path: Path) -> tuple[int, list[bytes] | None]:
    """The offset at which the last complete member of a gzip file ends, and the content up to there if it is short.

    Raises ConfigError for a file that is not gzip, and DamagedFile for damage and for more content than MAX_BYTES.
    """
    first = file.read(len(GZIP))
    if len(first) == len(GZIP) and first != GZIP:
        raise ConfigError(
            f"{path} is not a runs.jsonl.gz (it is not gzip): name a run, a folder of runs or a runs.jsonl.gz; "
            "`kleiber fit` reads csv, jsonl and parquet"
        )
    file.seek(0)
    size = complete = end = 0
    pieces: list[bytes] = []
    for piece, ends_at in _pieces(file, path):
        size += len(piece)
        if size > MAX_BYTES:
            raise DamagedFile(path, f"its rows have more than {MAX_BYTES:,} bytes")
        if size <= KEPT_BYTES:
            pieces.append(piece)
        if ends_at is not None:
            end, complete = ends_at, len(pieces)
    return end, pieces[:complete] if size <= KEPT_BYTES else None


def _pieces_before(end: int, file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yields the content of the members of a gzip file that end at the offset `end` or before it."""
    for piece, ends_at in _pieces(file, path) if end else ():
        yield piece
        if ends_at == end:
            return


def _pieces(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int | None]]:
    """Yields the content of a gzip file, at most PIECE bytes at once, with the offset at which its member ends, if so.

    Stops at the end of the file, also within a member. Raises DamagedFile for damage before it.
    """
    start, unpack, data = 0, zlib.decompressobj(wbits=31), b""
    while True:
        data = data or file.read(PIECE)
        try:
            piece = unpack.decompress(data, PIECE)
        except zlib.error as error:
            repair = f"run `truncate -s {start} {path}` to keep the rows before it" if start else "move it elsewhere"
            raise DamagedFile(
                path,
                f"byte {start:,} and later ({error}): {repair}; `kleiber report` then adds the runs whose folders "
                "still exist",
            ) from None
        if unpack.eof:
            start = file.tell() - len(unpack.unused_data)
            data, unpack = unpack.unused_data, zlib.decompressobj(wbits=31)
            yield piece, start
        elif piece or data:
            data = unpack.unconsumed_tail
            yield piece, None
        else:
            return


def archive_rows(run: Run) -> list[Json]:
    """The rows of a run, one per leaf; a run without a leaf, such as one that failed early, has one row too.

    Raises ValueError for a name that `read` refuses.
    """
    if not RUN_NAME.fullmatch(run.name):
        raise ValueError(
            "rename the folder: its name must not begin with a dot, or contain a backslash or a line break"
        )
    stages = {stage.get("name"): stage for stage in run.stages}
    paths = [stage_path(leaf.get("name"), stages) for leaf in run.leaves] or [[]]
    paths[0] = [*(name for name in stages if not any(name in path for path in paths)), *paths[0]]
    first_path = {name: number for number, path in reversed(list(enumerate(paths))) for name in path}
    summary = {**run.summary, "status": run.status, "overrides": run.overrides}
    return [
        {
            "run": run.name,
            "config": run.config,
            "summary": {**summary, "stages": [stages[name] for name in path]},
            "rows": [row for row in run.rows if first_path.get(row.get("stage"), 0) == number],
        }
        for number, path in enumerate(paths)
    ]


def stage_path(name: str | None, stages: Mapping[str | None, Row]) -> list[str | None]:
    """Names of the stages from the root to the stage `name`."""
    path: list[str | None] = []
    while name in stages and name not in path:
        path.insert(0, name)
        name = stages[name].get("parent")
    return path


def assemble_runs(rows: Sequence[Row], home: Path) -> Iterator[tuple[str, Json, Json]]:
    """Name, summary, and `{config, rows}` of each run, in order of name.

    Of a run that was added several times the last finished version counts, or the last version if none is finished.
    Paths through the folders of these runs are rewritten to begin at `home`, so a study that was moved reads as if it
    had been trained there.
    """
    leaves: dict[str, list[Row]] = {}
    for row in rows:
        earlier = leaves.get(row["run"], [])
        if earlier and is_further_leaf(row, earlier):
            earlier.append(row)
        elif not earlier or finished(row) or not finished(earlier[0]):
            leaves[row["run"]] = [row]
    for name, run_rows in sorted(leaves.items()):
        stages = {stage.get("name"): stage for row in run_rows for stage in row["summary"].get("stages") or []}
        summary = {**run_rows[0]["summary"], "stages": list(stages.values())}
        summary["overrides"] = [rebase_override(line, home, leaves) for line in summary.get("overrides") or []]
        logged = [entry for row in run_rows for entry in row["rows"]]
        config = map_strings(run_rows[0]["config"], partial(rebase_path, home=home, names=leaves))
        yield name, summary, {"config": config, "rows": logged}


def may_replace(old: Run | None, new: Run) -> bool:
    """Whether a run differs from its archived version, if any; only a finished run may replace a finished version."""
    if old is None:
        return True
    if old.finished and not new.finished:
        return False
    first, second = (
        {**run.summary, "overrides": None, "stages": {stage.get("name"): stage for stage in run.stages}}
        for run in (old, new)
    )
    return first != second


def finished(row: Row) -> bool:
    """Whether the run that an archive row describes has the status `finished`."""
    return row["summary"]["status"] == Status.FINISHED


def is_further_leaf(row: Row, leaves: Sequence[Row]) -> bool:
    """Whether a row is of another last stage of the same training as `leaves`, and not of a later repetition.

    leaves  rows of one run, each of a last stage (a leaf of its tree of stages)
    """
    summary, earlier = ({**leaf["summary"], "stages": None} for leaf in (row, leaves[0]))
    return summary == earlier and leaf_name(row) not in map(leaf_name, leaves)


def leaf_name(row: Row) -> str | None:
    """Name of the last stage on the branch that an archive row describes; None for a run without stages."""
    stages = row["summary"].get("stages")
    return stages[-1].get("name") if stages else None


def rebase_path(text: str, home: Path, names: Container[str]) -> str:
    """A path through the folder of a run in `names`, rewritten to begin at `home`; any other text as it is."""
    if not text.startswith("/"):
        return text
    parts = Path(text).parts
    start = next((number for number, part in enumerate(parts) if part in names), None)
    return text if start is None else str(home.absolute().joinpath(*parts[start:]))


def rebase_override(line: str, home: Path, names: Container[str]) -> str:
    """An override `key=value` whose value is rewritten by `rebase_path`."""
    key, equals, value = line.partition("=")
    return f"{key}{equals}{rebase_path(value, home, names)}"
