"""One run in this process, from a resolved config and its folder to an exit code; its output also goes to log.txt.

`python -m kleiber.launch.process FOLDER` is a rank or a cell. Such a process reads the resolved config that its parent
checked and wrote, so nothing is composed twice, and a study file that asks for a sweep cannot sweep again.
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
from typing import IO, Any

from omegaconf import OmegaConf

from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status, on_preemption
from kleiber.launch.ranks import CELL, join_parent, rank, record_failure, silence
from kleiber.records.folder import locked, read_config, read_overrides, settle
from kleiber.types import Config

PACKAGE = str(Path(__file__).resolve().parents[1])


class Tee:
    """A text stream that writes to `stream` and to `copy`, and behaves like `stream` in everything else."""

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
    """Copies stdout and stderr of Python to `folder`/log.txt, unless they are redirected there already."""
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
    """Trains a run and returns the exit code. Every rank calls it; rank 0 alone locks and writes the folder."""
    writes = rank() == 0
    code, error = ExitCode.FAILED, None
    try:
        with locked(folder) if writes else nullcontext(), logged(folder) if writes else nullcontext():
            code, error = _outcome(config, folder, overrides)
            if writes and code == ExitCode.INTERRUPTED:
                settle(folder, Status.KILLED, "interrupted (Ctrl-C)")
            elif writes and code == ExitCode.PREEMPTED:
                settle(folder, Status.PREEMPTED, str(error))
            elif writes and error is not None:
                settle(folder, Status.FAILED, f"{type(error).__name__}: {error}")
    except ConfigError as refused:  # the folder is in use
        return report(refused)
    except Preempted:  # by a signal that came after the run had written its final status
        return ExitCode.PREEMPTED
    if code:
        record_failure(code, error)
    return code


def _outcome(config: Config, folder: Path, overrides: Sequence[str]) -> tuple[int, BaseException | None]:
    """The exit code, and the error behind it. Lightning turns Ctrl-C into SystemExit, so the signal itself is noted.

    Handles preemption outside of training steps; the callback `Preempt` handles it within them.
    """
    with noting_interrupt() as interrupted, on_preemption(raise_preempted):
        try:
            return _train(config, folder, overrides), None
        except Exception as error:
            return report(error), error
        except Preempted as reason:
            print(f"preempted by {reason}; the same command continues in {folder}", file=sys.stderr)
            return ExitCode.PREEMPTED, reason
        except BaseException:
            if not interrupted:
                raise
            print(f"interrupted; {folder} keeps its checkpoints, and the same command continues", file=sys.stderr)
            return ExitCode.INTERRUPTED, None


@contextmanager
def noting_interrupt() -> Iterator[list[int]]:
    """Yields a list that is empty until SIGINT comes; SIGINT raises KeyboardInterrupt as usual."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def raise_preempted(name: str) -> None:
    raise Preempted(f"{name} outside of training: earlier checkpoints remain")


def _train(config: Config, folder: Path, overrides: Sequence[str]) -> int:
    from kleiber.training.lightning import import_lightning

    import_lightning()
    from kleiber.runs.run import train

    return train(OmegaConf.create(dict(config)), folder, list(overrides))


def report(error: Exception) -> int:
    """Prints one line for an error that the user can correct (exit code 2), a traceback for any other (1)."""
    if is_users(error) and "HYDRA_FULL_ERROR" not in os.environ:
        print(f"kleiber: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    traceback.print_exception(error)
    return ExitCode.BAD_INPUT if is_users(error) else ExitCode.FAILED


def is_users(error: Exception) -> bool:
    """Whether the user can correct it: a ConfigError, or a ValueError, missing file or server that kleiber raised."""
    if isinstance(error, ConfigError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    return ours and isinstance(error, ValueError | FileNotFoundError | ConnectionError)


def main(argv: list[str]) -> int:
    """Runs the folder that is the first argument, as a rank or a cell; returns the exit code."""
    folder = Path(argv[0])
    if CELL in os.environ:
        join_parent(signal.SIGKILL)
    silence(folder)
    return run(read_config(folder), folder, read_overrides(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
