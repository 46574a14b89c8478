"""Writes text to the terminal: the only module that prints, since names and values in records may be a stranger's.

A control character in such a text could change the title, the colors or earlier lines of a terminal, or reverse the
order of what is read. Each is printed as an escape, such as \\x1b.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

# C0 codes but for tab and newline, DEL, C1 codes, marks that change the direction of text, and lone surrogates.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns text with control characters other than newline and tab as escapes, such as \\x1b."""
    return CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def print_line(text: object = "", err: bool = False, end: str = "\n") -> None:
    """Prints text with its control characters as escapes, and flushes it.

    err  to stderr, in place of stdout
    end  printed after it
    """
    print(printable(str(text)), end=end, file=sys.stderr if err else sys.stdout, flush=True)


def columns(err: bool = False) -> int | None:
    """Returns the width of the terminal that stdout, or stderr, is, else COLUMNS; None for a pipe or a file."""
    stream = sys.stderr if err else sys.stdout
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):  # a stream of a test or a notebook
        return None


def wrapped(line: str, indent: int, width: int | None) -> str:
    """Returns a line cut between words to `width` columns, all but the first indented; None: as it is.

    A word that is longer, such as a path, stays whole, so that it can be copied.
    """
    if width is None or len(line) <= width:
        return line
    return "\n".join(
        textwrap.wrap(
            line, max(width, 2 * indent), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
    )


@cache
def warn_once(message: str) -> None:
    """Prints a warning, once in a process."""
    print_line(f"warning: {message}", err=True)


def print_traceback(error: BaseException) -> None:
    """Prints an error with the calls that led to it, as Python does."""
    print_line("".join(traceback.format_exception(error)), err=True, end="")


class Printable:
    """What rich prints, with the control characters of its texts as escapes."""

    def __init__(self, content: RenderableType) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        from rich.segment import Segment

        for text, style, control in console.render(self.content, options):
            yield Segment(text if control else printable(text), style, control)


def print_rich(content: RenderableType, width: int | None = None) -> None:
    """Prints a table or a styled text, laid out for the terminal.

    width  columns where stdout is no terminal
    """
    from rich.console import Console

    console = Console()
    if (wide := columns() or width) is not None:
        console.width = wide
    console.print(Printable(content))


class StderrHandler(logging.Handler):
    """Prints log messages to what sys.stderr is at that time: a run in this process replaces it, and closes its log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a message; what goes wrong is reported as logging does."""
        try:
            print_line(self.format(record), err=True)
        except Exception:
            self.handleError(record)


def print_logs() -> logging.Logger:
    """Lets the messages of kleiber's loggers go through this module; returns the logger above them."""
    ours = logging.getLogger("kleiber")
    if not ours.handlers:
        ours.addHandler(StderrHandler())
    return ours
