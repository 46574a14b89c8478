"""Whether the inputs of a finished run have changed since it started. Imports torch only to compare their content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from kleiber.config import hub
from kleiber.types import Config, Json

INPUT_NODES = ("data", "model", "init", "objective", "stages")  # the nodes of a config that name inputs


def describe_changes(config: Config, summary: Json) -> str:
    """Returns which inputs of a run have another content now, or why that cannot be read; "" where none has.

    summary  of the run, with the hashes of its inputs
    """
    recorded = summary.get("inputs")
    if not recorded or not is_touched(config, datetime.fromisoformat(summary["started"]).timestamp()):
        return ""
    from kleiber.runs.inputs import changed_inputs, present_inputs

    try:
        current = present_inputs(config)
    except ValueError as error:
        return str(error)
    return "; ".join(changed_inputs({name: value for name, value in recorded.items() if name in current}, current))


def is_touched(config: Config, since: float) -> bool:
    """Whether a file that the config names was written, moved or touched after `since`, a time in seconds.

    Only then does the content of the inputs have to be compared, for which torch is imported.
    """
    files = {path for node in INPUT_NODES for text in texts_of(config.get(node)) for path in existing_paths(text)}
    return any(last_change(path) > since for path in files)


def texts_of(node: object) -> Iterator[str]:
    """Yields every text in a nested config, keys included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from texts_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts_of(value)


def existing_paths(text: str) -> Iterator[Path]:
    """Yields the files and folders that a text of a config may name: a path, RUN/STAGE, or a name on the hub."""
    path = Path(text).expanduser()
    copy = hub.local_copy(text) if hub.is_name(text) else None
    run = path.parent if (path.parent / "config.yaml").is_file() else None
    yield from (place for place in (path, copy, run) if place is not None and os.path.exists(place))


def last_change(path: Path) -> float:
    """Returns when a file, or any file in a folder, was last written, renamed or replaced, in seconds."""
    inside = (Path(parent) / name for parent, _, names in os.walk(path) for name in names)
    facts = [place.stat() for place in (path, *inside) if place.exists()]
    return max(max(fact.st_mtime, fact.st_ctime) for fact in facts)
