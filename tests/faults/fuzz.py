"""A standing attack: random configs, random damage in run folders, random tables; every end must be explained.

configs  random choices of the groups and random values of their keys: trains a step, or is refused with exit code 2
folders  random damage to one file of a run's folder, then a command: a refusal, or the result of the unbroken run
tables   random tables into `kleiber fit`: a law (0, 3), or a refusal with exit code 2
hostile  a stranger's folder of runs (`hostile.py`), then a command: no harm, within limits of time and memory

A case runs in a fork with limits on its memory and processor time. A traceback, another exit code, a death by a signal
or different weights after a resume is a failure.

    python tests/faults/fuzz.py [--cases 300] [--seed 0] [--kinds configs,folders,tables,hostile] [--out FILE.jsonl]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import hostile, hostile_runs
from faults.fuzz_cases import SMALL, commands, damage, damages, tables, write_rows
from faults.hostile_runs import Ended
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from processes import PATIENCE
from small_run import TINY

MEMORY_BYTES, CPU_SECONDS = 8 * 2**30, 60
LONG = [*TINY, *SMALL[:4], "budget.steps=6", "callbacks.checkpoints.every=2"]


@dataclass
class Case:
    """One case: its kind, what was done, how the command ended, and why that is a failure ("" where it is not)."""

    kind: str
    words: list[str]
    code: int
    failure: str
    output: str
    seconds: float


def run_forked(work: Callable[[], int], log: Path) -> tuple[int, str, float]:
    """Runs `work` in a fork with limits; returns its exit code (minus the signal that ended it), output and seconds."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            signal.alarm(PATIENCE)
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
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, log.read_text(errors="replace"), time.monotonic() - began


def failure(code: int, output: str, allowed: tuple[int, ...]) -> str:
    """Why the end of a command is not explained; "" where it is."""
    if "Traceback" in output:
        return "traceback"
    if code == 1 and "the loss diverged at" in output:
        return ""
    if code == 2 and not output.strip():
        return "refused without a word"
    return "" if code in allowed else f"exit code {code}"


def attack_config(command: list[str], place: Path, source: Path) -> Case:
    """Trains a step of a random config."""
    from kleiber.launch.main import main

    (base,) = (source / "whole" / "s").glob("*-*")
    command = [line.replace("{base}", str(base)).replace("{home}", str(source)) for line in command]
    code, output, seconds = run_forked(lambda: main([*command, f"root={place}"]), source / "log.txt")
    return Case("configs", command, code, failure(code, output, (0, 2)), output, seconds)


def prepare(source: Path) -> None:
    """Trains an unbroken run in `source/whole`, and one that was ended after its second checkpoint in `source/part`."""
    from kleiber.launch.main import main
    from kleiber.runs import stage  # noqa: F401 (imported before the forks)

    def killed() -> int:
        from kleiber.training import checkpoint

        original, saves = checkpoint.save, []

        def save(*arguments: Any, **keywords: Any) -> Any:
            saved = original(*arguments, **keywords)
            saves.append(1)
            if len(saves) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return saved

        checkpoint.save = save
        return main([*LONG, f"root={source / 'part'}", "name=s"])

    assert run_forked(lambda: main([*LONG, f"root={source / 'whole'}", "name=s"]), source / "log.txt")[0] == 0
    assert run_forked(killed, source / "log.txt")[0] == -signal.SIGKILL, (source / "log.txt").read_text()


def final_weights(root: Path) -> bytes | None:
    """The weights of the last checkpoint of the run."""
    steps = sorted(root.glob("s/*/stages/*/checkpoints/step-*6/model.safetensors"))
    return steps[-1].read_bytes() if steps else None


def attack_folder(draw: tuple[str, str, str, float, float, int], place: Path, source: Path) -> Case:
    """Damages a file of a run and runs a command on it."""
    from kleiber.launch.cli import main as kleiber
    from kleiber.launch.main import main

    origin, command, how, which, position, value = draw
    shutil.copytree(source / origin, place, symlinks=True)
    files = sorted(path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    path = files[int(which * (len(files) - 1))]
    damage(path, how, position, value)
    (run,) = place.glob("s/*-*")
    work = {
        "resume": lambda: main([*LONG, f"root={place}", "name=s"]),
        "runs": lambda: kleiber(["runs", str(place)]),
        "eval": lambda: kleiber(["eval", str(run), "--evals", "perplexity"]),
        "export": lambda: kleiber(["export", str(run), str(place / "exported")]),
        "report": lambda: kleiber(["report", str(place / "s")]),
    }[command]
    code, output, seconds = run_forked(work, source / "log.txt")
    words = [origin, command, how, str(path.relative_to(place)), f"{position:.3f}", str(value)]
    reason = failure(code, output, (0, 2, 3) if command == "report" else (0, 2))
    if not reason and command == "resume" and code == 0 and origin == "part":
        reason = "" if final_weights(place) == final_weights(source / "whole") else "other weights"
    return Case("folders", words, code, reason, output, seconds)


def attack_table(table: tuple[str, str, list[str]], place: Path, source: Path) -> Case:
    """Fits a law to a random table."""
    from kleiber.launch.cli import main as kleiber

    text, kind, options = table
    place.mkdir()
    file = place / f"table.{kind}"
    file.write_text(text)
    words = [word for option in options for word in option.split(" ", 1)]
    words += [] if "--bootstrap" in words else ["--bootstrap", "0"]
    code, output, seconds = run_forked(lambda: kleiber(["fit", str(file), *words]), source / "log.txt")
    return Case("tables", [kind, *words, text], code, failure(code, output, (0, 2, 3)), output, seconds)


ORDINARY: dict[str, Ended] = {}  # how commands end on the folder of the unbroken run


def attack_hostile(seed: int, place: Path, source: Path) -> Case:
    """Makes the folder of a trained run hostile, and runs a command on it, also one that opens the model."""
    from kleiber.launch.cli import main as kleiber
    from kleiber.launch.main import main

    def work(study: Path) -> dict[str, Callable[[], int]]:
        run = str(min(study.glob("*-*"), default=study / "gone"))
        opened = {
            "eval": ["eval", run, "--evals", "perplexity"], "export": ["export", run, str(study / "exported")],
            "generate": ["generate", run, "--prompt", "a", "--tokens", "2"],
        }  # fmt: skip
        listed = {name: partial(kleiber, words) for name, words in {**hostile_runs.commands(study), **opened}.items()}
        return {**listed, "resume": lambda: main([*LONG, f"root={study.parent}", "name=s", "budget.steps=7"])}

    def end(study: Path, name: str) -> Ended:
        return hostile_runs.run_limited(work(study)[name], source / "log.txt")

    rng = random.Random(seed)
    name = rng.choice([*sorted(work(source / "whole/s")), *(["eval", "export", "generate", "resume"] * 3)])
    if name not in ORDINARY:
        shutil.copytree(source / "whole", source / "ordinary", symlinks=True)
        ORDINARY[name] = end(source / "ordinary/s", name)
        shutil.rmtree(source / "ordinary")
    shutil.copytree(source / "whole", place, symlinks=True)
    shutil.rmtree(source / "outside", ignore_errors=True)
    what = hostile.make_hostile(place / "s", source / "outside", seed)
    before = hostile_runs.contents(source / "outside")
    ended = end(place / "s", name)
    untouched = hostile_runs.contents(source / "outside") == before
    reason = hostile_runs.failure(
        ended, ORDINARY[name], untouched, (0, 1, 2, 3, 5) if name == "resume" else (0, 2, 3, 5)
    )
    return Case("hostile", [str(seed), name, what], ended.code, reason, ended.output, ended.seconds)


KINDS = {
    "configs": (commands(), attack_config),
    "folders": (damages, attack_folder),
    "tables": (tables(), attack_table),
    "hostile": (st.integers(0, 2**32), attack_hostile),
}


def attack(kind: str, cases: int, number: int) -> list[Case]:
    """Runs `cases` cases of a kind."""
    strategy, run = KINDS[kind]
    results: list[Case] = []
    with tempfile.TemporaryDirectory() as home:
        source = Path(home)
        os.environ["XDG_CACHE_HOME"] = str(source / "cache")
        if kind != "tables":
            write_rows(source)
            prepare(source)

        @seed(number)
        @settings(
            max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def try_one(drawn: object) -> None:
            place = source / "place"
            shutil.rmtree(place, ignore_errors=True)
            results.append(run(drawn, place, source))
            if len(results) % 100 == 0:
                print(f"{kind}: {len(results)} of {cases}", file=sys.stderr, flush=True)

        try_one()
    return results


def main() -> int:
    """Attacks with every kind and prints how many cases were tried and failed; the exit code is 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    failed = 0
    for kind in options.kinds.split(","):
        results = attack(kind, options.cases, options.seed)
        if options.out:
            with options.out.open("a") as file:
                file.writelines(json.dumps(asdict(case)) + "\n" for case in results)
        bad = [case for case in results if case.failure]
        failed += len(bad)
        codes = dict(sorted(Counter(case.code for case in results).items()))
        print(f"{kind:8} tried {len(results)}, failed {len(bad)}, exit codes {codes}", flush=True)
        for case in bad:
            print(f"  {case.failure}: {' '.join(case.words)[:300]}\n    {case.output.strip()[-300:]}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
