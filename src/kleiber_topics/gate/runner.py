"""Runs a recipe once and reads its metric: a command line that prints it, or a run of kleiber."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kleiber.config import on_preemption, preempted_by, python_command, safe_environment
from kleiber.records import make_folder, open_to_append, read_bytes, read_json, read_runs, write_json
from kleiber.types import Json

Take = Literal["once", "last"]
TAKES: tuple[Take, ...] = ("once", "last")
MAX_OUTPUT = 2**26  # bytes
GRACE = 10.0  # seconds that a command has to end after SIGTERM
WAIT = 0.05
NOTE = "started.json"
NUMBER_GROUP = re.compile(r"(?<!\\)\((?!\?)[^()]*\)")
NOT_FINITE = r"([-+]?(?:nan|inf(?:inity)?))"


class RunFailed(Exception):
    """A command failed, hung, or printed no metric. The message says which and where its output is."""


@dataclass(frozen=True)
class Outcome:
    """What a run measured.

    value    the metric; nan or infinite for a run that diverged
    seconds  that it took
    """

    value: float
    seconds: float


def check_metric(pattern: str) -> None:
    """Raises ValueError for a pattern that is no regular expression with one group for the number."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"--metric {pattern!r} is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(
            f"--metric {pattern!r} must have one group in parentheses, the number, such as 'loss: ([0-9.]+)'"
        )


def read_metric(text: str, pattern: str, take: Take) -> float:
    """Returns the metric that a command printed; nan where it printed that in its place.

    Raises RunFailed where it is missing, no number, or printed several times and `take` is once.
    """
    numbers = re.findall(pattern, text, re.MULTILINE)
    if not numbers:
        unbounded = NUMBER_GROUP.sub(lambda _: NOT_FINITE, pattern, count=1)
        numbers = re.findall(unbounded, text, re.MULTILINE | re.IGNORECASE) if unbounded != pattern else []
    if not numbers:
        raise RunFailed(f"it printed nothing that matches --metric {pattern!r}")
    if take == "once" and len(numbers) > 1:
        raise RunFailed(
            f"it printed the metric {len(numbers)} times, and the stream reads it once: start a stream with --take last"
        )
    try:
        return float(numbers[-1])
    except ValueError:
        raise RunFailed(f"its metric {numbers[-1]!r} is not a number") from None


def run_command(
    command: str, folder: Path, home: Path, note: Json, pattern: str, take: Take, timeout: float | None,
    modules: Sequence[str] = (),
) -> Outcome:  # fmt: skip
    """Runs a command line and reads its metric.

    folder   in which it runs
    home     folder of the run, for its output
    note     what the run notes before it starts
    modules  folders from which Python imports before all others
    """
    started = time.monotonic()
    output = execute(command, folder, home, note, timeout, modules)
    return Outcome(read_metric(output, pattern, take), time.monotonic() - started)


def execute(
    command: str | Sequence[str], folder: Path, home: Path, note: Json, timeout: float | None,
    modules: Sequence[str] = (),
) -> str:  # fmt: skip
    """Runs a command to its end and returns what it printed.

    Raises RunFailed for an exit code other than 0 and after `timeout` seconds, and Preempted for a signal; its whole
    process group is ended in both cases.
    """
    make_folder(home)
    place = home / f"output-{sum(1 for _ in home.glob('output-*'))}.txt"
    write_json(home / NOTE, note)
    # What a user wrote runs as the user runs it.
    environment = {**os.environ} if isinstance(command, str) else safe_environment()
    if modules:
        environment["PYTHONPATH"] = os.pathsep.join([*modules, *filter(None, [os.environ.get("PYTHONPATH")])])
    with open_to_append(place) as output:
        process = subprocess.Popen(
            command, shell=isinstance(command, str), cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, env=environment,
        )  # fmt: skip
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with on_preemption(lambda _: None) as received:
            while process.poll() is None and not received and time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(WAIT)
        hung = process.poll() is None
        end_group(process)
    if received:
        raise preempted_by(received[0], "; the same command goes on")
    if hung:
        raise RunFailed(f"it ran for more than --timeout {timeout:g} s; what it printed is in {place}")
    if process.returncode:
        raise RunFailed(f"it ended with exit code {process.returncode}; what it printed is in {place}")
    return read_bytes(place, MAX_OUTPUT).decode("utf-8", errors="replace")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if number == signal.SIGTERM:
                continue
        if process.poll() is not None:
            return


def run_kleiber(
    overrides: Sequence[str], seed: int, folder: Path, home: Path, note: Json, measure: str, reserve: str,
    timeout: float | None, modules: Sequence[str] = (),
) -> Outcome:  # fmt: skip
    """Trains a run of kleiber and returns a metric of it; with `reserve`, its loss on other data.

    Raises RunFailed where the run fails or has no such metric.
    """
    started = time.monotonic()
    place = home.absolute() / "kleiber"
    command = [*python_command("kleiber", "train"), *overrides, f"seed={seed}", f"root={place}", "name=run"]
    execute(command, folder, home, note, timeout, modules)
    runs = read_runs(place)
    row = runs[0].row() if runs else {}
    value = row.get(measure)
    if not isinstance(value, float | int):
        names = ", ".join(sorted(name for name in row if "/" in name or name == "loss"))
        raise RunFailed(f"its run has no metric {measure}; it has {names}")
    if reserve:
        value = loss_on(runs[0].folder, reserve, folder, home, note, timeout, modules)
    return Outcome(float(value), time.monotonic() - started)


def loss_on(
    run: Path, data: str, folder: Path, home: Path, note: Json, timeout: float | None, modules: Sequence[str]
) -> float:
    """Returns the loss of a run on other data, by `kleiber eval`. Raises RunFailed where that fails."""
    out = home.absolute() / "reserve.json"
    words = [str(run.absolute()), "--evals", "perplexity", "--data", data, "--json", str(out)]
    execute([*python_command("kleiber", "eval"), *words], folder, home, note, timeout, modules)
    scores = read_json(out)["evals"]["perplexity"]
    (metrics,) = scores.values()
    return float(metrics["loss"]["value"])
