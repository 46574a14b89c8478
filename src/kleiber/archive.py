"""runs.jsonl.gz: what the runs of a study measured, in one file that outlives their folders.

A line is a leaf of a run's tree of stages, `{run, config, summary, rows}` (see `leaf_rows`). Every append is
a gzip member of its own, under a lock and flushed to the disk, so a kill can cut short the last member alone: readers
pass over it, and the next append removes it.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kleiber.errors import ConfigError

NAME = "runs.jsonl.gz"
KEYS = {"run", "config", "summary", "rows"}
CHUNK = 1 << 16


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds the rows in one piece: either all of them are read back, or none. Raises OSError where it cannot."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    member = gzip.compress(text.encode(), mtime=0)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        ends = [end for _, end in members(file.read(), path)]
        file.truncate(ends[-1] if ends else 0)
        file.write(member)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All rows in order of writing. Raises ConfigError for a damaged file, and for one of other rows."""
    text = b"".join(content for content, _ in members(path.read_bytes(), path))
    rows = [json.loads(line) for line in text.splitlines()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= KEYS:
            raise ConfigError(f"{path}, line {number}: a row of runs has the keys run, config, summary and rows")
    return rows


def members(data: bytes, path: Path) -> Iterator[tuple[bytes, int]]:
    """The content of every whole gzip member, and the offset at which it ends.

    Raises ConfigError where bytes are no gzip: only what was cut off at the end may be passed over.
    """
    start = 0
    while start < len(data):
        unpack, content, at = zlib.decompressobj(wbits=31), [], start
        try:
            while not unpack.eof and at < len(data):
                content.append(unpack.decompress(data[at : at + CHUNK]))
                at += CHUNK
        except zlib.error as error:
            raise ConfigError(
                f"{path} is damaged at byte {start:,} ({error}): keep what stands before with "
                f"`truncate -s {start} {path}`, and `kleiber report` adds again what folders of runs still hold"
            ) from None
        if not unpack.eof:
            return
        start = min(at, len(data)) - len(unpack.unused_data)
        yield b"".join(content), start
