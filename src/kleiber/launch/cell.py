"""A cell of a sweep, the launchers that run cells, and cells as jobs of a scheduler such as SLURM or Ray.

A job does the same as `launcher=process` on this machine: it runs a cell in fresh processes, writes the output to the
cell's log.txt, and returns an exit code. The folder of the cell must be visible here and where the job runs.
`JobMonitor` waits for the jobs of a sweep, and `LocalJobs` are such jobs on this machine; `kleiber.launch.schedulers`
contains what is specific to one scheduler.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from kleiber.config.child_process import safe_children
from kleiber.config.errors import ExitCode, Status, on_preemption, preempted_by
from kleiber.launch.ranks import redirect_output, run_fresh
from kleiber.records import archive
from kleiber.records.catalog import Run, archive_run, archived_runs, read_run
from kleiber.records.evaluations import is_complete
from kleiber.records.folder import config_hash, discard_unstarted, read_config, status, write_final_status
from kleiber.records.locks import is_locked
from kleiber.records.progress import Activity, activity
from kleiber.records.terminal import print_line
from kleiber.types import Json

SCHEDULER_PREFIXES = ("SLURM_", "SUBMITIT_", "PMI_", "PMIX_")
POLL_SECONDS = 2.0  # between two looks at the queue
CANCEL_SECONDS = 60  # that canceled jobs may take to leave the queue


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, composed and checked."""

    folder: Path
    config: Json
    overrides: list[str]

    @property
    def devices(self) -> int:
        """Number of devices, and so of processes, that the run needs."""
        return self.config["trainer"].get("devices", 1)

    @property
    def accelerator(self) -> str:
        """Kind of its devices: cpu or gpu."""
        return self.config["trainer"].get("accelerator", "cpu")

    @property
    def threads(self) -> int | None:
        """CPU threads of each process; None when the config leaves them to the launcher."""
        return self.config["trainer"].get("threads")

    @property
    def slots(self) -> int:
        """Number of CPU cores, or of GPUs, that the run occupies."""
        return self.devices * (1 if self.accelerator == "gpu" else self.threads or 1)


def unique_cells(cells: Sequence[Cell], before: Mapping[Path, Cell] = MappingProxyType({})) -> dict[Path, Cell]:
    """Returns the cells by folder, without those in `before`. Prints cells that are the same run as another one."""
    by_folder: dict[Path, Cell] = {}
    for cell in cells:
        if cell.folder in before:
            continue
        if cell.folder in by_folder:
            print_line(
                f"cell {' '.join(cell.overrides)} is the same run as {' '.join(by_folder[cell.folder].overrides)}, and "
                "runs once"
            )
        by_folder.setdefault(cell.folder, cell)
    return by_folder


class Launcher:
    """Base class of the choices of the group `launcher`: where and how the cells of a sweep are run."""

    def warm_up(self) -> None:
        """Called before the cells are composed. Starts preparations that can run meanwhile."""

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Runs the cells and returns their exit codes by folder, without those of cells that were not started.

        Raises Preempted when a signal ended the sweep, once all running cells have ended.
        """
        raise NotImplementedError


def archived_by_hash(study: Path) -> dict[str, Run]:
    """Returns the finished runs in the archive of a study's folder by their config hash.

    The hashes are computed from the configs, so runs are found again after the study was moved to another folder.
    """
    finished = (run for run in archived_runs(study / archive.NAME) if run.finished)
    runs = [run for run in finished if not run.summary.get("continued")]
    return {config_hash({**run.config, "root": str(study.parent), "name": study.name}): run for run in runs}


def archive_or_discard(folder: Path, code: int) -> None:
    """Adds a run that has ended to the archive of its study, or removes one that was refused before its first step."""
    if code == ExitCode.BAD_INPUT:
        discard_unstarted(folder)
    archive_run(folder)


def progress_line(done: int, total: int, folder: Path, code: int, seconds: float, label: str | None = None) -> str:
    """Returns the line that a launcher prints when a cell has ended: its losses, or the first line of its error.

    done, total  number of cells that have ended, and of all cells
    label        printed in place of the status of the run
    """
    run = read_run(folder)
    task_losses = {f"val/{task}/loss" for task in run.stage.get("tasks") or ()}
    losses = [f"{value:.4f}" for key, value in run.metrics.items() if key in task_losses]
    error = (run.summary.get("error") or "").partition("\n")[0]
    outcome = error if code else f"loss {' '.join(losses)}" if losses else ""
    if code and is_locked(folder):
        outcome = "in use by another process"
    return f"[{done}/{total}] {label or run.status:8} {folder.name}  {seconds:.1f} s  {outcome}".rstrip()


@dataclass(frozen=True)
class Task:
    """Runs the cell in `folder` when it is called, and returns the exit code. A scheduler can send it elsewhere.

    devices  number of processes of the run
    threads  CPU threads of each process
    """

    folder: Path
    devices: int
    threads: int

    def __call__(self) -> int:
        if status(self.folder) == Status.FINISHED and is_complete(self.folder, read_config(self.folder)):
            return ExitCode.DONE
        with redirect_to_log(self.folder), job_environment(self.threads):
            return run_fresh(self.folder, self.devices)


@contextmanager
def redirect_to_log(folder: Path) -> Iterator[None]:
    """Redirects the output of this process to the cell's log.txt, and restores it for the next cell of the process."""
    before = os.dup(1), os.dup(2)
    redirect_output(folder / "log.txt")
    try:
        yield
    finally:
        for number, file in enumerate(before, start=1):
            os.dup2(file, number)
            os.close(file)


@contextmanager
def job_environment(threads: int) -> Iterator[None]:
    """Sets OMP_NUM_THREADS, and removes the variables of a scheduler from the environment; restores it on exit.

    With the variables of SLURM, Lightning would take the job for one of several ranks that SLURM started.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(SCHEDULER_PREFIXES):
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_task(cell: Cell, cpus: int | None) -> Task:
    """Returns the task that runs a cell.

    cpus  CPUs of the job, which its devices share, unless the config sets `trainer.threads`; None means one per device
    """
    return Task(cell.folder, cell.devices, cell.threads or max(1, (cpus or cell.devices) // cell.devices))


def group_by_resources(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Groups cells that need the same resources, because all jobs of an array get the same."""
    groups: dict[tuple[int, str, int | None], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.devices, cell.accelerator, cell.threads), []).append(cell)
    return list(groups.values())


class Jobs(Protocol):
    """The jobs of a sweep at a scheduler."""

    def pending(self) -> set[Path]:
        """Returns the folders whose jobs wait or run; all folders while the scheduler does not answer."""
        ...

    def cancel(self) -> None:
        """Sends SIGTERM to running jobs, so that they save and exit, and removes waiting jobs from the queue."""
        ...


class JobMonitor:
    """Waits for the jobs of a sweep and prints how each ended, whichever scheduler runs them."""

    def __init__(self, cells: Sequence[Cell], jobs: Jobs) -> None:
        self.unfinished, self.total, self.jobs = [cell.folder for cell in cells], len(cells), jobs
        self.codes: dict[Path, int] = {}
        self.progress = Activity("training", len(cells), "cells")
        self.started, self.deadline = time.monotonic(), math.inf

    def run(self) -> dict[Path, int]:
        """Waits for all jobs and returns exit codes by folder. Raises Preempted when a signal ended the sweep."""
        try:
            with on_preemption(self._cancel) as received, activity(self.progress):
                self._wait()
        except BaseException:
            self._cancel("interrupted")
            self._wait()
            raise
        if received:
            raise preempted_by(received[0], "")
        return self.codes

    def _wait(self) -> None:
        """Waits until all jobs have ended; after `_cancel`, no longer than CANCEL_SECONDS."""
        while self.unfinished and time.monotonic() < self.deadline:
            self._poll()
            time.sleep(POLL_SECONDS if self.unfinished else 0)

    def _cancel(self, reason: str) -> None:
        print_line(f"{reason}: the jobs save and exit; run the same command again to continue the sweep")
        self.deadline = time.monotonic() + CANCEL_SECONDS
        self.jobs.cancel()

    def _poll(self) -> None:
        """Prints a line for each job that has ended since the last call, and records its exit code."""
        pending = self.jobs.pending()
        for folder in [folder for folder in self.unfinished if folder not in pending]:
            self.unfinished.remove(folder)
            if status(folder) == Status.MISSING and not (folder / "log.txt").exists():
                continue  # the job never started
            write_final_status(folder, Status.KILLED, "the job ended without writing a status; see log.txt")
            self.codes[folder] = code = status(folder).exit_code
            self.progress.done = len(self.codes)
            seconds = time.monotonic() - self.started
            print_line(progress_line(len(self.codes), self.total, folder, code, seconds))
            archive_or_discard(folder, code)


class LocalJob(Protocol):
    """A job of submitit's LocalExecutor; its id is the number of its process."""

    job_id: str

    def done(self) -> bool:
        """Whether the job has ended."""
        ...


class LocalExecutor(Protocol):
    """Type of submitit's LocalExecutor, with the one method that `LocalJobs` calls."""

    def submit(self, fn: Task) -> LocalJob:
        """Starts a process that runs the task."""
        ...


class LocalJobs:
    """The jobs of a sweep as processes of this machine, at most `at_once` at a time."""

    def __init__(self, executor: LocalExecutor, cells: Sequence[Cell], cpus: int | None, at_once: int) -> None:
        self.executor, self.at_once = executor, at_once
        self.waiting = deque(make_task(cell, cpus) for cell in cells)
        self.running: dict[Path, LocalJob] = {}

    def pending(self) -> set[Path]:
        """Returns the folders whose jobs wait or run; first starts the jobs for which there is room."""
        self.running = {folder: job for folder, job in self.running.items() if not job.done()}
        while self.waiting and len(self.running) < self.at_once:
            task = self.waiting.popleft()
            with safe_children():
                self.running[task.folder] = self.executor.submit(task)
        return {*self.running, *(task.folder for task in self.waiting)}

    def cancel(self) -> None:
        """Sends SIGTERM to every running job and starts no further one."""
        self.waiting.clear()
        for job in self.running.values():
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
