"""Reads the files in which W&B records runs offline, without a server and without starting W&B's service.

The file run-ID.wandb of a folder offline-run-* is a log of LevelDB: after 7 bytes come blocks of 32 KiB with records of
protobuf, each whole or in pieces. A last record that a kill cut is left out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kleiber.config.nested import flatten
from kleiber.records.files import load_json
from kleiber.records.regular_files import DamagedFile, open_to_read
from kleiber.types import Json

Record = Any  # a protobuf message of W&B, whose class is made when it is imported
START = b":W&B"
BLOCK, HEADER = 32 * 1024, 7  # bytes of a block; of the file's header, and of the header of each piece
WHOLE, LAST = 1, 4  # kinds of pieces that end a record
PADDING = 0  # kind of what fills the rest of a block
MAX_RECORD_BYTES = 2**26


class Item(Protocol):
    """A key with a value in JSON, as configs, summaries and logged rows consist of."""

    key: str
    nested_key: list[str]
    value_json: str


def read_wandb_runs(folder: Path) -> list[Json]:
    """Returns a row for each W&B run that is recorded in a folder or its subfolders, in order of path.

    Columns are `run` (the run's name), `group`, the keys of its config, such as `model.width`, and the last value of
    each metric. Raises DamagedFile for a file that is not W&B's.
    """
    return [read_wandb_run(path) for path in sorted(folder.rglob("*.wandb"))]


def read_wandb_run(path: Path) -> Json:
    """Returns the row of one file; see `read_wandb_runs`."""
    try:
        return _row(read_records(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, DamagedFile) else DamagedFile(path, str(error)) from None


def _row(records: Iterator[Record]) -> Json:
    facts, config, logged, summary = Json(), Json(), Json(), Json()
    for record in records:
        match record.WhichOneof("record_type"):
            case "run":
                facts = {"run": record.run.display_name or record.run.run_id, "group": record.run.run_group or None}
                config |= values_of(record.run.config.update)
            case "config":
                config |= values_of(record.config.update)
            case "history":
                logged |= values_of(record.history.item)
            case "summary":
                summary |= values_of(record.summary.update)
            case _:
                continue
    config.pop("_wandb", None)  # W&B's own settings
    return {**flatten(config), **logged, **summary, **facts}


def values_of(items: Iterator[Item]) -> Json:
    """Returns the values of items by key."""
    return {"/".join(item.nested_key) or item.key: load_json(item.value_json) for item in items}


def read_records(path: Path) -> Iterator[Record]:
    """Yields the records of a file. Raises DamagedFile for another kind of file, and for damage before its end."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as messages

    parse: Callable[[bytes], Record] = vars(messages)["Record"].FromString
    with open_to_read(path) as file:
        if file.read(HEADER)[: len(START)] != START:
            raise DamagedFile(path, "it is not a file of W&B")
        for at, content in _whole_records(file, path):
            try:
                yield parse(content)
            except DecodeError as error:
                raise DamagedFile(path, f"byte {at:,}: {error}") from None


def _whole_records(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the records of a log without those that were cut, each with the offset of its last piece."""
    at, pieces = HEADER, b""
    while True:
        left = BLOCK - at % BLOCK
        header = file.read(HEADER) if left >= HEADER else b""  # else the block has no room for another piece
        if left >= HEADER and len(header) < HEADER:
            return
        length, kind = struct.unpack("<4xHB", header) if header else (0, PADDING)
        if kind == PADDING:
            at += left
            file.seek(at)
            if at > os.fstat(file.fileno()).st_size:
                return
            continue
        piece = file.read(length)
        if len(piece) < length:
            return
        pieces += piece
        if len(pieces) > MAX_RECORD_BYTES:
            raise DamagedFile(path, f"byte {at:,}: a record has more than {MAX_RECORD_BYTES:,} bytes")
        if kind in (WHOLE, LAST):
            yield at, pieces
            pieces = b""
        at += HEADER + length
