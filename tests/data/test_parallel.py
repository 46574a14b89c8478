"""Worker processes give the results of this process, in order, and their errors."""

from __future__ import annotations

import fcntl
import operator
import os
import pickle
import signal
import stat
import sys
from functools import partial
from pathlib import Path

import pytest

from kleiber.data import parallel
from kleiber.data.parallel import ordered_map


@pytest.fixture(autouse=True)
def all_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "HERE", 0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers find the functions of this file


@pytest.mark.process
def test_results_come_in_the_order_of_the_items_and_errors_are_raised() -> None:
    texts = [f"{number} " * 100_000 for number in range(8)]  # longer than a pipe is
    assert list(ordered_map(str.upper, iter(texts), workers=2)) == [text.upper() for text in texts]
    results = ordered_map(partial(operator.floordiv, 12), [1, 2, 3, 0, 5], workers=2)
    with pytest.raises(ZeroDivisionError):
        print([next(results) for _ in range(5)])


def leave_file(path: Path) -> bytes:
    """Returns what no pipe can hold."""
    path.touch()
    return bytes(1 << 21)


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_goes_on_while_its_result_is_not_read(tmp_path: Path) -> None:
    from processes import wait_for  # which the workers, who import this file, do not find

    paths = [tmp_path / str(number) for number in range(4)]
    results = ordered_map(leave_file, paths, workers=2)
    next(results)  # the second worker has done two items by itself, or waits for a reader of the first
    wait_for(paths[3].exists)
    assert len(list(results)) == 3


def die_within_an_answer(_: object) -> None:
    """Writes the beginning of an answer to the pipe of the results, and ends the process as the OOM killer does."""
    pipe = next(n for n in map(int, os.listdir("/proc/self/fd")) if n > 2 and is_written_pipe(n))
    os.write(pipe, pickle.dumps((True, bytes(1000)))[:100])
    os.kill(os.getpid(), signal.SIGKILL)


def is_written_pipe(number: int) -> bool:
    """Whether an open file of this process is the writing end of a pipe."""
    try:
        return stat.S_ISFIFO(os.fstat(number).st_mode) and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_WRONLY > 0
    except OSError:  # of the listing itself
        return False


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_is_killed_within_an_answer_is_named() -> None:
    with pytest.raises(RuntimeError, match="exit code -9: run the command again"):
        list(ordered_map(die_within_an_answer, [0] * 3, workers=2))


@pytest.mark.process
def test_a_worker_that_dies_is_named() -> None:
    with pytest.raises(RuntimeError, match="exit code 3: run the command again"):
        list(ordered_map(os._exit, [3] * 3, workers=2))
