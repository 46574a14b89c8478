"""What a run prints goes to its log.txt as well as to the console. Python's streams only: not what C code writes.

One run, from a composed config and its folder to an exit code; `python -m kleiber.launch.process FOLDER` is a
rank or a cell.

A process that kleiber starts reads the resolved config that its parent checked and wrote, so nothing is composed twice
and a study file that asks for a sweep cannot sweep again. Exit codes: 0 done, 1 failed, 2 bad input, 75 preempted,
130 Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from kleiber.config.errors import ConfigError
from kleiber.config.signals import PREEMPTED, Preempted, heeding
from kleiber.launch.ranks import CELL, join_parent, rank, record_failure, silence
from kleiber.records.folder import locked, read_config, read_overrides, settle


class Tee:
    """A text stream that writes to two places and is, in all else, the first."""

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
    """Copies stdout and stderr to `folder`/log.txt, unless that is where they go already."""
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


FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
PACKAGE = str(Path(__file__).resolve().parents[1])


def run(config: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> int:
    """Trains and returns the exit code. Every rank comes here; rank 0 alone holds the folder."""
    writes = rank() == 0
    code, error = FAILED, None
    try:
        with locked(folder) if writes else nullcontext(), logged(folder) if writes else nullcontext():
            code, error = _outcome(config, folder, overrides)
            if writes and code == INTERRUPTED:
                settle(folder, "killed", "interrupted (Ctrl-C)")
            elif writes and code == PREEMPTED:
                settle(folder, "preempted", str(error))
            elif writes and error is not None:
                settle(folder, "failed", f"{type(error).__name__}: {error}")
    except ConfigError as refused:  # the folder is in use
        return report(refused)
    except Preempted:  # by a signal that came when the run had had its last word
        return PREEMPTED
    if code:
        record_failure(code, error)
    return code


def _outcome(config: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> tuple[int, BaseException | None]:
    """The exit code, and the error behind it. Lightning turns Ctrl-C into SystemExit, so the signal itself is noted.

    A signal that asks for room is heeded here wherever no step is being trained: `Preempt` heeds it there.
    """
    with noting_interrupt() as interrupted, heeding(make_room):
        try:
            return _train(config, folder, overrides), None
        except Exception as error:
            return report(error), error
        except Preempted as reason:
            print(f"preempted by {reason}; the same command goes on in {folder}", file=sys.stderr)
            return PREEMPTED, reason
        except BaseException:
            if not interrupted:
                raise
            print(f"interrupted; {folder} keeps what was finished, and the same command goes on", file=sys.stderr)
            return INTERRUPTED, None


@contextmanager
def noting_interrupt() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGINT has come; KeyboardInterrupt is raised as ever."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def make_room(name: str) -> None:
    raise Preempted(f"{name} outside of training: what was saved before stays")


def _train(config: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> int:
    from kleiber.training.lightning import import_lightning

    import_lightning()
    from kleiber.runs.run import train

    return train(OmegaConf.create(dict(config)), folder, list(overrides))


def report(error: Exception) -> int:
    """One line for what the user can mend (2), a traceback for anything else (1)."""
    if is_users(error) and "HYDRA_FULL_ERROR" not in os.environ:
        print(f"kleiber: {error}", file=sys.stderr)
        return BAD_INPUT
    traceback.print_exception(error)
    return BAD_INPUT if is_users(error) else FAILED


def is_users(error: Exception) -> bool:
    """Whether we raised it for a user to read: a ValueError, or a missing file or server, from a line of ours."""
    if isinstance(error, ConfigError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    return ours and isinstance(error, ValueError | FileNotFoundError | ConnectionError)


def main(argv: list[str]) -> int:
    folder = Path(argv[0])
    if CELL in os.environ:
        join_parent(signal.SIGKILL)
    silence(folder)
    return run(read_config(folder), folder, read_overrides(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
