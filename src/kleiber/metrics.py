"""metrics.jsonl as rows: what a run logged, in order, read without the libraries that wrote it.

It refuses to repair: a last line without its end was being written when the run was cut, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"

Row = dict[str, Any]


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's folder; none where it has logged nothing yet."""
    path = folder / NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def having(rows: Sequence[Row], prefix: str) -> list[Row]:
    """The rows with an entry whose name begins so."""
    return [row for row in rows if any(key.startswith(prefix) for key in row)]
