"""Processes for the cells of a sweep: as many at once as there are cores or GPUs, each cell's output in its log.txt.

Ctrl-C ends the children, and what is finished stays finished. SIGTERM and SIGUSR1 are handed to them: each saves and
leaves, and no further cell is started. The parent computes nothing.
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
from pathlib import Path
from typing import Any

from kleiber.config.errors import ConfigError
from kleiber.config.signals import PREEMPTED, Preempted, heeding
from kleiber.launch import process as cell
from kleiber.launch.cell import Cell, line
from kleiber.launch.ranks import cores, run_fresh
from kleiber.records import folder
from kleiber.records.catalog import archive_run
from kleiber.records.folder import settle

GRACE = 10  # seconds between asking a child to end and ending it


def context(start: bool = False) -> Any:
    """The fork server's; `start` lets it import now, while this process does something else."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["kleiber.launch.preload"])
    if start:
        from multiprocessing import forkserver

        forkserver.ensure_running()
    return made


@dataclass
class Job:
    """A cell at work: its process, since when, on which of the slots."""

    cell: Cell
    process: Any
    began: float
    slots: list[str]
    attempt: int


class Pool:
    """Runs cells in order as slots get free. A slot is a core or a GPU."""

    def __init__(self, cells: Sequence[Cell], workers: int | None, retries: int, stop_after: int | None) -> None:
        self.pending = deque((one, 0) for one in cells)
        self.total, self.retries, self.stop_after = len(cells), retries, stop_after
        self.free = {"cpu": [f"core {i}" for i in range(workers or cores())], "gpu": gpus(workers)}
        self.size = {kind: len(slots) for kind, slots in self.free.items()}
        self.live: dict[int, Job] = {}
        self.codes: dict[Path, int] = {}
        self.asked: list[str] = []
        for one in cells:
            if one.accelerator == "gpu" and one.devices > self.size["gpu"]:
                raise ConfigError(
                    f"trainer.devices={one.devices}, but there are {self.size['gpu']} GPUs for this sweep"
                )
        self.context = context()

    def run(self) -> dict[Path, int]:
        try:
            with heeding(self._hand_on) as self.asked:
                self._start_what_fits()
                while self.live:
                    for sentinel in wait(list(self.live)):
                        self._finish(self.live.pop(int(sentinel)))  # type: ignore[arg-type]
                    self._start_what_fits()
        except BaseException:
            self._end_all()
            raise
        if self.asked:
            raise Preempted(self.asked[0])
        return self.codes

    def _hand_on(self, name: str) -> None:
        print(f"{name}: the cells save and leave; the same command goes on", flush=True)
        for job in self.live.values():
            tell(job.process, signal.SIGTERM)

    def _start_what_fits(self) -> None:
        while self.pending and not self._stopped():
            one, attempt = self.pending[0]
            need = self._need(one)
            slots = self.free[one.accelerator]
            if need > len(slots):
                return
            self.pending.popleft()
            taken, self.free[one.accelerator] = slots[:need], slots[need:]
            visible = ",".join(taken) if one.accelerator == "gpu" else None
            process = self.context.Process(target=work, args=(one.folder, fresh(one), one.devices, visible))
            process.start()
            self.live[process.sentinel] = Job(one, process, time.monotonic(), taken, attempt)
            if self.asked:  # while it was being started
                tell(process, signal.SIGTERM)
        if self._stopped():
            self.pending.clear()

    def _need(self, one: Cell) -> int:
        wanted = one.devices * (1 if one.accelerator == "gpu" else one.threads or 1)
        return min(wanted, self.size[one.accelerator])

    def _stopped(self) -> bool:
        failed = sum(map(bool, self.codes.values()))
        return bool(self.asked) or (self.stop_after is not None and failed >= self.stop_after)

    def _finish(self, job: Job) -> None:
        job.process.join()
        code = job.process.exitcode
        self.free[job.cell.accelerator] += job.slots
        self._settle(job, code)
        seconds = time.monotonic() - job.began
        again = code != 0 and job.attempt < self.retries and not self.asked
        if again:
            self.pending.append((job.cell, job.attempt + 1))
        else:
            self.codes[job.cell.folder] = code
            archive_run(job.cell.folder)
        print(line(len(self.codes), self.total, job.cell.folder, code, seconds, "again" if again else None), flush=True)

    def _settle(self, job: Job, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == PREEMPTED or (self.asked and code == -signal.SIGTERM):
            settle(job.cell.folder, "preempted", f"ended with {how}")
        elif code:
            ended = code < 0 or code == cell.INTERRUPTED
            settle(job.cell.folder, "killed" if ended else "failed", f"ended with {how}; see log.txt")

    def _end_all(self) -> None:
        """Asks every child to end as Ctrl-C does, then more firmly; each cell keeps its checkpoints."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for job in self.live.values():
                if job.process.is_alive():
                    tell(job.process, number)
            until = time.monotonic() + GRACE
            for job in self.live.values():
                job.process.join(max(0.0, until - time.monotonic()))
        for job in self.live.values():
            self._settle(job, cell.INTERRUPTED)


def tell(process: Any, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def fresh(one: Cell) -> bool:
    """Whether a cell needs processes of its own kind: more devices or threads than one, or a GPU."""
    return one.devices > 1 or one.accelerator != "cpu" or (one.threads or 1) > 1


def work(where: Path, is_fresh: bool, devices: int, visible: str | None) -> None:
    """The body of a child: output to log.txt, one thread, one cell."""
    threading.Thread(target=follow_parent, args=(is_fresh,), daemon=True).start()
    log_to(where)
    if is_fresh:
        os.environ.pop("OMP_NUM_THREADS", None)
        sys.exit(run_fresh(where, devices, visible))
    import torch

    torch.set_num_threads(1)
    sys.exit(cell.run(folder.read_config(where), where, folder.read_overrides(where)))


def log_to(where: Path) -> None:
    """Sends all that this process and its children print to the log.txt of a cell."""
    with open(where / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def follow_parent(is_fresh: bool) -> None:
    """Ends this process when the sweep is gone, however it went: the fork server lives as long as its children do."""
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
