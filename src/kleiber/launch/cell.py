"""A cell of a sweep, and the cell as a job of a scheduler such as SLURM or Ray.

A job does what `launcher=process` does on this machine: fresh processes, output in the cell's log.txt, an exit code.
The folder of the cell must be visible both here and where the job runs. `Watch` waits for the jobs of a sweep and
reports how each ended; what is specific to one scheduler is in `kleiber.launch.schedulers`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status, on_preemption
from kleiber.launch.ranks import redirect_output, run_fresh
from kleiber.records import folder
from kleiber.records.catalog import archive_run, read_run

SCHEDULERS = ("SLURM_", "SUBMITIT_", "PMI_", "PMIX_")
POLL = 2.0  # seconds between two looks at the queue
PATIENCE = 60  # seconds that cancelled jobs may take to leave the queue


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, composed and checked."""

    folder: Path
    config: dict[str, Any]
    overrides: list[str]

    @property
    def devices(self) -> int:
        return self.config["trainer"].get("devices", 1)

    @property
    def accelerator(self) -> str:
        return self.config["trainer"].get("accelerator", "cpu")

    @property
    def threads(self) -> int | None:
        return self.config["trainer"].get("threads")


class Launcher:
    """Base class of the choices of the group `launcher`: how the cells of a sweep are run."""

    def warm_up(self) -> None:
        """Prepares what can be prepared while the cells are still being composed."""

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Runs the cells and returns exit codes by folder. A cell that was not started is absent.

        Raises Preempted when the sweep itself was asked to end, once every started cell has ended.
        """
        raise NotImplementedError

    def require(self, **minimums: int) -> None:
        """Raises ConfigError for an option of this launcher that is set and below its minimum."""
        for name, minimum in minimums.items():
            value = vars(self)[name]
            if value is not None and value < minimum:
                raise ConfigError(f"launcher.{name}={value} must be >= {minimum}")


def progress_line(done: int, total: int, where: Path, code: int, seconds: float, label: str | None = None) -> str:
    """What a launcher prints when a cell has ended: the loss on its own tasks, or the first line of its error."""
    run = read_run(where)
    task_losses = {f"val/{task}/loss" for task in run.stage.get("tasks") or ()}
    losses = [f"{value:.4f}" for key, value in run.metrics.items() if key in task_losses]
    error = (run.summary.get("error") or "").partition("\n")[0]
    outcome = error if code else f"loss {' '.join(losses)}" if losses else ""
    return f"[{done}/{total}] {label or run.status:8} {where.name}  {seconds:.1f} s  {outcome}".rstrip()


@dataclass(frozen=True)
class Task:
    """Runs the cell in the folder `where`; `threads` is the number of CPU threads of each of its `devices`."""

    where: Path
    devices: int
    threads: int

    def __call__(self) -> int:
        if folder.status(self.where) == Status.FINISHED:
            return ExitCode.DONE
        with logged(self.where), environment(self.threads):
            return run_fresh(self.where, self.devices)


@contextmanager
def logged(where: Path) -> Iterator[None]:
    """Sends the output of this process to the cell's log.txt, and restores it: a worker may run other cells later."""
    before = os.dup(1), os.dup(2)
    redirect_output(where / "log.txt")
    try:
        yield
    finally:
        for number, file in enumerate(before, start=1):
            os.dup2(file, number)
            os.close(file)


@contextmanager
def environment(threads: int) -> Iterator[None]:
    """Hides the variables of a scheduler: Lightning would take a job of one task for a rank that SLURM started."""
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


def task(cell: Cell, cpus: int | None) -> Task:
    """`cpus` are those of the whole job, shared by its devices; `trainer.threads` of the cell takes precedence."""
    return Task(cell.folder, cell.devices, cell.threads or max(1, (cpus or cell.devices) // cell.devices))


def group_by_resources(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells in groups that need the same resources, as the jobs of one array have to."""
    groups: dict[tuple[int, str, int | None], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.devices, cell.accelerator, cell.threads), []).append(cell)
    return list(groups.values())


class Jobs(Protocol):
    """The jobs of a sweep at a scheduler."""

    def pending(self) -> set[Path]:
        """Folders whose jobs wait or run; all of them while the scheduler does not answer."""
        ...

    def cancel(self) -> None:
        """Sends SIGTERM to running jobs, which save and do not return, and removes waiting ones from the queue."""
        ...


class Watch:
    """Waits for the jobs of a sweep and prints how each ended, whichever scheduler runs them."""

    def __init__(self, cells: Sequence[Cell], jobs: Jobs) -> None:
        self.open, self.total, self.jobs = [cell.folder for cell in cells], len(cells), jobs
        self.codes: dict[Path, int] = {}
        self.began, self.until = time.monotonic(), math.inf

    def run(self) -> dict[Path, int]:
        """Returns exit codes by folder. Raises Preempted when a signal ended the sweep."""
        try:
            with on_preemption(self._end) as received:
                self._wait()
        except BaseException:
            self._end("the sweep")
            self._wait()
            raise
        if received:
            raise Preempted(received[0])
        return self.codes

    def _wait(self) -> None:
        """Waits until all jobs have ended, or cancelled ones have had enough time to."""
        while self.open and time.monotonic() < self.until:
            self._look()
            time.sleep(POLL if self.open else 0)

    def _end(self, name: str) -> None:
        print(f"{name} ends: the jobs save and exit; the same command continues the sweep", flush=True)
        self.until = time.monotonic() + PATIENCE
        self.jobs.cancel()

    def _look(self) -> None:
        pending = self.jobs.pending()
        for where in [where for where in self.open if where not in pending]:
            self.open.remove(where)
            if folder.status(where) == Status.MISSING and not (where / "log.txt").exists():
                continue  # it never started
            folder.settle(where, Status.KILLED, "its job ended without writing a status; see log.txt")
            self.codes[where] = code = folder.status(where).exit_code
            archive_run(where)
            seconds = time.monotonic() - self.began
            print(progress_line(len(self.codes), self.total, where, code, seconds), flush=True)
