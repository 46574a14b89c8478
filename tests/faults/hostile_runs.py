"""Commands on hostile folders, in forks with limits, and why their ends are failures."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.hostile import make_hostile, make_study

MORE_BYTES = 300 * 2**20  # that a command may take beyond those on an ordinary folder
MEMORY_BYTES, SECONDS = 6 * 2**30, 240  # at which a command is ended


@dataclass
class Ended:
    """How a command ended: its exit code (minus the signal that ended it), output, processor seconds, bytes."""

    code: int
    output: str
    seconds: float
    bytes: int


def commands(study: Path) -> dict[str, list[str]]:
    """The commands that read a folder of runs without PyTorch, by name."""
    homes = [str(path.parent) for path in sorted(study.glob("*/config.yaml"))] or [str(study / "gone")]
    law = ["--law", "chinchilla", "--bootstrap", "0"]
    return {
        "runs": ["runs", str(study)],
        "runs --json": ["runs", str(study), "--json"],
        "runs --columns": ["runs", str(study), "--columns", "run,status,loss,model.depth"],
        "report": ["report", str(study)],
        "plot": ["plot", str(study)],
        "plot a run": ["plot", homes[0]],
        "diff": ["diff", homes[0], homes[-1]],
        "compare": ["compare", str(study), "--arm", "model.depth"],
        "clean": ["clean", str(study), "--yes"],
        "fit a folder": ["fit", str(study), *law],
        "fit a table": ["fit", str(next(iter(sorted(study.glob("table.*"), reverse=True)), study / "table.csv")), *law],
    }


def run_limited(work: Callable[[], int], log: Path) -> Ended:
    """Runs `work` in a fork, with limits on its time and memory."""
    memory = log.with_suffix(".memory")
    process = os.fork()
    if process == 0:
        code, at_start = 99, 0
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            Path("/proc/self/clear_refs").write_text("5")  # the highest memory is counted from here on
            at_start = used("VmRSS")
            signal.alarm(SECONDS)
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(file, number)
            # pytest has put files of its own in their places.
            warnings.resetwarnings()  # a user's are printed, pytest's are errors
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
            code = work()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            memory.write_text(str(used("VmHWM") - at_start))
            os._exit(code)
    _, status, usage = os.wait4(process, 0)
    taken = int(memory.read_text()) if memory.exists() else 0
    memory.unlink(missing_ok=True)
    output, seconds = log.read_bytes().decode("utf-8", "replace"), usage.ru_utime + usage.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), output, seconds, taken)


def used(field: str) -> int:
    """The bytes of memory of this process: VmRSS now, VmHWM at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder and what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def failure(ended: Ended, ordinary: Ended, untouched: bool, allowed: tuple[int, ...] = (0, 2, 3, 5)) -> str:
    """What a command did that none may do; "" for nothing.

    ordinary   how the same command ended on a folder without an attack
    untouched  whether the files elsewhere are as they were
    """
    if not untouched:
        return "changed a file elsewhere"
    if ended.code not in allowed:
        return f"exit code {ended.code}"
    if "Traceback" in ended.output:
        return "traceback"
    if ended.code == 2 and not ended.output.strip():
        return "refused without a word"
    if any((ord(character) < 32 and character not in "\n\t") or 127 <= ord(character) < 160 or character == "\u202e"
           for character in ended.output):  # fmt: skip
        return "an escape reached the terminal"
    if ended.bytes > ordinary.bytes + MORE_BYTES:
        return f"{(ended.bytes - ordinary.bytes) >> 20} MiB more than on an ordinary folder"
    if ended.seconds > ordinary.seconds * 5 + 20:
        return f"{ended.seconds:.1f} s of a processor"
    return ""


def attack(home: Path, seed: int, study: Path, ordinary: dict[str, Ended]) -> tuple[str, str, Ended, str]:
    """Makes a copy of a study hostile, and runs a command on it; returns what was done, the command, and the failure.

    ordinary  how commands end on the study itself, by name; filled here
    """
    from kleiber.launch.cli import main

    place, outside, log = home / "place" / study.name, home / "outside", home / "log.txt"
    for folder in (place.parent, outside):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(study, place, symlinks=True)
    what = make_hostile(place, outside, seed)
    rng = random.Random(seed + 1)
    name = rng.choice(["fit a table"] * 3 + ["runs"] if what.startswith("table.") else sorted(commands(place)))
    if name not in ordinary:
        copy = home / "ordinary" / study.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(study, copy, symlinks=True)
        ordinary[name] = run_limited(lambda: main(commands(copy)[name]), log)
    before = contents(outside)
    ended = run_limited(lambda: main(commands(place)[name]), log)
    return what, name, ended, failure(ended, ordinary[name], contents(outside) == before)


def run_attacks(home: Path, seeds: range, until: float = float("inf")) -> list[str]:
    """Attacks with each seed; returns what failed."""
    study = make_study(home / "template")
    ordinary: dict[str, Ended] = {}
    failures = []
    for seed in seeds:
        if time.monotonic() > until:
            break
        what, name, ended, reason = attack(home, seed, study, ordinary)
        if reason:
            failures.append(f"seed {seed}: {name}: {what}: {reason}\n{ended.output[-1500:]}")
    return failures


if __name__ == "__main__":
    import tempfile

    first, last = int(sys.argv[1]), int(sys.argv[2])
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as scratch:
        for text in run_attacks(Path(scratch), range(first, last)):
            print(text)
