"""One run in this process, from a resolved config and its folder to an exit code. Its output also goes to log.txt.

`python -m kleiber.launch.process FOLDER` runs a rank, or a cell of a sweep. It reads the resolved config that its
parent process has checked and written, so the config is not composed twice, and a cell cannot start the sweep again.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO

from kleiber.config.errors import (
    ConfigError,
    ExitCode,
    Interrupted,
    Preempted,
    RankLost,
    Status,
    exit_on_signals,
    exit_with,
    is_command,
    on_preemption,
    pending_signal,
    preempted_by,
)
from kleiber.config.foreign import permit_config
from kleiber.config.system_errors import describe
from kleiber.config.url_secrets import hide_secrets
from kleiber.launch.rank_failures import record_failure
from kleiber.launch.ranks import CELL_VARIABLE, end_with_parent, rank, redirect_rank_output
from kleiber.records.folder import read_config, read_overrides, write_final_status
from kleiber.records.locks import locked
from kleiber.records.progress import DISPLAY, activity
from kleiber.records.regular_files import open_to_add_lines
from kleiber.records.terminal import print_line, print_traceback
from kleiber.types import Config

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colors and movements of the cursor in a terminal
PACKAGE = str(Path(__file__).resolve().parents[1])


class LastingStream:
    """A text stream like `stream`, which discards what it can no longer write: a closed pipe ends no training."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text, in the place of a live line."""
        with self.until_closed():
            DISPLAY.write(self.stream, hide_secrets(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        with self.until_closed():
            self.stream.flush()

    @contextmanager
    def until_closed(self) -> Iterator[None]:
        """Sends all further output of the stream to the null device where it fails, also what is buffered."""
        try:
            yield
        except OSError:
            with suppress(OSError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self.stream.fileno())

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


class Tee(LastingStream):
    """A text stream that writes to both `stream` and `copy`, and otherwise behaves like `stream`."""

    def __init__(self, stream: IO[str], copy: IO[str]) -> None:
        super().__init__(stream)
        self.copy = copy

    def write(self, text: str) -> int:
        """Writes the text; in the copy it has no colors, and every state of a progress line becomes a line."""
        try:
            self.copy.write(CONTROL.sub("", hide_secrets(text)).replace("\r", "\n"))
            self.copy.flush()
        except OSError as error:  # training goes on, and fails where it cannot write what counts
            self.copy = open(os.devnull, "w")  # noqa: SIM115
            super().write(f"warning: log.txt ends here, because it cannot be written: {error.strerror}\n")
        return super().write(text)


@contextmanager
def output_through(wrap: Callable[[IO[str]], LastingStream]) -> Iterator[None]:
    """Puts streams that `wrap` returns in place of Python's stdout and stderr, within the context."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = wrap(sys.stdout), wrap(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def copy_output(folder: Path) -> Iterator[None]:
    """Copies Python's stdout and stderr to `folder`/log.txt, unless they are redirected to that file already."""
    path = folder / "log.txt"
    if path.exists() and os.path.samestat(os.fstat(1), path.stat()):
        yield
        return
    with open_to_add_lines(path) as copy, output_through(partial(Tee, copy=copy)):
        DISPLAY.copy = copy
        try:
            yield
        finally:
            DISPLAY.copy = None


@contextmanager
def without_main_module() -> Iterator[None]:
    """Context in which a process that starts does not import the script of this one again.

    A cell needs nothing of it, and a script that starts a sweep at its top level would start another one in each cell.
    """
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def run(config: Config, folder: Path, overrides: Sequence[str]) -> int:
    """Trains a run and returns the exit code. Every rank calls it; only rank 0 locks the folder and writes to it."""
    permit_config(config)
    writes = rank() == 0
    code, error = ExitCode.FAILED, None
    try:
        with locked(folder) if writes else nullcontext(), copy_output(folder) if writes else nullcontext():
            code, error = _train_and_report(config, folder, overrides)
    except ConfigError as in_use:  # another process has locked the folder
        return print_error(in_use)
    except Preempted as reason:  # by a signal after the run wrote its final status
        return reason.status.exit_code
    if code:
        record_failure(code, error)
    return code


def _train_and_report(config: Config, folder: Path, overrides: Sequence[str]) -> tuple[int, BaseException | None]:
    """Trains a run, records and prints its error if there is one, and returns the exit code and the error.

    Signals outside of training steps are handled here; the callback `Preempt` handles them within.
    """
    with on_preemption(raise_preempted, partial(_write_interrupted, folder)):
        try:
            return _import_and_train(config, folder, overrides), None
        except Exception as error:
            number = pending_signal()  # a library may have swallowed its exception
            if not number:
                _write_status(folder, Status.FAILED, hide_secrets(f"{type(error).__name__}: {error}"))
                return print_error(error), error
            reason = _preempted(signal.Signals(number).name)
        except Preempted as error:
            reason = error
        except KeyboardInterrupt:
            reason = Interrupted("SIGINT: no new checkpoint was written")
        return _tell_preempted(folder, reason), reason


def _tell_preempted(folder: Path, reason: Preempted) -> int:
    """Writes and prints that a signal ended the run, and returns the exit code."""
    _write_status(folder, reason.status, str(reason))
    print_line(f"{reason.status} by {reason}; run the same command again to continue {folder}", err=True)
    return reason.status.exit_code


def _leave(folder: Path, name: str) -> None:
    """Ends this process by a signal that came within an import, without an exception.

    An exception in the import of a library in C++ may be swallowed there, or crash it. So early there is nothing else
    to save.
    """
    reason = _preempted(name)
    with suppress(Exception):
        record_failure(reason.status.exit_code, reason)
        _tell_preempted(folder, reason)
        sys.stderr.flush()
    os._exit(reason.status.exit_code)


def _write_interrupted(folder: Path) -> None:
    """Writes the status of a run that a second Ctrl-C ends."""
    _write_status(folder, Status.INTERRUPTED, "SIGINT, twice: no new checkpoint was written")


def _write_status(folder: Path, status: Status, error: str) -> None:
    """Writes the final status of a run, on the rank that holds its lock."""
    if rank() == 0:
        write_final_status(folder, status, error, holds_lock=True)


def raise_preempted(name: str) -> None:
    """Raises Preempted for a signal that came while no step was being trained, so that there is nothing to save."""
    raise _preempted(name)


def _preempted(name: str) -> Preempted:
    return preempted_by(name, ", which came when no step was being trained, so no new checkpoint was written")


def _import_and_train(config: Config, folder: Path, overrides: Sequence[str]) -> int:
    leave = partial(_leave, folder) if is_command() else raise_preempted
    with on_preemption(leave), activity("loading PyTorch and Lightning"):
        from kleiber.training.lightning import import_lightning

        import_lightning()
        from kleiber.runs.run import train

    return train(config, folder, overrides)


def print_error(error: Exception) -> int:
    """Prints an error and returns its exit code: 2 if the user can correct it, and 1 otherwise.

    It is one line, but a traceback where the program is wrong.
    """
    if is_user_error(error) and "HYDRA_FULL_ERROR" not in os.environ:
        print_line(f"kleiber: {error}", err=True)
        return ExitCode.BAD_INPUT
    text = str(error) if isinstance(error, RankLost) else describe(error)
    if text is not None and "HYDRA_FULL_ERROR" not in os.environ:
        print_line(f"kleiber: {text}", err=True)
        return ExitCode.FAILED
    print_traceback(error)
    return ExitCode.BAD_INPUT if is_user_error(error) else ExitCode.FAILED


def is_user_error(error: Exception) -> bool:
    """Whether the user can correct an error.

    True for a ConfigError, and for a ValueError, FileNotFoundError or ConnectionError that kleiber itself raised.
    """
    if isinstance(error, ConfigError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    raised_by_kleiber = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    return raised_by_kleiber and isinstance(error, ValueError | FileNotFoundError | ConnectionError)


def main(argv: list[str]) -> int:
    """Runs the run in the folder that is the first argument, as a rank or a cell; returns the exit code."""
    folder = Path(argv[0])
    if CELL_VARIABLE in os.environ:
        end_with_parent(signal.SIGKILL)
    redirect_rank_output(folder)
    return run(read_config(folder), folder, read_overrides(folder))


if __name__ == "__main__":
    exit_on_signals()
    exit_with(main(sys.argv[1:]))
