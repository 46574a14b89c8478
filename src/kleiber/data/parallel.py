"""Applies a function to many items in worker processes, with the results in the order of the items.

`python -m kleiber.data.parallel` is a worker: it reads a pickled function and then items from standard input, and
writes a pickled result for each. It shares nothing with this process, so threads and locks here do it no harm, and it
ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, TypeVar, cast

from kleiber.config.child_process import python_command, safe_environment
from kleiber.config.errors import SIGNALS, signals_held

Item = TypeVar("Item")
Result = TypeVar("Result")

HERE = 12  # the first items are done by this process, so that little work starts no workers
AHEAD = 2  # items that each worker has at a time: one at work and one to go on with
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # a worker uses one core


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields function(item) for every item, in order, computed by this process or by `workers` processes in turn.

    Function, items and results are pickled. An error of the function is raised here. The workers are killed when the
    caller stops reading. Raises RuntimeError for a worker that died.
    """
    items = iter(items)
    yield from map(function, itertools.islice(items, HERE if workers > 1 else None))
    first = list(itertools.islice(items, 1))
    if first:
        yield from map_in_workers(function, itertools.chain(first, items), workers)


def map_in_workers(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yields function(item) for every item, in order, computed by processes in turn; otherwise as `ordered_map`."""
    pool = [_start_worker(function) for _ in range(workers)]
    pending: list[int] = []
    try:
        turns = itertools.cycle(range(workers))
        for item, turn in zip(items, turns, strict=False):
            _send(pool[turn], item)
            pending.append(turn)
            if len(pending) >= AHEAD * workers:
                yield cast(Result, _receive(pool[pending.pop(0)]))
        while pending:
            yield cast(Result, _receive(pool[pending.pop(0)]))
    finally:
        for worker in pool:
            worker.kill()
        for worker in pool:
            with contextlib.suppress(BrokenPipeError):
                worker.communicate()


def _start_worker(function: object) -> subprocess.Popen[bytes]:
    environment = {**safe_environment(), **ENVIRONMENT}
    command, pipe = python_command(__name__), subprocess.PIPE
    with signals_held():
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
    _send(worker, function)
    return worker


def _send(worker: subprocess.Popen[bytes], value: object) -> None:
    assert worker.stdin is not None
    try:
        pickle.dump(value, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
    except BrokenPipeError:
        raise _died(worker) from None


def _receive(worker: subprocess.Popen[bytes]) -> object:
    assert worker.stdout is not None
    try:
        succeeded, result = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):  # it may die before an answer or within one
        raise _died(worker) from None
    if not succeeded:
        raise result
    return result


def _died(worker: subprocess.Popen[bytes]) -> RuntimeError:
    return RuntimeError(f"a process that prepares data died with exit code {worker.wait()}: run the command again")


def serve(tasks: IO[bytes], results: IO[bytes]) -> None:
    """Answers each item that comes in with whether the function succeeded, and its result or its error."""
    function, items, answers = pickle.load(tasks), queue.SimpleQueue(), queue.SimpleQueue()

    def read() -> None:
        """Takes items while the function is busy, so that the sender never waits for a full pipe."""
        with contextlib.suppress(EOFError):
            while True:
                items.put((True, pickle.load(tasks)))
        items.put((False, None))

    def write() -> None:
        """Writes answers while the function is busy with the next item, so that it never waits for the reader."""
        with contextlib.suppress(BrokenPipeError):
            while answer := answers.get():
                results.write(answer)
                results.flush()

    threading.Thread(target=read, daemon=True).start()
    writer = threading.Thread(target=write)
    writer.start()
    while True:
        present, item = items.get()
        if not present:
            break
        try:
            answer = (True, function(item))
        except Exception as error:
            answer = (False, error)
        answers.put(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
    answers.put(b"")
    writer.join()


def main() -> None:
    """Serves until standard input ends. What the function prints goes to standard error."""
    for number in SIGNALS:  # the parent gets them too, and kills the workers
        signal.signal(number, signal.SIG_IGN)
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if "KLEIBER_EXTENSIONS" in os.environ:  # the function may be that of a package in the working folder
        from kleiber.config.extensions import extension_packages

        extension_packages()
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, results)


if __name__ == "__main__":
    main()
