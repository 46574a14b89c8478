"""Progress on stderr: a live line at the bottom of a terminal, and a plain line every few seconds elsewhere.

Whatever can take longer than a few seconds is an `activity`. It counts what is done, which costs nothing; a thread
prints the innermost activity of the process. What finishes within PATIENCE seconds prints nothing, unless nothing else
has been printed for a while. Of the ranks of a run, only rank 0 prints.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, TypeVar

from kleiber.records.terminal import print_line, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REFRESH = 0.5  # seconds between two states of the live line
PATIENCE = 2.0  # seconds after which an activity is shown
SECONDS = 5.0  # between two plain lines
DAY = 86_400.0  # seconds
SLOWER = 0.01  # of the duration of an activity; two plain lines are at least this far apart

Item = TypeVar("Item")


class Activity:
    """Work that is being done.

    label    what is being done, such as "preparing builtin/docs"
    total    how much there is to do, in `unit`; None where that is unknown
    seconds  between two plain lines
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "", seconds: float = SECONDS) -> None:
        self.label, self.total, self.unit, self.seconds = label, total, unit, seconds
        self.done = 0
        self.began = time.monotonic()
        self.shown = False

    def track(self, items: Iterable[Item], size: Callable[[Item], int] = lambda _: 1) -> Iterator[Item]:
        """Yields the items, and counts the size of each one after its use."""
        for item in items:
            yield item
            self.done += size(item)

    def fraction(self) -> float | None:
        """Returns the part that is done, from 0 to 1; None where the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else None

    def text(self) -> str:
        """Returns the line that describes the present state."""
        elapsed, fraction = time.monotonic() - self.began, self.fraction()
        counted = (
            f" {format_count(self.done, self.total, self.unit)} in" if self.unit and (self.done or self.total) else ""
        )
        left = f", {format_duration(elapsed * (1 - fraction) / fraction)} left" if fraction else ""
        return f"{self.label}:{counted} {format_duration(elapsed)}{left}"

    def closing_text(self) -> str | None:
        """Returns the line that stays when the activity has ended; None for no line."""
        if time.monotonic() - self.began < PATIENCE:
            return None
        counted = f" {format_count(self.done, None, self.unit)} in" if self.unit and self.done else ""
        return f"{self.label}:{counted} {format_duration(time.monotonic() - self.began)}"


def format_count(done: int, total: int | None, unit: str) -> str:
    """Returns a count such as `12,000 of 48,000 rows`."""
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def format_duration(seconds: float) -> str:
    """Returns a duration as people say it: `0.3 s`, `7 s`, `2 min 5 s`, `12 min`, `3 h 20 min` or `7.7 days`."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:,.1f} days"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 10:
        minutes, rest = round(seconds / 60), 0
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


class Display:
    """Shows the innermost of the activities that have begun and not ended.

    copy  a log file that gets the plain lines too, when the terminal shows the live line
    """

    def __init__(self) -> None:
        self.activities: list[Activity] = []
        self.copy: IO[str] | None = None
        self.lock = threading.RLock()
        self.printed, self.line = time.monotonic(), ""  # when and what was printed last
        self._live: Live | None = None
        self._partial = False  # whether the last line on the terminal has no end yet
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def begin(self, activity: Activity) -> None:
        """Shows the activity from now on."""
        self.activities.append(activity)
        if self._thread is None and os.environ.get("RANK", "0") == "0":
            self._partial = False
            self._ended.clear()
            self._thread = threading.Thread(target=self._show_until_end, name="progress", daemon=True)
            self._thread.start()

    def end(self, activity: Activity) -> None:
        """Ends the activity, and shows the one around it; after the last one prints its closing line."""
        self.activities.remove(activity)
        if not self.activities and self._thread is not None:
            self._ended.set()
            if self._thread.is_alive():  # not where a signal came while it was being started
                self._thread.join()
            self._thread = None
        self._erase()
        if not self.activities:
            self._live = None
        closing = activity.closing_text() if activity.shown and not self.activities else None
        if closing is not None and closing != self.line:
            self.printed = time.monotonic()
            print_line(closing, err=True)

    def write(self, stream: IO[str], text: str) -> int:
        """Writes text to a stream of the terminal, in the place of the live line, which the next state shows again."""
        with self.lock:
            self._erase()
            self._partial, self.printed = not text.endswith("\n"), time.monotonic()
            return stream.write(text)

    def _erase(self) -> None:
        with self.lock:
            if self._live is not None and self._live.is_started:
                with suppress(OSError):  # the terminal was closed
                    self._live.stop()

    def _show_until_end(self) -> None:
        while not self._ended.wait(REFRESH):
            innermost = self.activities[-1:]
            for activity in innermost:
                self.show(activity)

    def show(self, activity: Activity) -> None:
        """Draws the live line in a terminal, and prints a plain line where one is due."""
        now = time.monotonic()
        age, silence, terminal = now - activity.began, now - self.printed, sys.stderr.isatty()
        if age < PATIENCE and silence < SECONDS - 2 * REFRESH:
            return
        if terminal:
            with suppress(OSError):  # it was closed
                self._draw(activity)
        out = self.copy if terminal else sys.stderr
        if not activity.shown or silence >= max(activity.seconds, SLOWER * age) - REFRESH:
            self.printed, activity.shown, self.line = now, True, activity.text()
            if out is not None:
                out.write(f"{printable(self.line)}\n")
                out.flush()

    def _draw(self, activity: Activity) -> None:
        from rich.console import Console
        from rich.live import Live

        with self.lock:
            if self._partial:
                return
            if self._live is None:
                # What is printed meanwhile goes through rich, unless it is copied to log.txt, which calls `write`.
                through = self.copy is None
                self._live = Live(
                    console=Console(file=sys.__stderr__), auto_refresh=False, transient=True,
                    redirect_stdout=through and sys.stdout.isatty(), redirect_stderr=through,
                )  # fmt: skip
            if not self._live.is_started:
                self._live.start()
                self._live.console.show_cursor()
            self._live.update(renderable(activity), refresh=True)


def renderable(activity: Activity) -> RenderableType:
    """Returns the live line: a bar where the total is known, and the text of the activity."""
    from rich.progress_bar import ProgressBar
    from rich.spinner import SPINNERS
    from rich.table import Table
    from rich.text import Text

    fraction, text = activity.fraction(), Text(printable(activity.text()), no_wrap=True, overflow="ellipsis")
    frames = SPINNERS["dots"]["frames"]
    bar = frames[int(time.monotonic() / REFRESH) % len(frames)] if fraction is None else None
    grid = Table.grid(padding=(0, 1))
    grid.add_row(bar or ProgressBar(total=1.0, completed=fraction or 0.0, width=10), text)
    return grid


DISPLAY = Display()


@contextmanager
def activity(label: str | Activity, total: int | None = None, unit: str = "") -> Iterator[Activity]:
    """Shows an activity within the context, on rank 0; see `Activity` for the arguments."""
    work = Activity(label, total, unit) if isinstance(label, str) else label
    DISPLAY.begin(work)
    try:
        yield work
    finally:
        DISPLAY.end(work)
