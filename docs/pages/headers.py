"""The comment at the top of a config file: what the choice is, when to use it, and, of studies, what it costs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LABELS = ("Paper", "Command", "Cost", "Expected", "Labels")
LABEL = re.compile(rf"^({'|'.join(LABELS)})\s+(.*)")


@dataclass(frozen=True)
class Header:
    """summary: what the choice is; use: when to take it; labels: the text of Paper, Command, Cost and Expected.

    A command may have several lines.
    """

    summary: str
    use: str
    labels: dict[str, str]


@cache
def read_header(path: Path) -> Header:
    """Returns the header of a config file (a comment of other files is a summary only)."""
    parts: dict[str, list[str]] = {"summary": [], "use": []}
    current = "summary"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if text.startswith("@package") or not text:
            continue
        if label := LABEL.match(text):
            current, text = label.group(1), label.group(2)
        elif text.startswith("Use it"):
            current = "use"
        parts.setdefault(current, []).append(text)
    joined = {name: ("\n" if name == "Command" else " ").join(lines) for name, lines in parts.items()}
    return Header(joined.pop("summary"), joined.pop("use"), joined)
