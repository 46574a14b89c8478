"""One run in this process, from a resolved config and its folder to an exit code. Its output also goes to log.txt.

`python -m kleiber.launch.process FOLDER` runs a rank, or a cell of a sweep. It reads the resolved config that its
parent process has checked and written, so the config is not composed twice, and a cell cannot start the sweep again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from omegaconf import OmegaConf

from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status, on_preemption
from kleiber.launch.ranks import CELL, end_with_parent, rank, record_failure, redirect_rank_output
from kleiber.records.folder import read_config, read_overrides, write_final_status
from kleiber.records.lock import locked
from kleiber.types import Config

PACKAGE = str(Path(__file__).resolve().parents[1])


class Tee:
    """A text stream that writes to both `stream` and `copy`, and otherwise behaves like `stream`."""

    def __init__(self, stream: IO[str], copy: IO[str]) -> None:
        self.stream, self.copy = stream, copy

    def write(self, text: str) -> int:
        """Writes the text; in the copy every state of a progress line becomes a line."""
        self.copy.write(text.replace("\r", "\n"))
        self.copy.flush()
        return self.stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextmanager
def copy_output(folder: Path) -> Iterator[None]:
    """Copies Python's stdout and stderr to `folder`/log.txt, unless they are redirected to that file already."""
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


def run(config: Config, folder: Path, overrides: Sequence[str]) -> int:
    """Trains a run and returns the exit code. Every rank calls it; only rank 0 locks the folder and writes to it."""
    writes = rank() == 0
    code, error = ExitCode.FAILED, None
    try:
        with locked(folder) if writes else nullcontext(), copy_output(folder) if writes else nullcontext():
            code, error = _train_and_report(config, folder, overrides)
            if writes and code == ExitCode.INTERRUPTED:
                write_final_status(folder, Status.KILLED, "interrupted (Ctrl-C)")
            elif writes and code == ExitCode.PREEMPTED:
                write_final_status(folder, Status.PREEMPTED, str(error))
            elif writes and error is not None:
                write_final_status(folder, Status.FAILED, f"{type(error).__name__}: {error}")
    except ConfigError as in_use:  # another process has locked the folder
        return print_error(in_use)
    except Preempted:  # by a signal after the run wrote its final status
        return ExitCode.PREEMPTED
    if code:
        record_failure(code, error)
    return code


def _train_and_report(config: Config, folder: Path, overrides: Sequence[str]) -> tuple[int, BaseException | None]:
    """Trains a run, prints its error if there is one, and returns the exit code and the error.

    Lightning turns Ctrl-C into SystemExit, so the signal itself is recorded. Preemption outside of training steps is
    handled here; the callback `Preempt` handles it within them.
    """
    with record_interrupts() as interrupted, on_preemption(raise_preempted):
        try:
            return _train(config, folder, overrides), None
        except Exception as error:
            return print_error(error), error
        except Preempted as reason:
            print(f"preempted by {reason}; run the same command again to continue {folder}", file=sys.stderr)
            return ExitCode.PREEMPTED, reason
        except BaseException:
            if not interrupted:
                raise
            print(f"interrupted; run the same command again to continue {folder}", file=sys.stderr)
            return ExitCode.INTERRUPTED, None


@contextmanager
def record_interrupts() -> Iterator[list[int]]:
    """Yields a list to which every SIGINT is appended. SIGINT still raises KeyboardInterrupt."""
    received: list[int] = []

    def record(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGINT, record)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def raise_preempted(name: str) -> None:
    """Raises Preempted for a signal that came while no step was being trained, so that there is nothing to save."""
    raise Preempted(f"signal {name}, which came when no step was being trained, so no new checkpoint was written")


def _train(config: Config, folder: Path, overrides: Sequence[str]) -> int:
    from kleiber.training.lightning import import_lightning

    import_lightning()
    from kleiber.runs.run import train

    return train(OmegaConf.create(dict(config)), folder, list(overrides))


def print_error(error: Exception) -> int:
    """Prints an error and returns its exit code: one line and 2 if the user can correct it, else a traceback and 1."""
    if is_user_error(error) and "HYDRA_FULL_ERROR" not in os.environ:
        print(f"kleiber: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    traceback.print_exception(error)
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
    if CELL in os.environ:
        end_with_parent(signal.SIGKILL)
    redirect_rank_output(folder)
    return run(read_config(folder), folder, read_overrides(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
