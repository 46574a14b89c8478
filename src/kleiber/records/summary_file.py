"""Reads summary.json of a run, which may be missing, damaged or not one that a run wrote. Imports no torch."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from kleiber.records.files import DamagedFile, read_json
from kleiber.records.schema import first_error, load_schema
from kleiber.types import Json

SUMMARY = "summary.json"


def read_summary(folder: Path) -> Json | None:
    """The content of summary.json in a run's folder; None where there is none.

    Raises DamagedFile, which names the first key that is missing or has a value that no run writes.
    """
    path = folder / SUMMARY
    if not os.path.lexists(path):
        return None
    values = read_json(path)
    check_summary(values, path)
    return values


def check_summary(values: object, path: Path) -> None:
    """Raises DamagedFile, which names the first wrong key, unless `values` of the file at `path` are a summary."""
    error = first_error(values, load_schema("summary.schema.json"))
    if error is not None:
        raise DamagedFile(path, error)


def set_damaged_aside(path: Path) -> Path:
    """Renames a damaged file to `<name>.damaged`, or the next free number after it, and returns the new path."""
    place, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(place):
        place, number = path.with_name(f"{path.name}.damaged.{number}"), number + 1
    path.rename(place)
    return place


def summary_or_warning(folder: Path) -> Json:
    """The content of summary.json; {} where it is missing or damaged, of which a warning tells once in a process."""
    try:
        return read_summary(folder) or {}
    except DamagedFile as error:
        warn_once(f"{error}; the run counts as not started")
        return {}


@cache
def warn_once(message: str) -> None:
    """Prints a warning, once in a process."""
    print(f"warning: {message}", file=sys.stderr)
