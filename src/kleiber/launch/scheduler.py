"""One cell as a job of somebody else's scheduler: fresh processes, output in the cell's log.txt, an exit code.

What `launcher=process` does on this machine, for a process that SLURM or Ray has started on another; the folder lies
where both see it. Which of them it is it does not know: SLURM's own part, going back to the queue, is in `slurm`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kleiber.config.signals import PREEMPTED, Preempted, heeding
from kleiber.launch.cell import Cell, line
from kleiber.launch.local_pool import log_to
from kleiber.launch.ranks import run_fresh
from kleiber.records import folder
from kleiber.records.catalog import archive_run
from kleiber.records.folder import settle

SCHEDULERS = ("SLURM_", "SUBMITIT_", "PMI_", "PMIX_")
POLL = 2.0  # seconds between two looks at the queue
PATIENCE = 60  # seconds that cancelled jobs may take to leave it


@dataclass(frozen=True)
class Task:
    """Runs the cell that lies in `where`; `threads` is the number of CPU threads of each of its `devices`."""

    where: Path
    devices: int
    threads: int

    def __call__(self) -> int:
        if folder.status(self.where) == "finished":
            return 0
        with logged(self.where), environment(self.threads):
            return run_fresh(self.where, self.devices)


@contextmanager
def logged(where: Path) -> Iterator[None]:
    """Output to the cell's log.txt; then to where it went before, since a worker of a scheduler may run other cells."""
    before = os.dup(1), os.dup(2)
    log_to(where)
    try:
        yield
    finally:
        for number, file in enumerate(before, start=1):
            os.dup2(file, number)
            os.close(file)


@contextmanager
def environment(threads: int) -> Iterator[None]:
    """No variables of a scheduler: Lightning would take a job of one task for ranks that SLURM makes."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(SCHEDULERS):
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def task(one: Cell, cpus: int | None) -> Task:
    """`cpus` are those of the whole job, shared by its devices; a cell's own `trainer.threads` goes first."""
    return Task(one.folder, one.devices, one.threads or max(1, (cpus or one.devices) // one.devices))


def outcome(where: Path) -> int:
    """What became of a job that has ended, by what its run wrote: an exit code."""
    return {"finished": 0, "preempted": PREEMPTED}.get(folder.status(where), 1)


def alike(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells in groups that need the same resources, which one array of jobs has to share."""
    groups: dict[tuple[int, str, int | None], list[Cell]] = {}
    for one in cells:
        groups.setdefault((one.devices, one.accelerator, one.threads), []).append(one)
    return list(groups.values())


class Jobs(Protocol):
    """The jobs of a sweep at a scheduler."""

    def there(self) -> set[Path]:
        """Folders whose jobs wait or run; all of them while the scheduler does not answer."""
        ...

    def cancel(self) -> None:
        """Running jobs get SIGTERM, save, and do not come back; waiting ones never begin."""
        ...


class Watch:
    """Waits for the jobs of a sweep and tells what becomes of each, whoever runs them."""

    def __init__(self, cells: Sequence[Cell], jobs: Jobs) -> None:
        self.open, self.total, self.jobs = [one.folder for one in cells], len(cells), jobs
        self.codes: dict[Path, int] = {}
        self.began, self.until = time.monotonic(), math.inf

    def run(self) -> dict[Path, int]:
        try:
            with heeding(self._end) as asked:
                self._wait()
        except BaseException:
            self._end("the sweep")
            self._wait()
            raise
        if asked:
            raise Preempted(asked[0])
        return self.codes

    def _wait(self) -> None:
        """Until all jobs have ended, or those that were cancelled have had time enough to."""
        while self.open and time.monotonic() < self.until:
            self._look()
            time.sleep(POLL if self.open else 0)

    def _end(self, name: str) -> None:
        print(f"{name} ends: the jobs save and leave; the same command goes on", flush=True)
        self.until = time.monotonic() + PATIENCE
        self.jobs.cancel()

    def _look(self) -> None:
        there = self.jobs.there()
        for where in [where for where in self.open if where not in there]:
            self.open.remove(where)
            if folder.status(where) == "missing" and not (where / "log.txt").exists():
                continue  # never begun
            settle(where, "killed", "its job ended without a word; see log.txt")
            self.codes[where] = outcome(where)
            archive_run(where)
            print(
                line(len(self.codes), self.total, where, self.codes[where], time.monotonic() - self.began), flush=True
            )
