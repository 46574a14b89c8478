"""Random kills over all kinds of runs, sweeps and studies; each resumed run must equal the unbroken one.

A start of a command is hit by one signal: by SIGKILL, and for every fourth by SIGTERM or SIGINT, in its first process
or in another one that trains. Then the same command runs again, until it ends with 0 and is compared. Failures are:
different weights, rows or files (`kill_kinds.facts`), an exit code other than that of the signal (minus 9, 75, 130; 1
for a rank and 4 for a sweep of which another process was killed), a traceback, and processes that stay.

SIGKILLs count if the run was unfinished: before its first checkpoint those that are aimed at "early" or
"preparation", and after it the others. Each start is a fork of this process, which has imported everything and computes
nothing, except for the kind `command`.

    python tests/faults/kill_campaign.py --kills 200 [--kinds dense moe ...] [--seed 0] [--out FILE.jsonl]

FILE.jsonl gets a line for each kind.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.kill_kinds import AIMS, DATA, KINDS, OFTEN, Kind, facts
from faults.kill_start import Hit, Start, all_finished
from small_run import TINY, last_of_each

MODULES = (
    "data.corpus", "data.token_writer", "launch.main", "launch.sweep", "records.summary", "runs.plan", "runs.run",
    "runs.stage", "training.callbacks.classes", "training.callbacks.samples", "training.loggers", "training.remote",
)  # fmt: skip
BEFORE_A_CHECKPOINT = ("early", "preparation")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


@dataclass
class Result:
    """What became of the attacks on a kind.

    kills      SIGKILLs that counted, by aim
    signals    SIGTERMs and SIGINTs that ended a run
    codes      exit codes of the starts that were hit, with the signal and its victim
    starts     starts of the command
    runs       runs that were compared with the unbroken one
    different  what was wrong
    """

    kind: str
    kills: Counter = field(default_factory=Counter)
    signals: int = 0
    codes: Counter = field(default_factory=Counter)
    starts: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Attack:
    """The attacks on one kind: an unbroken run, and then runs that are killed until all aims have been hit.

    home     folder of the runs
    command  overrides, in which {root} is replaced
    done     exit code of the unbroken run: 0, or that of an undecided study
    """

    def __init__(self, name: str, kind: Kind, command: list[str], home: Path, kills: int, rng: random.Random) -> None:
        self.kind, self.command, self.home, self.rng = kind, command, home, rng
        self.result = Result(name)
        first = rng.randrange(len(kind.aims))
        self.aims = [kind.aims[(first + number) % len(kind.aims)] for number in range(kills)]
        self.limit = 12 * kills + 20
        home.mkdir(parents=True)

    def start(self, root: Path, hit: Hit | None = None) -> Start:
        """Starts the command in a root, or goes on there."""
        words = [text.replace("{root}", str(root)) for text in self.command]
        cache = str(root.with_name(f"{root.name}-cache")) if self.kind.own_cache else None
        self.result.starts += 1
        return Start(self.kind, [*words, f"root={root}"], root, hit, cache)

    def run(self) -> None:
        """Attacks until all kills have counted, or something is wrong."""
        began = time.monotonic()
        unbroken = self.start(self.home / "unbroken")
        self.done = unbroken.end()
        reason = f"{self.result.kind}: the unbroken run ends with {self.done}:\n{unbroken.output()[-2000:]}"
        assert self.done in (0, 3, 5), reason
        self.unbroken, self.expected = unbroken, facts(self.home / "unbroken")
        while True:
            root = self.home / f"run{self.result.runs}"
            self.attack(root)
            self.compare(root)
            if not self.aims or self.result.different:
                break
            shutil.rmtree(root)
        self.result.seconds = round(time.monotonic() - began, 1)

    def attack(self, root: Path) -> None:
        """Starts the command and hits it, again and again, until it ends with 0 or is wrong."""
        while True:
            hit = self.choose(root)
            start = self.start(root, hit)
            code = start.end()
            if hit is None or not start.was_hit:
                if code != self.done:
                    self.fail(f"exit code {code} without a signal", start)
                return
            victim = "" if start.victim in ("", "first process") else f" of a {start.victim}"
            self.result.codes[f"{hit.signal.name}{victim}: {code}"] += 1
            if code == self.done:  # the signal came after the last step
                return
            reason = start.failure(code)
            if reason:
                self.fail(reason, start)
                return
            self.count(hit, root, start)
            assert self.result.starts < self.limit, f"{self.result.kind}: {self.aims} still to come"

    def choose(self, root: Path) -> Hit | None:
        """The next hit of a start in this root."""
        if not self.aims or (all_finished(root) and not self.unbroken.is_sweep()):
            return None
        aim = self.aims[-1]
        if aim == "start" and not has_checkpoint(root):  # there is nothing to resume from yet
            aim = "anywhere"
        if aim in BEFORE_A_CHECKPOINT and has_checkpoint(root):
            self.rng.shuffle(self.aims)
            aim = "anywhere" if self.aims[-1] in BEFORE_A_CHECKPOINT else self.aims[-1]
        number = self.rng.choice(SIGNALS)
        calls = {name: self.unbroken.calls[name] for name in AIMS[aim] if self.unbroken.calls.get(name)}
        if aim == "copy":  # only a run that goes on fetches
            calls.setdefault("kleiber.training.remote.Remote._fetch", 1)
        if not calls or self.kind.in_processes or self.kind.entry:
            return self.unbroken.timed_hit(aim, number, self.rng, root)
        name = self.rng.choice(sorted(calls))
        return Hit(aim, number, function=name, call=self.rng.randint(1, max(1, calls[name] // 2)))

    def count(self, hit: Hit, root: Path, start: Start) -> None:
        """Counts a hit that found an unfinished run."""
        if self.kind.loses_disk and self.rng.random() < 0.5:
            for folder in root.glob("*/*/stages/*/checkpoints"):
                shutil.rmtree(folder)
        if hit.signal != signal.SIGKILL:
            self.result.signals += 1
        elif all_finished(root) and not start.is_sweep():
            return
        elif hit.aim in BEFORE_A_CHECKPOINT or has_checkpoint(root) or self.kind.loses_disk:
            self.result.kills[hit.aim] += 1
            self.aims.remove(hit.aim if hit.aim in self.aims else self.aims[-1])
        self.rng.shuffle(self.aims)  # the hit may come too early for this aim each time

    def compare(self, root: Path) -> None:
        """Compares a finished run with the unbroken one."""
        self.result.runs += 1
        if self.result.different:
            return
        ours = facts(root)
        names = sorted(name for name in ours.keys() | self.expected.keys() if ours.get(name) != self.expected.get(name))
        if names:
            self.result.different.append(f"{root}: {', '.join(names)} differ")

    def fail(self, reason: str, start: Start) -> None:
        """Notes what was wrong, with the end of the output."""
        self.result.different.append(f"{start.root}: {reason} after {start.hit}: {start.output()[-1500:]}")


def has_checkpoint(root: Path) -> bool:
    """Whether a run of the root has a checkpoint."""
    return any(root.glob("*/*/stages/*/checkpoints/step-????????/meta.json"))


def campaign(home: Path, kills: int, kinds: list[str], seed: int = 0, out: Path | None = None) -> list[Result]:
    """The results of the attacks on each kind; the kills are divided evenly."""
    for module in MODULES:
        importlib.import_module(f"kleiber.{module}")
    results = []
    (home / "more.txt").write_text((DATA / "tiny.txt").read_text()[::-1])
    (home / "text").mkdir()
    lines = [line for line in (DATA / "tiny.txt").read_text().splitlines() if line.strip()]
    rows = "".join(json.dumps({"text": line * 3}) + "\n" for line in lines)
    for split in ("train", "validation"):
        (home / "text" / f"{split}.jsonl").write_text(rows)
    base = Start(Kind(), last_of_each([*TINY, *OFTEN, f"root={home / 'base'}"]), home / "base", None, None)
    assert base.end() == 0, base.output()
    (folder,) = (home / "base").glob("*/*/config.yaml")
    places = {"{base}": str(folder.parent), "{more}": str(home / "more.txt"), "{text}": str(home / "text")}
    for number, name in enumerate(kinds):
        kind = KINDS[name]
        usual = [text for text in (*TINY, *OFTEN) if not text.startswith(kind.without or ("\0",))]
        command = last_of_each([*usual, *kind.overrides])
        for key, value in places.items():
            command = [text.replace(key, value) for text in command]
        share = kills // len(kinds) + (number < kills % len(kinds))
        attack = Attack(name, kind, command, home / name.replace(" ", "_"), share, random.Random(f"{seed} {name}"))
        try:
            attack.run()
        except AssertionError as error:
            attack.result.different.append(str(error))
        results.append(attack.result)
        print(describe(results[-1]), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(vars(results[-1])) + "\n")
    return results


def describe(result: Result) -> str:
    """A line for a kind."""
    aims = ", ".join(f"{aim} {number}" for aim, number in sorted(result.kills.items()))
    outcome = f"{result.runs - bool(result.different)}/{result.runs} equal"
    counts = f"{sum(result.kills.values()):3} kills ({aims})  {result.signals} signals  {result.starts:3} starts"
    return (
        f"{result.kind:14} {counts}  {outcome}  {result.seconds:.0f} s  {dict(result.codes)}  {result.different or ''}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--home", type=Path, help="folder for the runs, which are then kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        os.environ["KLEIBER_CACHE"] = f"{home}/cache"
        results = campaign(home, options.kills, options.kinds, options.seed, options.out)
    total: Any = sum(sum(result.kills.values()) for result in results)
    wrong = [result.kind for result in results if result.different]
    print(f"{total} kills, {sum(result.signals for result in results)} other signals; wrong: {wrong or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
