"""One start of a command that is hit by a signal, at a call of a function or at a time, in one of its processes."""

import importlib.util
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.kill_kinds import AIMS, Kind
from processes import alive, rank_of
from small_run import REPOSITORY

from kleiber.config.errors import exit_on_signals, signals_held
from kleiber.records.locks import holder, is_locked

LIMIT_SECONDS = 300.0  # of a start
LEFT_SECONDS = 60.0  # in which the other processes of a killed one end
STEPS, CHECKPOINT = (4, 8, 12, 16, 20), "*/*/stages/*/checkpoints/step-{:08d}"


@dataclass(frozen=True)
class Hit:
    """A signal, and when it comes.

    function, call  at which call of which function, in the first process
    after_s         seconds after the start, or after the checkpoint of `step` is there
    step            None: `after_s` counts from the start
    stage_begun     whether `after_s` counts from the begin of the first stage
    """

    aim: str
    signal: signal.Signals
    function: str = ""
    call: int = 0
    after_s: float = 0.0
    step: int | None = None
    stage_begun: bool = False


class Start:
    """Starts a command in a fork; `end` waits for it.

    calls     how often each function of AIMS was called, where the start is not hit
    first_s   seconds to the first stage, or, where other processes train, to the first checkpoint
    total_s   seconds from there to the end
    victim    which process was hit: the first one, a rank, the agent of ranks, or a cell
    """

    def __init__(self, kind: Kind, command: list[str], root: Path, hit: Hit | None, cache: str | None) -> None:
        self.kind, self.root, self.hit = kind, root, hit
        self.log = root.with_name(f"{root.name}.log")
        self.count_file = root.with_name(f"{root.name}.calls")
        self.shared = mmap.mmap(-1, 2)
        self.calls: Counter[str] = Counter()
        self.first_s = self.total_s = 0.0
        self.was_hit, self.victim, self.rank, self.left = False, "", "", ""
        self.began = time.monotonic()
        sys.stdout.flush()
        with signals_held():  # the fork begins with the handlers of a command
            self.pid = os.fork()
            if self.pid == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                exit_on_signals()
        if self.pid == 0:
            try:
                os._exit(self.work(command, cache))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(99)

    def work(self, command: list[str], cache: str | None) -> int:
        """Runs the command in the fork; returns its exit code."""
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        if cache is not None:
            os.environ["KLEIBER_CACHE"] = cache
        if self.kind.entry:
            os.execv(sys.executable, [sys.executable, str(REPOSITORY / "train.py"), *command])
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        for name, value in self.kind.constants.items():
            module, constant = name.rsplit(".", 1)
            setattr(importlib.import_module(module), constant, value)
        self.instrument()
        from kleiber.launch.main import main

        code = main(command)
        if self.hit is None:
            self.count_file.write_text(json.dumps(self.calls))
        sys.stdout.flush()
        return code

    def instrument(self) -> None:
        """Lets functions of the fork hit it, or count their calls."""
        wrap("kleiber.runs.stage.run_stage", self.enter)
        if self.hit is None and not self.kind.in_processes:
            for name in {name for names in AIMS.values() for name in names}:
                wrap(name, lambda name=name: self.calls.update([name]))
        elif self.hit is not None and self.hit.function:
            wrap(self.hit.function, self.strike)

    def enter(self) -> None:
        """Notes that a stage has begun."""
        self.shared[0] = 1

    def strike(self) -> None:
        """Sends the signal to this process at the call that is chosen."""
        assert self.hit is not None
        self.calls.update([self.hit.function])
        if self.calls[self.hit.function] == self.hit.call:
            self.shared[1] = 1
            os.kill(os.getpid(), self.hit.signal)

    def end(self) -> int:
        """Waits for the end, hits the command where the hit has a time, and returns the exit code.

        That is minus the signal by which the process died.
        """
        if self.hit is not None and not self.hit.function:
            self.hit_in_time()
        else:
            self.wait_until(self.has_begun)
            self.first_s = time.monotonic() - self.began
        if not self.wait_until(lambda: False):
            os.kill(self.pid, signal.SIGKILL)
            self.left = "it does not end; "
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.total_s = time.monotonic() - self.began - self.first_s
        self.was_hit = self.was_hit or bool(self.shared[1])
        if self.was_hit and self.hit is not None and self.hit.function:
            self.victim = "first process"
        until = time.monotonic() + LEFT_SECONDS
        while (others := self.others()) and time.monotonic() < until:
            time.sleep(0.05)
        self.left += f"processes stay: {others}; " if others else ""
        if self.hit is None and self.count_file.is_file():
            self.calls = Counter(json.loads(self.count_file.read_text()))
        return code

    def has_begun(self) -> bool:
        """Whether the first stage has begun, or, where other processes train, its first checkpoint is there."""
        if self.kind.in_processes or self.kind.entry:
            return any(self.root.glob("*/*/stages/*/checkpoints/step-????????"))
        return bool(self.shared[0])

    def hit_in_time(self) -> None:
        """Waits for the time of the hit, and sends the signal, unless the command has ended."""
        assert self.hit is not None
        if self.kind.entry and self.hit.step is None:
            self.wait_until(lambda: self.pid in alive(self.root) and catches(self.pid, signal.SIGTERM))
        elif self.hit.stage_begun:
            self.wait_until(self.has_begun)
        elif self.hit.step is not None:
            name = CHECKPOINT.format(self.hit.step)
            self.wait_until(lambda: any(self.root.glob(name)))
        self.wait_until(lambda: False, self.hit.after_s)
        if self.has_ended():
            return
        victim = self.choose_victim()
        with suppress(ProcessLookupError):
            os.kill(victim, self.hit.signal)
            self.was_hit = True

    def choose_victim(self) -> int:
        """The process to hit: for SIGKILL any that trains, for other signals the first one."""
        victims = {self.pid: "first process"}
        if self.kind.in_processes and self.hit is not None and self.hit.signal == signal.SIGKILL:
            for pid, line in alive(self.root).items():
                if "kleiber.launch.ranks" in line:
                    victims[pid] = "agent"
                elif "kleiber.launch.process" in line:
                    victims[pid] = "rank"
            for pid in self.lock_holders():
                victims.setdefault(pid, "cell")
        random.seed(f"{self.root}{self.hit}")
        pid = random.choice(sorted(victims))
        self.victim = victims[pid]
        if self.victim == "rank":
            with suppress(OSError):
                self.rank = rank_of(pid) or ""
        return pid

    def lock_holders(self) -> set[int]:
        """The processes that hold locks of runs."""
        folders = [path.parent for path in self.root.glob("*/*/.lock")]
        holders = [holder(folder).split()[-1] for folder in folders if is_locked(folder)]
        return {int(pid) for pid in holders if pid.isdigit()} - {os.getpid()}

    def others(self) -> dict[int, str]:
        """Processes of the command that live, other than the first."""
        named = {pid: line for pid, line in alive(self.root).items() if "kill_campaign" not in line}
        return named | {pid: "holds a lock" for pid in self.lock_holders() if pid != self.pid}

    def wait_until(self, condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> bool:
        """Waits until the condition holds, the command has ended or the seconds are over; False for the last of it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition() or self.has_ended():
                return True
            time.sleep(0.002)
        return False

    def has_ended(self) -> bool:
        """Whether the first process has ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def timed_hit(self, aim: str, number: signal.Signals, rng: random.Random, root: Path) -> Hit:
        """A hit of a start in a root, at a random time of this unbroken one or at a checkpoint that is yet to come."""
        if aim == "early" or (self.kind.entry and rng.random() < 0.3):
            return Hit(aim, number, after_s=rng.uniform(0, self.first_s))
        if self.kind.in_processes or self.kind.entry:
            step = STEPS[-1] if aim == "late" else rng.choice(STEPS)
            if any(root.glob(CHECKPOINT.format(step))):
                return Hit(aim, number, after_s=rng.uniform(0, self.first_s + self.total_s))
            return Hit(aim, number, after_s=rng.uniform(0, 0.3), step=step)
        return Hit(aim, number, after_s=rng.uniform(0, self.total_s), stage_begun=True)

    def output(self) -> str:
        """What the command printed."""
        return self.log.read_text(errors="replace")

    def failure(self, code: int) -> str:
        """Why the end after the hit is wrong; "" where it is right."""
        assert self.hit is not None
        expected = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGKILL: -9}[self.hit.signal]
        if self.victim not in ("first process", ""):
            expected = 4 if self.is_sweep() else 1
        problems = [self.left] if self.left else []
        if code != expected:
            problems.append(f"exit code {code}, not {expected}; ")
        if "Traceback" in self.output() or "gloo" in self.output():
            problems.append("a traceback or the text of a library; ")
        if self.victim == "rank" and "SIGKILL" not in self.output():
            problems.append(f"it does not say that rank {self.rank} was killed; ")
        return "".join(problems)

    def is_sweep(self) -> bool:
        """Whether the command is a sweep."""
        return any(text == "-m" or text.startswith("study=") for text in self.kind.overrides)


def all_finished(root: Path) -> bool:
    """Whether all runs of a root are finished, of which there are some."""
    summaries = list(root.glob("*/*/summary.json"))
    return bool(summaries) and all('"status": "finished",\n "error"' in path.read_text() for path in summaries)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


def wrap(target: str, before: Callable[[], object]) -> None:
    """Calls `before` whenever a function or method is called, which is "module.function" or "module.Class.method"."""
    parts = target.split(".")
    number = next(number for number in range(len(parts) - 1, 0, -1) if is_module(".".join(parts[:number])))
    owner: Any = importlib.import_module(".".join(parts[:number]))
    for name in parts[number:-1]:
        owner = getattr(owner, name)
    original = getattr(owner, parts[-1])

    def around(*arguments: Any, **keywords: Any) -> Any:
        before()
        return original(*arguments, **keywords)

    setattr(owner, parts[-1], around)


def is_module(name: str) -> bool:
    """Whether a module has this name."""
    with suppress(ImportError):
        return importlib.util.find_spec(name) is not None
    return False
