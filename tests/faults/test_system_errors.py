"""Calls of the system that fail: the error is named with the file and advice, nothing is lost. FAULTS 123."""

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from faults.kill_kinds import facts
from small_run import TINY

from kleiber.config.system_errors import ADVICE
from kleiber.launch.cli import main as kleiber
from kleiber.launch.main import main

RUN = ["budget.steps=8", "trainer.max_steps=8", "callbacks.checkpoints.every=2", "callbacks.log.every=1"]
CALLS = {"fsync": os.fsync, "replace": os.replace, "rename": os.rename, "flock": fcntl.flock}
NUMBERS = (errno.EIO, errno.ESTALE, errno.EINVAL, errno.ENOLCK)


def patched(name: str, act: Callable[[int], None]) -> None:
    """Calls `act` with the number of the call before each call of a system function by kleiber."""
    module, original, calls = (fcntl if name == "flock" else os), CALLS[name], []

    def call(*arguments, **keywords):
        calls.append(1)
        act(len(calls))
        return original(*arguments, **keywords)

    setattr(module, name, call)


def in_fork(work: Callable[[], int], log: Path) -> tuple[int, str]:
    """The exit code of `work` in a fork, and what it printed."""
    pid = os.fork()
    if pid == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(handle, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        code = 99
        try:
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), log.read_text()


def count_calls(name: str, work: Callable[[], int], home: Path) -> int:
    """How often a command calls a function."""

    def counted() -> int:
        calls: list[int] = []
        patched(name, calls.append)
        assert work() == 0
        (home / "calls").write_text(str(len(calls)))
        return 0

    assert in_fork(counted, home / "count.log")[0] == 0, (home / "count.log").read_text()
    return int((home / "calls").read_text())


def fail(name: str, number: int, calls: Sequence[int], work: Callable[[], int], log: Path) -> tuple[int, str]:
    """The end of a command of which some calls of a function fail with an error number."""

    def failing() -> int:
        def act(call: int) -> None:
            if call in calls:
                raise OSError(number, os.strerror(number))

        patched(name, act)
        return work()

    return in_fork(failing, log)


def assert_named(code: int, printed: str, number: int, home: Path) -> None:
    """The command ended with 1 or 2, and named the error, a file and the fix; or it went on, and said so."""
    assert code in (0, 1, 2) and "Traceback" not in printed, printed
    if code or os.strerror(number).lower() in printed.lower():
        assert os.strerror(number).lower() in printed.lower() and str(home) in printed, printed
    if code:
        assert ADVICE[number] in printed or "KLEIBER_ROOT" in printed, printed


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_run_whose_system_calls_fail_says_so_and_goes_on_as_if_nothing_had_been(
    tmp_path, once, monkeypatch, name, number
):
    unbroken = facts(once(*RUN).parents[1])
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))

    def run(root: str) -> Callable[[], int]:
        return lambda: main([*TINY, f"root={tmp_path / root}", *RUN])

    total = count_calls(name, run("counted"), tmp_path)
    for call in sorted({1, total // 2, total - 1, total} - {0, -1}):
        code, printed = fail(name, number, [call], run("failed"), tmp_path / "log")
        assert_named(code, printed, number, tmp_path)
    code, printed = in_fork(run("failed"), tmp_path / "log")
    assert code == 0, printed
    assert facts(tmp_path / "failed") == unbroken


COMMANDS = {
    "report": ["report", "{study}"],
    "fit": ["fit", "{table}", "--law", "power", "--map", "C=x,L=y", "--bootstrap", "0", "--json", "{home}/law.json"],
    "eval": ["eval", "{run}", "--evals", "perplexity", "--json", "{home}/scores.json"],
    "export": ["export", "{run}", "{home}/exported"],
    "clean": ["clean", "{study}", "--yes"],
}


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_system_calls_fail_says_so(tmp_path, once, cache_dir, command):
    run = once(*RUN)
    table = tmp_path / "table.csv"
    table.write_text("x,y\n" + "".join(f"{10**n},{10 - n}\n" for n in range(6)))
    places = {"study": run.parent, "run": run, "table": table, "home": tmp_path}
    words = [word.format(**places) for word in COMMANDS[command]]
    for name, number in zip(CALLS, NUMBERS, strict=True):
        shutil.rmtree(tmp_path / "exported", ignore_errors=True)
        total = count_calls(name, lambda: int(kleiber(words) not in (0, 3)), tmp_path)
        for call in sorted({1, total} - {0}):
            shutil.rmtree(tmp_path / "exported", ignore_errors=True)
            code, printed = fail(name, number, [call], lambda: kleiber(words), tmp_path / "log")
            assert code in (0, 1, 2, 3) and "Traceback" not in printed, printed
            assert code in (0, 3) or os.strerror(number).lower() in printed.lower(), printed
