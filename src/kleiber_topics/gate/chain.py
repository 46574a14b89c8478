"""The log of a stream: rows that are only added, each with the hash of the row before it.

A row that is changed, deleted, moved or inserted breaks the chain. Every run notes the head and the length of the log
when it started, so rows that were cut off at the end are missed as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from kleiber.records import load_json, open_to_append, read_bytes
from kleiber.types import Json

FILE = "gate.jsonl"
START = "0" * 64  # the hash before the first row
MAX_BYTES = 2**27  # of a log, and of the note of a run


def hash_of(row: Json) -> str:
    """Returns the sha256 of a row without its hash."""
    content = {key: value for key, value in row.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_rows(path: Path) -> list[Json]:
    """Reads and checks a log. A row that a killed process was writing, which has no newline, is left out.

    Raises ValueError, which names the row, where the chain is broken.
    """
    rows: list[Json] = []
    head = START
    for number, line in enumerate(read_bytes(path, MAX_BYTES).split(b"\n")[:-1]):
        try:
            row = load_json(line.decode())
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or row.get("index") != number or row.get("previous") != head:
            raise broken(path, number, "does not follow from the row before it: a row was edited, deleted or moved")
        if row.get("hash") != hash_of(row):
            raise broken(path, number, "was edited: its hash differs")
        head = row["hash"]
        rows.append(row)
    return rows


def broken(path: Path, number: int, why: str) -> ValueError:
    """Returns the error of a log that is not what was written."""
    return ValueError(f"{path}: row {number} {why}. Restore the file, or start a new stream in another folder")


def append(path: Path, rows: list[Json], kind: str, **values: object) -> Json:
    """Adds a row to a log, and to the list of its rows; the file is on disk when this returns."""
    head = rows[-1]["hash"] if rows else START
    row: Json = {"index": len(rows), "kind": kind, "time": round(time.time(), 3), **values, "previous": head}
    row["hash"] = hash_of(row)
    with open_to_append(path) as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)  # what a killed process was writing
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    rows.append(row)
    return row


def stamp(rows: Sequence[Json]) -> Json:
    """Returns the head and the length of a log, which a run notes when it starts."""
    return {"head": rows[-1]["hash"] if rows else START, "length": len(rows)}


def check_stamps(path: Path, rows: Sequence[Json], notes: Sequence[Path]) -> None:
    """Raises ValueError where a run has noted a head that the log does not have: rows are missing or were replaced.

    notes  files of runs, each with head and length of the log
    """
    for note in notes:
        try:
            noted = load_json(read_bytes(note, MAX_BYTES).decode())
        except ValueError:
            continue  # a killed process was writing it
        if not isinstance(noted, dict) or not isinstance(noted.get("length"), int):
            continue
        length = noted["length"]
        if length > len(rows):
            raise broken(path, len(rows), f"is missing: {note} was run when the log had {length} rows")
        if length and rows[length - 1]["hash"] != noted.get("head"):
            raise broken(path, length - 1, f"is not the row that {note} has noted: the log was replaced")
