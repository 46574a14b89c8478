"""Being asked to make room: which signals ask, what a run that has made room raises, and how a process heeds them.

A scheduler sends SIGTERM or SIGUSR1. What heeds them saves what it has and leaves with 75; the same command goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PREEMPTED = 75  # the exit code that asks for the same command again
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(BaseException):
    """The run was asked to make room. Everything up to its latest step is in a checkpoint, if it writes any.

    No Exception, like KeyboardInterrupt: what it passes through may not mistake it for a failure of its own.
    """


@contextmanager
def heeding(react: Callable[[str], None]) -> Iterator[list[str]]:
    """Calls `react` with the name of the first signal that asks; the names of all that came are in the list.

    The handlers from before are put back. Outside of the main thread no signal is heard, and the list stays empty.
    """
    came: list[str] = []

    def note(number: int, frame: object) -> None:
        came.append(signal.Signals(number).name)
        if len(came) == 1:
            react(came[0])

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = [signal.signal(number, note) for number in SIGNALS]
    try:
        yield came
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
