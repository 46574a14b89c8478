"""`launcher=submitit`: the cells of a sweep as arrays of SLURM jobs, or as local jobs to try the same without SLURM.

The library submitit is used and not Hydra's plugin for it: that one wants to be hydra/launcher, where kleiber's own
stands, composes every job again on its node, and makes ranks of SLURM tasks. Here a job is one task on one node, which
runs a folder as `launcher=process` would; what became of it is read from its summary, and SLURM is asked only whether
it is still there. It refuses a machine without SLURM or submitit, and jobs that span nodes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kleiber.config.errors import ConfigError
from kleiber.config.signals import PREEMPTED
from kleiber.launch.cell import Cell
from kleiber.launch.ranks import cores
from kleiber.launch.scheduler import Task, Watch, alike, task

WARNING = 90  # seconds before its time limit that a job gets SIGUSR1


@dataclass(frozen=True)
class Submitit:
    """One job per cell.

    cluster            slurm, or local: processes of this machine, one per core at once
    partition          SLURM's; None means its default, as for all that follow
    timeout_min        of a job in minutes; 90 s before, it saves and queues itself again
    cpus_per_task      cores of a job; None means one per device, or `trainer.threads` of them
    gpus_per_node      GPUs of a job; None means trainer.devices on accelerator=gpu
    mem_gb             memory of a job
    array_parallelism  jobs at once
    setup              shell lines before the job, such as "module load cuda"
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    timeout_min: int = 60
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    array_parallelism: int = 256
    setup: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("timeout_min", 2), ("cpus_per_task", 1), ("gpus_per_node", 0), ("array_parallelism", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"launcher.{name}={value}: write a number from {least}")
        given = [name for name in ("partition", "gpus_per_node", "mem_gb", "setup") if getattr(self, name)]
        if self.cluster == "local" and given:
            raise ConfigError(f"launcher.{given[0]}={getattr(self, given[0])}: launcher.cluster=local cannot honour it")

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        submitit = imported()
        home = cells[0].folder.parent / ".submitit"
        if self.cluster == "local":
            executor = submitit.LocalExecutor(home)
            executor.update_parameters(timeout_min=self.timeout_min)
            at_once = max(1, cores() // max(self._cpus(one) for one in cells))
            return Watch(cells, Local(executor, cells, self.cpus_per_task, min(at_once, self.array_parallelism))).run()
        try:
            jobs = self._submit(submitit, home, cells)
        except (OSError, RuntimeError) as e:
            raise ConfigError(f"launcher=submitit: SLURM took no job ({e}); is sbatch there, and is it up?") from e
        return Watch(cells, Queue(jobs)).run()

    def _submit(self, submitit: Any, home: Path, cells: Sequence[Cell]) -> dict[str, Path]:
        """Folders by job id: `12_3`, the fourth job of array 12, or `12` where one cell stands alone."""
        jobs: dict[str, Path] = {}
        for group in alike(cells):
            executor = submitit.SlurmExecutor(home)
            executor.update_parameters(**self.parameters(group[0]))
            with executor.batch():
                sent = [executor.submit(Job(task(one, self.cpus_per_task))) for one in group]
            jobs |= {job.job_id: one.folder for job, one in zip(sent, group, strict=True)}
            print(f"{len(group)} jobs in SLURM's array {sent[0].job_id.split('_')[0]}", flush=True)
        return jobs

    def _cpus(self, one: Cell) -> int:
        return self.cpus_per_task or one.devices * (one.threads or 1)

    def parameters(self, one: Cell) -> dict[str, Any]:
        """What sbatch is told for cells like this one."""
        gpus = one.devices if self.gpus_per_node is None and one.accelerator == "gpu" else self.gpus_per_node
        given = {
            "job_name": one.folder.parent.name,
            "partition": self.partition,
            "time": self.timeout_min,
            "cpus_per_task": self._cpus(one),
            "gpus_per_node": gpus,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}MB",
            "array_parallelism": self.array_parallelism,
            "setup": list(self.setup) or None,
            "additional_parameters": {"signal": f"USR1@{WARNING}", "requeue": True},
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A task that goes back to the queue when it was asked to make room and SLURM has not decided otherwise.

    A signal alone (the time limit's, or `scancel --signal`) leaves the job running: then it queues itself again. SLURM
    that preempts or requeues does so itself, and a cancelled job stays away.
    """

    task: Task

    def __call__(self) -> int:
        job = os.environ["SLURM_JOB_ID"]
        code = self.task()
        if code == PREEMPTED and state(job) == "RUNNING":
            print(f"job {job} goes back to the queue", flush=True)
            subprocess.run(["scontrol", "requeue", job], check=False)
        return code


class Queue:
    """SLURM's jobs of one sweep: which are there, and their end."""

    def __init__(self, jobs: dict[str, Path]) -> None:
        self.jobs = jobs
        self.arrays = ",".join(sorted({job.split("_")[0] for job in jobs}))
        self.told = {"None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit"}  # what passes by itself

    def there(self) -> set[Path]:
        """Folders whose jobs wait or run; all of them while SLURM does not answer."""
        asked = subprocess.run(["squeue", "-h", "-r", "-o", "%i %r", "-j", self.arrays], capture_output=True, text=True)
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return set(self.jobs.values())
        found = dict(row.split(maxsplit=1) for row in asked.stdout.splitlines())
        for reason in set(found.values()) - self.told:
            self.told.add(reason)
            print(f"SLURM holds jobs back: {reason}", flush=True)
        return {where for job, where in self.jobs.items() if job in found}

    def cancel(self) -> None:
        """Every running job gets SIGTERM, saves, and does not come back."""
        subprocess.run(["scancel", *self.arrays.split(",")], check=False, capture_output=True)


class Local:
    """The same jobs as processes of this machine, as many at once as there are cores for."""

    def __init__(self, executor: Any, cells: Sequence[Cell], cpus: int | None, at_once: int) -> None:
        self.executor, self.waiting, self.at_once = executor, deque(task(one, cpus) for one in cells), at_once
        self.live: dict[Path, Any] = {}

    def there(self) -> set[Path]:
        self.live = {where: job for where, job in self.live.items() if not job.done()}
        while self.waiting and len(self.live) < self.at_once:
            one = self.waiting.popleft()
            self.live[one.where] = self.executor.submit(one)
        return {*self.live, *(one.where for one in self.waiting)}

    def cancel(self) -> None:
        self.waiting.clear()
        for job in self.live.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # which is the number of its process


def state(job: str) -> str:
    """What SLURM says of a job: RUNNING; COMPLETING when it is being ended; nothing where it does not know it."""
    return subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True).stdout.strip()


def imported() -> Any:
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError("launcher=submitit needs a package: pip install 'kleiber[launch]'") from None
    return submitit
