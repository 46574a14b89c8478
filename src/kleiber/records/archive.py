"""runs.jsonl.gz: the results of the runs of a study in one file, which can be read without the runs' folders.

A line is a leaf of a run's tree of stages, `{run, config, summary, rows}`:

run      name of the run's folder
config   content of config.yaml
summary  content of summary.json, with the stages from the root to this leaf alone; the leaf is the last of them
rows     logged rows of these stages (`kleiber.records.metrics.condense`); those of shared stages are with the first
         leaf

Every append writes a separate gzip member, under a lock, and flushes it to disk. So a kill can truncate the last member
only; readers skip a truncated member, and the next append removes it.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.errors import ConfigError, Status
from kleiber.config.nested import map_strings
from kleiber.config.system_errors import naming
from kleiber.records.files import DamagedFile, parse_json, refuse_interpolations
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.records.catalog import Run


NAME = "runs.jsonl.gz"
KEYS = {"run", "config", "summary", "rows"}
CHUNK = 1 << 16
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
MAX_BYTES = 2**31  # of all rows, uncompressed
RUN_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]+")  # joined to a folder, it names a place right below it


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds the rows atomically: readers see all of them or none. Raises OSError where the file cannot be written."""
    if not rows:
        return
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    member = gzip.compress(text.encode(), mtime=0)
    with naming(path), open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        ends = [end for _, end in gzip_members(file.read(), path)]
        file.truncate(ends[-1] if ends else 0)
        file.write(member)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def errors_printed(path: Path, names: str) -> Iterator[None]:
    """Prints why the runs of these names could not be added, in place of an error: their results are in folders too."""
    try:
        yield
    except (OSError, ValueError) as error:
        print(f"{names} could not be added to {path}: {error}", file=sys.stderr)


def read(path: Path) -> list[Json]:
    """All rows in the order in which they were written. Raises DamagedFile for damage, or for rows with other keys."""
    text = b"".join(content for content, _ in gzip_members(path.read_bytes(), path))
    rows = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        row = parse_json(line.decode("utf-8", "replace"), path)
        if not row.keys() >= KEYS:
            raise DamagedFile(path, f"the row of line {number} must have the keys run, config, summary and rows")
        if not RUN_NAME.fullmatch(str(row["run"])):
            raise DamagedFile(path, f"run={row['run']} of line {number} is not the name of a folder")
        refuse_interpolations(row["config"], path, "config")
        rows.append(row)
    return rows


def gzip_members(data: bytes, path: Path) -> Iterator[tuple[bytes, int]]:
    """The content of every complete gzip member, and the offset at which it ends.

    Skips a truncated member at the end. Raises ConfigError for bytes that are not gzip.
    """
    if len(data) >= len(GZIP) and not data.startswith(GZIP):
        raise ConfigError(
            f"{path} is not a runs.jsonl.gz (it is not gzip): name a run, a folder of runs or a runs.jsonl.gz; "
            "`kleiber fit` reads csv, jsonl and parquet"
        )
    start = total = 0
    while start < len(data):
        unpack, content, at = zlib.decompressobj(wbits=31), [], start
        try:
            while not unpack.eof and at < len(data):
                content.append(unpack.decompress(data[at : at + CHUNK]))
                at, total = at + CHUNK, total + len(content[-1])
                if total > MAX_BYTES:
                    raise DamagedFile(path, f"its rows have more than {MAX_BYTES:,} bytes")
        except zlib.error as error:
            repair = f"run `truncate -s {start} {path}` to keep the rows before it" if start else "move it elsewhere"
            raise DamagedFile(
                path,
                f"byte {start:,} and later ({error}): {repair}; `kleiber report` then adds the runs whose folders "
                "still exist",
            ) from None
        if not unpack.eof:
            return
        start = min(at, len(data)) - len(unpack.unused_data)
        yield b"".join(content), start


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
