"""A stream whose runs are numbers: what a command measures follows from its text, and nothing is started."""

import json
import random
import re
from pathlib import Path

from kleiber.launch.cli import main
from kleiber_topics.gate import chain, engine
from kleiber_topics.gate.runner import NOTE, Outcome, RunFailed

PLAIN = "train --seed={seed} --reserve={reserve} --size={size}"


class Killed(BaseException):
    """The process was killed."""


class Trainer:
    """Stands for the commands of a stream.

    commands  that it has run
    stop      number of runs after which the process is killed; None for never
    shift     added to what is measured, as by another machine
    """

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.stop: int | None = None
        self.shift = 0.0

    def __call__(self, command, folder, home, note, pattern, take, timeout, modules) -> Outcome:
        if self.stop is not None and len(self.commands) >= self.stop:
            raise Killed
        self.commands.append(command)
        Path(home).mkdir(parents=True)
        (Path(home) / NOTE).write_text(json.dumps(note))
        if "--crash" in command:
            raise RunFailed("it ended with exit code 1")
        gain = number("gain-on-reserve" if "--reserve=hidden" in command else "gain", command)
        gain *= 0.1 if "--size=large" in command else 1.0
        noise = random.Random(f"{number('seed', command)} {word('as', command)}").gauss(0, 1)
        return Outcome(float("nan") if "--diverge" in command else 3 + 0.01 * noise - gain + self.shift, 1.0)


def number(name: str, command: str) -> float:
    """The number of an option; 0 without it. What the reserve shows is what is gained, unless an option says so."""
    match = re.search(rf"--{name}=([-\d.]+)", command)
    if match is None and name == "gain-on-reserve":
        return number("gain", command)
    return float(match.group(1)) if match else 0.0


def word(name: str, command: str) -> str:
    match = re.search(rf"--{name}=(\S+)", command)
    return match.group(1) if match else ""


def install(monkeypatch) -> Trainer:
    """Replaces what runs commands."""
    trainer = Trainer()
    monkeypatch.setattr(engine, "run_command", trainer)
    monkeypatch.setattr("kleiber_topics.gate.actions.write_report", lambda stream: stream.home / "gate.html")
    monkeypatch.setattr("kleiber_topics.gate.actions.secrets.token_hex", lambda _: "0" * 32)
    return trainer


def begin(home: Path, *options: str, command: str = PLAIN) -> int:
    values = [] if "{size}" not in command else ["--set", "size=small"]
    return main(["gate", "init", str(home), "--command", command, "--metric", "loss: ([0-9.]+)", *values, *options])


def propose(home: Path, name: str, change: str, *options: str) -> int:
    """Proposes the plain command with further options."""
    return main(["gate", "propose", str(home), "--name", name, "--command", f"{PLAIN} {change}", *options])


def rows(home: Path, kind: str = "") -> list[dict]:
    return [row for row in chain.read_rows(home / chain.FILE) if kind in ("", row["kind"])]


def last(home: Path) -> dict:
    return rows(home, "decision")[-1]
