"""What a run prints goes to its log.txt as well as to the console. Python's streams only: not what C code writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class Tee:
    """A text stream that writes to two places and is, in all else, the first."""

    def __init__(self, stream: IO[str], copy: IO[str]) -> None:
        self.stream, self.copy = stream, copy

    def write(self, text: str) -> int:
        self.copy.write(text.replace("\r", "\n"))
        self.copy.flush()
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Copies stdout and stderr to `folder`/log.txt, unless that is where they go already."""
    path = folder / "log.txt"
    if path.exists() and os.path.samestat(os.fstat(1), path.stat()):
        yield
        return
    before = sys.stdout, sys.stderr
    with open(path, "a") as copy:
        sys.stdout, sys.stderr = Tee(sys.stdout, copy), Tee(sys.stderr, copy)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
