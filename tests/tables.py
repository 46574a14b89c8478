"""Small tables on disk, as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def folder(path: Path, **splits: list[dict[str, Any]]) -> str:
    """A folder with a file for each split, named as the hub's shards."""
    for name, rows in splits.items():
        jsonl(path / f"{name}-00000-of-00001.jsonl", rows)
    return str(path)
