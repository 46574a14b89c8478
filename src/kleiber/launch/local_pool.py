"""`launcher=basic` and `launcher=process`: the cells of a sweep on this machine.

`Process` runs as many cells at once as there are cores or GPUs, and writes the output of each to its log.txt. A cell on
CPU with one device and one thread is forked from a server that has already imported torch and lightning and never
computes, so its first step comes at once. All other cells run in fresh processes.

SIGTERM, SIGUSR1 and Ctrl-C are forwarded: running cells save and exit, no further cell starts, and finished cells stay
finished. A second Ctrl-C ends the cells at once. The parent process computes nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from kleiber.config.child_process import safe_children
from kleiber.config.errors import (
    SIGNAL_CODES,
    ConfigError,
    ExitCode,
    Interrupted,
    Preempted,
    Status,
    on_preemption,
    preempted_by,
    signals_held,
)
from kleiber.config.model_size import available_cores, gpu_ids
from kleiber.config.url_secrets import VARIABLE as SECRETS
from kleiber.launch import process
from kleiber.launch.cell import Cell, Launcher, archive_or_discard, progress_line
from kleiber.launch.ranks import redirect_output, run_fresh
from kleiber.records.folder import read_config, read_overrides, write_final_status
from kleiber.records.progress import Activity, activity
from kleiber.records.terminal import print_line
from kleiber.types import Count, Natural

GRACE_SECONDS = 10  # between one signal to the child processes and the next, stronger one


def fork_server() -> ForkServerContext:
    """Starts the fork server, unless it runs, and returns the context that forks processes from it.

    The server imports while this process does something else.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kleiber.launch.preload"])
    with safe_children():
        resource_tracker.ensure_running()  # which lets signals through that are held
        with signals_held():
            forkserver.ensure_running()
    return context


@dataclass
class Job:
    """A running cell.

    started  time.monotonic() at its start
    slots    names of the cores, or ids of the GPUs, that it occupies
    attempt  number of earlier starts that failed
    """

    cell: Cell
    process: ForkServerProcess
    started: float
    slots: list[str]
    attempt: int


class Pool:
    """Runs cells in order, each as soon as there are enough free slots. A slot is a core or a GPU.

    workers     largest number of cells that run at once; None means no limit but the slots
    retries     how often a failed cell is started again
    stop_after  number of failed cells after which no further cell starts; None means no limit
    """

    def __init__(self, cells: Sequence[Cell], workers: int | None, retries: int, stop_after: int | None) -> None:
        self.pending = deque((cell, 0) for cell in cells)
        self.total, self.workers, self.retries, self.stop_after = len(cells), workers, retries, stop_after
        self.free = {"cpu": [f"core {i}" for i in range(available_cores())], "gpu": gpu_ids()}
        self.size = {kind: len(slots) for kind, slots in self.free.items()}
        self.running: dict[int, Job] = {}
        self.codes: dict[Path, int] = {}
        self.signals: list[str] = []
        self.progress = Activity("training", len(cells), "cells")
        for cell in cells:
            if cell.accelerator == "gpu" and cell.devices > self.size["gpu"]:
                raise ConfigError(
                    f"trainer.devices={cell.devices} must be <= {self.size['gpu']}, the GPUs that this sweep may use"
                )
        self.context = fork_server()

    def run(self) -> dict[Path, int]:
        """Runs all cells and returns exit codes by folder. Raises Preempted when a signal ended the sweep."""
        try:
            with on_preemption(self._forward, self._kill_all) as self.signals, activity(self.progress):
                self._start_cells()
                while self.running:
                    for sentinel in wait(list(self.running)):
                        self._finish(self.running.pop(int(sentinel)))  # type: ignore[arg-type]
                    self._start_cells()
        except BaseException:
            self._end_all()
            raise
        if self.signals:
            raise preempted_by(self.signals[0], "")
        return self.codes

    def _forward(self, name: str) -> None:
        print_line(f"{name}: the cells save and exit; run the same command again to continue the sweep")
        for job in self.running.values():
            send_signal(job.process, signal.SIGTERM)

    def _start_cells(self) -> None:
        """Starts the next cells while there are slots for them."""
        while self.pending and not self._stopped():
            cell, attempt = self.pending[0]
            free = self.free[cell.accelerator]
            count = min(cell.slots, self.size[cell.accelerator])
            if count > len(free) or len(self.running) == self.workers:
                return
            self.pending.popleft()
            slots, self.free[cell.accelerator] = free[:count], free[count:]
            visible = ",".join(slots) if cell.accelerator == "gpu" else None
            child = self.context.Process(
                target=run_cell,
                args=(cell.folder, needs_fresh_process(cell), cell.devices, os.environ.get(SECRETS), visible),
            )
            try:
                with process.without_main_module(), safe_children():
                    child.start()
            except EOFError:  # it ended before it could tell its number
                if not self._signal_comes():
                    raise
                break
            self.running[child.sentinel] = Job(cell, child, time.monotonic(), slots, attempt)
            if self.signals:  # that came while the child started
                send_signal(child, signal.SIGTERM)
        if self._stopped():
            self.pending.clear()

    def _signal_comes(self) -> bool:
        """Whether a signal has come, or does within a second: one to all processes may reach a child first."""
        deadline = time.monotonic() + 1.0
        while not self.signals and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(self.signals)

    def _stopped(self) -> bool:
        """Whether no further cell may start."""
        failed = sum(map(bool, self.codes.values()))
        return bool(self.signals) or (self.stop_after is not None and failed >= self.stop_after)

    def _finish(self, job: Job) -> None:
        """Frees the slots of a job that has ended, writes its status and prints a line.

        A failed job is queued again while it has retries left and no signal has come; otherwise its exit code is
        recorded.
        """
        job.process.join()
        code = job.process.exitcode or ExitCode.DONE
        self.free[job.cell.accelerator] += job.slots
        self._write_status(job, code)
        retry = code != 0 and job.attempt < self.retries and not self.signals
        if retry:
            self.pending.append((job.cell, job.attempt + 1))
        else:
            self.codes[job.cell.folder] = code
        self.progress.done = len(self.codes)
        seconds = time.monotonic() - job.started
        label = "again" if retry else None
        print_line(progress_line(len(self.codes), self.total, job.cell.folder, code, seconds, label))
        if not retry:
            archive_or_discard(job.cell.folder, code)

    def _write_status(self, job: Job, code: int) -> None:
        """Writes the status of a run whose process died before it could."""
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        stopped = code in SIGNAL_CODES or (self.signals and code == -signal.SIGTERM)
        if stopped:
            interrupted = code == ExitCode.INTERRUPTED or self.signals[:1] == ["SIGINT"]
            final = Status.INTERRUPTED if interrupted else Status.PREEMPTED
            write_final_status(job.cell.folder, final, f"ended with {end}", replaceable=(Status.PREEMPTED,))
        elif code:
            final = Status.KILLED if code < 0 else Status.FAILED
            write_final_status(job.cell.folder, final, f"ended with {end}; see log.txt")

    def _end_all(self) -> None:
        """Ends every child with SIGTERM, then SIGKILL. Cells keep their checkpoints."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for job in self.running.values():
                if job.process.is_alive():
                    send_signal(job.process, number)
            deadline = time.monotonic() + GRACE_SECONDS
            for job in self.running.values():
                job.process.join(max(0.0, deadline - time.monotonic()))
        for job in self.running.values():
            self._write_status(job, ExitCode.PREEMPTED)

    def _kill_all(self) -> None:
        """Kills every child, for a second Ctrl-C, and writes the status of the cells."""
        for job in self.running.values():
            send_signal(job.process, signal.SIGKILL)
        for job in self.running.values():
            self._write_status(job, ExitCode.INTERRUPTED)


def send_signal(child: ForkServerProcess, number: int) -> None:
    """Sends a signal to a child process, or does nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid or 0, number)


def needs_fresh_process(cell: Cell) -> bool:
    """Whether a cell cannot run in a forked process: it has several devices or threads, or a GPU."""
    return cell.devices > 1 or cell.accelerator != "cpu" or (cell.threads or 1) > 1


def run_cell(folder: Path, is_fresh: bool, devices: int, secrets: str | None, visible: str | None) -> None:
    """Runs the cell in `folder` in this child process, with its output in log.txt, and exits with its exit code.

    is_fresh  whether the run gets new processes; otherwise it runs in this process, with one thread
    devices   number of devices of the run, each with its own process; used only if `is_fresh`
    secrets   value of the variable of `kleiber.config.url_secrets`, which the fork server may not have
    visible   ids of the GPUs that the run may use, separated by commas; None for a run without GPUs
    """
    threading.Thread(target=exit_after_parent, args=(is_fresh,), daemon=True).start()
    redirect_output(folder / "log.txt")
    if secrets is not None:
        os.environ[SECRETS] = secrets
    if is_fresh:
        os.environ.pop("OMP_NUM_THREADS", None)
        sys.exit(run_fresh(folder, devices, visible))
    import torch

    torch.set_num_threads(1)
    sys.exit(process.run(read_config(folder), folder, read_overrides(folder)))


def exit_after_parent(is_fresh: bool) -> None:
    """Waits until the process of the sweep has ended, and then ends this process.

    Without this a child would outlive a killed sweep, because the fork server lives as long as its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM if is_fresh else signal.SIGKILL)


class Basic(Launcher):
    """Runs one cell after another in this process, with its output on the console."""

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Runs the cells and returns exit codes by folder. Raises ConfigError for a cell of several devices."""
        for cell in cells:
            if cell.devices > 1:
                raise ConfigError(
                    f"trainer.devices={cell.devices} must be 1 for launcher=basic, which runs cells in one process: "
                    "set launcher=process"
                )
        codes = {}
        for number, cell in enumerate(cells, 1):
            print_line(f"[{number}/{len(cells)}] {cell.folder.name}")
            codes[cell.folder] = process.run(cell.config, cell.folder, cell.overrides)
            if not cell.config["dry_run"]:
                archive_or_discard(cell.folder, codes[cell.folder])
            if codes[cell.folder] == ExitCode.INTERRUPTED:
                raise Interrupted(f"SIGINT in cell {number} of {len(cells)}")
            if codes[cell.folder] == ExitCode.PREEMPTED:
                raise Preempted(f"cell {number} of {len(cells)}")
        return codes


@dataclass(frozen=True)
class Process(Launcher):
    """Runs each cell in its own process, several at once.

    workers     largest number of cells that run at once; None means as many as the cores or GPUs have room for
    retries     how often a failed cell is started again
    stop_after  number of failed cells after which no further cell starts; None means no limit
    """

    workers: Count | None = None
    retries: Natural = 0
    stop_after: Count | None = None

    def warm_up(self) -> None:
        """Starts the fork server, which imports torch while the cells are composed."""
        fork_server()

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Runs the cells and returns exit codes by folder."""
        return Pool(cells, self.workers, self.retries, self.stop_after).run()
