"""Reads logs of a line for each entry, one line after another, however long the log or one of its lines is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from kleiber.records.regular_files import open_to_read
from kleiber.records.terminal import warn_once

T = TypeVar("T")
MAX_LINE_BYTES = 2**22
PIECE = 2**20  # bytes that are read at once
MAX_SKIPPED_BYTES = 2**27  # of a longer line: such a file is no log, and reading all of it takes minutes


def read_lines(path: Path, parse: Callable[[str], T]) -> Iterator[tuple[str, T]]:
    """Yields the lines of a log, without their newlines, each with what `parse` returns for it.

    Leaves out lines for which `parse` raises ValueError, and those of more than MAX_LINE_BYTES, and prints how many
    they are and which is the first; of a file with a line of more than MAX_SKIPPED_BYTES also all that follows it.
    Leaves out the end of the file without a newline, which is what a killed run was writing. Raises DamagedFile for
    anything but a file; nothing there is a log without lines.
    """
    damaged: list[int] = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError("the line is too long")
            text = line[:-1].decode("utf-8")
            value = parse(text)
        except (ValueError, RecursionError):
            damaged.append(number)
            continue
        yield text, value
    if damaged:
        warn_once(f"{path}: skipped {len(damaged)} damaged lines, first line {damaged[0]}")


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file that end in a newline; of a longer line than MAX_LINE_BYTES its beginning."""
    try:
        file = open_to_read(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if line.endswith(b"\n") or _skip_line(file):
                yield line


def _skip_line(file: BinaryIO) -> bool:
    """Reads up to the end of a line, of a far too long one to the end of the file; False where the file ends first."""
    for _ in range(MAX_SKIPPED_BYTES // PIECE):
        piece = file.read(PIECE)
        end = piece.find(b"\n")
        if end >= 0:
            file.seek(end + 1 - len(piece), os.SEEK_CUR)
            return True
        if not piece:
            return False
    file.seek(0, os.SEEK_END)
    return True
