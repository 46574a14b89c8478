"""`launcher=basic` and `launcher=process`: the cells of a sweep on this machine.

`Process` runs at once as many cells as there are cores or GPUs, the output of each in its log.txt. CPU cells of one
device are forked from a server that has imported torch and lightning and never computes, so their first step comes at
once; they have one thread each. Cells of several devices, of several threads or on a GPU are fresh processes.

Ctrl-C ends the children; finished cells stay finished. SIGTERM and SIGUSR1 are forwarded: each child saves and exits,
and no further cell is started. The parent computes nothing.
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
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from kleiber.config.errors import ConfigError, ExitCode, Preempted, Status, on_preemption
from kleiber.launch import process
from kleiber.launch.cell import Cell, Launcher, progress_line
from kleiber.launch.ranks import cores, redirect_output, run_fresh
from kleiber.records import folder
from kleiber.records.catalog import archive_run
from kleiber.records.folder import settle

GRACE = 10  # seconds between one signal to the children and the next, stronger one


def context(start: bool = False) -> ForkServerContext:
    """The context of the fork server; `start` lets it import now, while this process does something else."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    forkserver_context = multiprocessing.get_context("forkserver")
    forkserver_context.set_forkserver_preload(["kleiber.launch.preload"])
    if start:
        from multiprocessing import forkserver

        forkserver.ensure_running()
    return forkserver_context


@dataclass
class Job:
    """A running cell: its process, when it began, and its slots."""

    cell: Cell
    process: ForkServerProcess
    began: float
    slots: list[str]
    attempt: int


class Pool:
    """Runs cells in order as slots become free. A slot is a core or a GPU."""

    def __init__(self, cells: Sequence[Cell], workers: int | None, retries: int, stop_after: int | None) -> None:
        self.pending = deque((cell, 0) for cell in cells)
        self.total, self.retries, self.stop_after = len(cells), retries, stop_after
        self.free = {"cpu": [f"core {i}" for i in range(workers or cores())], "gpu": gpus(workers)}
        self.size = {kind: len(slots) for kind, slots in self.free.items()}
        self.live: dict[int, Job] = {}
        self.codes: dict[Path, int] = {}
        self.signals: list[str] = []
        for cell in cells:
            if cell.accelerator == "gpu" and cell.devices > self.size["gpu"]:
                raise ConfigError(
                    f"trainer.devices={cell.devices}, but there are {self.size['gpu']} GPUs for this sweep"
                )
        self.context = context()

    def run(self) -> dict[Path, int]:
        """Returns exit codes by folder. Raises Preempted when a signal ended the sweep."""
        try:
            with on_preemption(self._forward) as self.signals:
                self._start_what_fits()
                while self.live:
                    for sentinel in wait(list(self.live)):
                        self._finish(self.live.pop(int(sentinel)))  # type: ignore[arg-type]
                    self._start_what_fits()
        except BaseException:
            self._end_all()
            raise
        if self.signals:
            raise Preempted(self.signals[0])
        return self.codes

    def _forward(self, name: str) -> None:
        print(f"{name}: the cells save and exit; the same command continues the sweep", flush=True)
        for job in self.live.values():
            send(job.process, signal.SIGTERM)

    def _start_what_fits(self) -> None:
        while self.pending and not self._stopped():
            cell, attempt = self.pending[0]
            need = self._need(cell)
            slots = self.free[cell.accelerator]
            if need > len(slots):
                return
            self.pending.popleft()
            taken, self.free[cell.accelerator] = slots[:need], slots[need:]
            visible = ",".join(taken) if cell.accelerator == "gpu" else None
            child = self.context.Process(target=work, args=(cell.folder, fresh(cell), cell.devices, visible))
            child.start()
            self.live[child.sentinel] = Job(cell, child, time.monotonic(), taken, attempt)
            if self.signals:  # while it was being started
                send(child, signal.SIGTERM)
        if self._stopped():
            self.pending.clear()

    def _need(self, cell: Cell) -> int:
        """Slots of a cell, never more than there are."""
        wanted = cell.devices * (1 if cell.accelerator == "gpu" else cell.threads or 1)
        return min(wanted, self.size[cell.accelerator])

    def _stopped(self) -> bool:
        failed = sum(map(bool, self.codes.values()))
        return bool(self.signals) or (self.stop_after is not None and failed >= self.stop_after)

    def _finish(self, job: Job) -> None:
        job.process.join()
        code = job.process.exitcode or ExitCode.DONE
        self.free[job.cell.accelerator] += job.slots
        self._settle(job, code)
        seconds = time.monotonic() - job.began
        again = code != 0 and job.attempt < self.retries and not self.signals
        if again:
            self.pending.append((job.cell, job.attempt + 1))
        else:
            self.codes[job.cell.folder] = code
            archive_run(job.cell.folder)
        label = "again" if again else None
        print(progress_line(len(self.codes), self.total, job.cell.folder, code, seconds, label), flush=True)

    def _settle(self, job: Job, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == ExitCode.PREEMPTED or (self.signals and code == -signal.SIGTERM):
            settle(job.cell.folder, Status.PREEMPTED, f"ended with {how}")
        elif code:
            killed = code < 0 or code == ExitCode.INTERRUPTED
            settle(job.cell.folder, Status.KILLED if killed else Status.FAILED, f"ended with {how}; see log.txt")

    def _end_all(self) -> None:
        """Ends every child as Ctrl-C does, then by SIGTERM, then by SIGKILL; each cell keeps its checkpoints."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for job in self.live.values():
                if job.process.is_alive():
                    send(job.process, number)
            until = time.monotonic() + GRACE
            for job in self.live.values():
                job.process.join(max(0.0, until - time.monotonic()))
        for job in self.live.values():
            self._settle(job, ExitCode.INTERRUPTED)


def send(child: ForkServerProcess, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid or 0, number)


def fresh(cell: Cell) -> bool:
    """Whether a cell needs fresh processes in place of a forked one: several devices or threads, or a GPU."""
    return cell.devices > 1 or cell.accelerator != "cpu" or (cell.threads or 1) > 1


def work(where: Path, is_fresh: bool, devices: int, visible: str | None) -> None:
    """The body of a child process: runs one cell, its output in log.txt; a forked child computes in one thread."""
    threading.Thread(target=follow_parent, args=(is_fresh,), daemon=True).start()
    redirect_output(where / "log.txt")
    if is_fresh:
        os.environ.pop("OMP_NUM_THREADS", None)
        sys.exit(run_fresh(where, devices, visible))
    import torch

    torch.set_num_threads(1)
    sys.exit(process.run(folder.read_config(where), where, folder.read_overrides(where)))


def follow_parent(is_fresh: bool) -> None:
    """Ends this process when the sweep's process has ended: the fork server lives as long as its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM if is_fresh else signal.SIGKILL)


def gpus(workers: int | None) -> list[str]:
    """Ids of the GPUs a sweep may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [name for name in visible.split(",") if name]
    else:
        ids = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return ids[:workers] if workers else ids


class Basic(Launcher):
    """One cell after another in this process, its output on the console."""

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        for cell in cells:
            if cell.devices > 1:
                raise ConfigError(
                    f"launcher=basic runs cells in one process, but trainer.devices={cell.devices}: "
                    "set launcher=process or trainer.devices=1"
                )
        codes = {}
        for number, cell in enumerate(cells, 1):
            print(f"[{number}/{len(cells)}] {cell.folder.name}", flush=True)
            codes[cell.folder] = process.run(cell.config, cell.folder, cell.overrides)
            if not cell.config["dry_run"]:
                archive_run(cell.folder)
            if codes[cell.folder] == ExitCode.INTERRUPTED:
                raise KeyboardInterrupt
            if codes[cell.folder] == ExitCode.PREEMPTED:
                raise Preempted(f"cell {number} of {len(cells)}")
        return codes


@dataclass(frozen=True)
class Process(Launcher):
    """One process per cell.

    workers     cells at once; None means one per core
    retries     how often a failed cell is started again
    stop_after  start no further cells after this number of failures; None means no limit
    """

    workers: int | None = None
    retries: int = 0
    stop_after: int | None = None

    def __post_init__(self) -> None:
        self.require(workers=1, retries=0, stop_after=1)

    def warm_up(self) -> None:
        """Lets the fork server import while the cells are composed."""
        context(start=True)

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        return Pool(cells, self.workers, self.retries, self.stop_after).run()
