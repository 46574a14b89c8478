"""How a command or a run can end: exit codes, run statuses, the errors that end a command, and signals.

Every command, launcher, record and study takes exit codes and statuses from this file. A scheduler sends SIGTERM or
SIGUSR1 to a run that has to stop; the run saves a checkpoint and exits with 75, and the same command continues it.
Ctrl-C (SIGINT) does the same with exit code 130; a second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from enum import IntEnum, StrEnum
from typing import ClassVar, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class ExitCode(IntEnum):
    """What a kleiber process returns to its shell or scheduler."""

    DONE = 0
    FAILED = 1  # of a run, or of a check such as `kleiber check mup`
    BAD_INPUT = 2  # a config, file, column or command line that the user can correct
    UNDECIDED = 3  # a claim that is undecided or not tested, or a law that is not identified or is refused
    PARTLY_FAILED = 4  # a sweep in which some cells did not finish
    CONTRADICTED = 5  # a claim that the runs contradict, or a run that is different when it is reproduced
    PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT


SIGNAL_CODES = (ExitCode.PREEMPTED, ExitCode.INTERRUPTED)  # of a process that a signal ended in order


class Status(StrEnum):
    """The progress of a run, or how it ended: `status` in summary.json and in tables of runs."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"  # by an error, which `error` in summary.json names
    DIVERGED = "diverged"  # the loss is no longer finite
    PREEMPTED = "preempted"  # asked to make room; the same command continues it
    INTERRUPTED = "interrupted"  # by Ctrl-C; the same command continues it
    KILLED = "killed"  # its process died before it could write how it ended
    MISSING = "missing"  # planned, and no summary.json yet

    @property
    def color(self) -> str:
        """The name of the color (rich's) in which a table prints the status."""
        return {Status.FINISHED: "green", Status.RUNNING: "cyan", Status.MISSING: "yellow"}.get(self, "red")

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a run that ended with this status."""
        codes = {
            Status.FINISHED: ExitCode.DONE,
            Status.PREEMPTED: ExitCode.PREEMPTED,
            Status.INTERRUPTED: ExitCode.INTERRUPTED,
        }
        return codes.get(self, ExitCode.FAILED)


class ConfigError(ValueError):
    """A config, command line or file is wrong. The message names the key and the fix; the command exits with 2."""


class Preempted(BaseException):
    """The run was asked to make room. A checkpoint holds everything up to the latest step, if checkpoints are on.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` mistakes it for a failure.

    status  of a run that ends with this exception
    """

    status = Status.PREEMPTED


class Interrupted(Preempted):
    """The same, by Ctrl-C."""

    status = Status.INTERRUPTED


class RankLost(RuntimeError):
    """The connection to another rank broke."""


class RewardFailed(RuntimeError):
    """A reward could not score the answers of a step, which has not changed the weights."""


class RankTimeout(RankLost):
    """Another rank did not answer within trainer.rank_timeout seconds."""


def preempted_by(name: str, outcome: str) -> Preempted:
    """Returns the exception that ends a run or a sweep after the signal `name`; `outcome` says what is saved."""
    return (Interrupted if name == "SIGINT" else Preempted)(f"{name}{outcome}")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?`, or an empty string where no choice is similar."""
    near = get_close_matches(name, list(dict.fromkeys(choices)), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(names: Sequence[str], most: int = 20) -> str:
    """Returns the names, separated by commas; of more than `most`, the first ones and how many more there are."""
    further = [f"and {len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *further])


class _CtrlC:
    """Counts the SIGINTs that came while any `on_preemption` was active.

    last_acts  what a second SIGINT does before it ends the process, one for each active `on_preemption`
    received   the names of the signals that came, one list for each of them
    exits      whether this process is a command, which a signal may end at once (`exit_on_signals`)
    """

    count = 0
    exits = False
    last_acts: ClassVar[list[Callable[[], object]]] = []
    received: ClassVar[list[list[str]]] = []


def note_signal(number: int) -> None:
    """Ends this process with exit code 130 if this is its second SIGINT. Every handler of a signal calls it first."""
    _CtrlC.count += number == signal.SIGINT
    if number != signal.SIGINT or _CtrlC.count < 2:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for act in reversed(_CtrlC.last_acts):
        with suppress(Exception):
            act()
    os._exit(ExitCode.INTERRUPTED)


def pending_signal() -> int:
    """The signal that came while an `on_preemption` was active that still is, such as one whose exception a library
    swallowed; 0 where none came.
    """
    names = [name for received in _CtrlC.received for name in received]
    return signal.Signals[names[0]] if names else 0


def is_command() -> bool:
    """Whether this process is a command, which a signal may end at once, and not a notebook that called kleiber."""
    return _CtrlC.exits


def is_handled(number: int) -> bool:
    """Whether kleiber handles a signal: not a SIGINT that is ignored (under nohup), or that another library handles."""
    handler = signal.getsignal(number)
    return number != signal.SIGINT or handler in (signal.default_int_handler, exit_at_once) or bool(_CtrlC.last_acts)


@contextmanager
def on_preemption(react: Callable[[str], object], last_act: Callable[[], object] = lambda: None) -> Iterator[list[str]]:
    """Calls `react` with the name of the first SIGTERM, SIGUSR1 or SIGINT; yields the names of all that came.

    Restores the previous handlers on exit. Outside the main thread no signal arrives, and the list stays empty.
    A `Preempted` that `react` raises where Python discards exceptions (a finalizer, a callback of a weak reference,
    both of which run during imports) is not printed, and the signal comes again.

    last_act  called when a second SIGINT ends the process
    """
    received: list[str] = []
    hook = sys.unraisablehook

    def note(number: int, frame: object) -> None:
        note_signal(number)
        received.append(signal.Signals(number).name)
        if len(received) == 1:
            react(received[0])

    def send_again(discarded: sys.UnraisableHookArgs) -> None:
        """Lets the signal come again whose exception was discarded."""
        if not isinstance(discarded.exc_value, Preempted):
            hook(discarded)
            return
        number = signal.Signals[received[0]]
        received.clear()
        _CtrlC.count = 0  # or the second delivery would count as a second Ctrl-C
        again = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handled = [number for number in SIGNALS if is_handled(number)]
    _CtrlC.last_acts.append(last_act)
    _CtrlC.received.append(received)
    before = [signal.signal(number, note) for number in handled]
    sys.unraisablehook = send_again
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)
        _CtrlC.last_acts.pop()
        _CtrlC.received.pop()
        _CtrlC.count *= bool(_CtrlC.last_acts)


def exit_on_signals() -> None:
    """Makes SIGINT, SIGTERM and SIGUSR1 end this process at once, wherever no `on_preemption` is active.

    The exit code is 130 or 75. A signal that the process ignores stays ignored. Called where a process begins, before
    it imports what takes seconds, and has nothing to save. Signals that came while the process was started under
    `signals_held` come now.
    """
    _CtrlC.exits = True
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, exit_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def signals_held() -> Iterator[None]:
    """Holds signals back from this thread, and from a process that is started within until its `exit_on_signals`.

    Python would otherwise answer Ctrl-C in such a process with a traceback, before the first line of kleiber runs.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with(code: int) -> NoReturn:
    """Ends this process with an exit code, which a late signal does not change.

    A rank leaves out the destructors of C++ libraries: a thread of its process group that still ran would make them
    abort a rank that has done everything ("terminate called without an active exception").
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_at_once(number: int, frame: object) -> None:
    """Ends this process with the exit code of a signal: the handler of one that has nothing to save."""
    os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.PREEMPTED)
