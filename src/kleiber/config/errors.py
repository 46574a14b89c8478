"""The errors that end a command, and the signals that ask a run to make room.

A scheduler sends SIGTERM or SIGUSR1. A process that receives one saves what it has and exits with 75, and the same
command continues it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class ConfigError(ValueError):
    """A config, command line or file is wrong. The message names the key and the fix; the command exits with 2."""


class Preempted(BaseException):
    """The run was asked to make room. A checkpoint holds everything up to the latest step, if checkpoints are on.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` mistakes it for a failure.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?`, or an empty string where no choice is similar."""
    near = get_close_matches(name, list(dict.fromkeys(choices)), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextmanager
def on_preemption(react: Callable[[str], object]) -> Iterator[list[str]]:
    """Calls `react` with the name of the first SIGTERM or SIGUSR1; yields a list of the names of all that came.

    Restores the previous handlers on exit. Outside the main thread no signal arrives, and the list stays empty.
    """
    received: list[str] = []

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number).name)
        if len(received) == 1:
            react(received[0])

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = [signal.signal(number, note) for number in SIGNALS]
    try:
        yield received
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
