"""How a command or a run can end: exit codes, run statuses, the errors that end a command, and preemption signals.

Every command, launcher, record and study takes exit codes and statuses from this file. A scheduler sends SIGTERM or
SIGUSR1 to a run that has to stop; the run saves a checkpoint and exits with 75, and the same command continues it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from enum import IntEnum, StrEnum

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class ExitCode(IntEnum):
    """What a kleiber process returns to its shell or scheduler."""

    DONE = 0
    FAILED = 1  # of a run, or of a check such as `kleiber check mup`
    BAD_INPUT = 2  # a config, file, column or command line that the user can correct
    UNDECIDED = 3  # a law that is not identified or is refused
    PARTLY_FAILED = 4  # a sweep in which some cells did not finish
    CONTRADICTED = 5  # a claim that the runs contradict
    PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT


class Status(StrEnum):
    """The progress of a run, or how it ended: `status` in summary.json and in tables of runs."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"  # by an error, which `error` in summary.json names
    DIVERGED = "diverged"  # the loss is no longer finite
    PREEMPTED = "preempted"  # asked to make room; the same command continues it
    KILLED = "killed"  # interrupted, or its process died before it could write how it ended
    MISSING = "missing"  # planned, and no summary.json yet

    @property
    def color(self) -> str:
        """The name of the color (rich's) in which a table prints the status."""
        return {Status.FINISHED: "green", Status.RUNNING: "cyan", Status.MISSING: "yellow"}.get(self, "red")

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that ended with this status."""
        codes = {Status.FINISHED: ExitCode.DONE, Status.PREEMPTED: ExitCode.PREEMPTED}
        return codes.get(self, ExitCode.FAILED)


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
