"""`launcher=submitit` and `launcher=ray`: the cells of a sweep as jobs of SLURM or tasks of Ray.

SLURM: the library submitit is used and not Hydra's plugin for it, which occupies hydra/launcher (kleiber has its own
there), composes every job again on its node, and turns SLURM tasks into ranks. Here a job is one task on one node. How
it ended is read from its summary; SLURM is asked only whether the job still exists. Jobs that span nodes are refused.

Ray: a task starts fresh processes, so no state of the run lives in a Ray worker. Ray chooses the machine and the GPUs,
and restarts a task whose worker has died; the task then resumes. All machines must see the folder of runs.
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

from kleiber.config.errors import ConfigError, ExitCode
from kleiber.launch.cell import Cell, Launcher, Task, Watch, group_by_resources, task
from kleiber.launch.ranks import cores
from kleiber.types import Json

WARNING = 90  # seconds before its time limit that a job gets SIGUSR1
TEMPORARY = {"None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit"}  # reasons that pass without action


@dataclass(frozen=True)
class Submitit(Launcher):
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
        self.require(timeout_min=2, cpus_per_task=1, gpus_per_node=0, array_parallelism=1)
        for name in ("partition", "gpus_per_node", "mem_gb", "setup"):
            if self.cluster == "local" and vars(self)[name]:
                raise ConfigError(
                    f"launcher.{name}={vars(self)[name]} has no effect on launcher.cluster=local: remove it"
                )

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        submitit = import_submitit()
        home = cells[0].folder.parent / ".submitit"
        if self.cluster == "local":
            executor = submitit.LocalExecutor(home)
            executor.update_parameters(timeout_min=self.timeout_min)
            at_once = max(1, cores() // max(self._cpus(cell) for cell in cells))
            return Watch(cells, Local(executor, cells, self.cpus_per_task, min(at_once, self.array_parallelism))).run()
        try:
            jobs = self._submit(submitit, home, cells)
        except (OSError, RuntimeError) as e:
            raise ConfigError(f"launcher=submitit: SLURM took no job ({e}); is sbatch there, and is it up?") from e
        return Watch(cells, Queue(jobs)).run()

    def _submit(self, submitit: Any, home: Path, cells: Sequence[Cell]) -> dict[str, Path]:
        """Folders by job id: `12_3`, the fourth job of array 12, or `12` where a cell is alone."""
        jobs: dict[str, Path] = {}
        for group in group_by_resources(cells):
            executor = submitit.SlurmExecutor(home)
            executor.update_parameters(**self.parameters(group[0]))
            with executor.batch():
                sent = [executor.submit(Job(task(cell, self.cpus_per_task))) for cell in group]
            jobs |= {job.job_id: cell.folder for job, cell in zip(sent, group, strict=True)}
            print(f"{len(group)} jobs in SLURM's array {sent[0].job_id.split('_')[0]}", flush=True)
        return jobs

    def _cpus(self, cell: Cell) -> int:
        return self.cpus_per_task or cell.devices * (cell.threads or 1)

    def parameters(self, cell: Cell) -> Json:
        """The options of sbatch, in submitit's names, for cells like this one."""
        gpus = cell.devices if self.gpus_per_node is None and cell.accelerator == "gpu" else self.gpus_per_node
        options = {
            "job_name": cell.folder.parent.name,
            "partition": self.partition,
            "time": self.timeout_min,
            "cpus_per_task": self._cpus(cell),
            "gpus_per_node": gpus,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}MB",
            "array_parallelism": self.array_parallelism,
            "setup": list(self.setup) or None,
            "additional_parameters": {"signal": f"USR1@{WARNING}", "requeue": True},
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A task that returns to the queue after it was preempted, unless SLURM has decided otherwise.

    A signal alone (the time limit's, or `scancel --signal`) leaves the job running: then it queues itself again. SLURM
    that preempts or requeues does so itself, and a cancelled job stays away.
    """

    task: Task

    def __call__(self) -> int:
        job = os.environ["SLURM_JOB_ID"]
        code = self.task()
        if code == ExitCode.PREEMPTED and state(job) == "RUNNING":
            print(f"job {job} goes back to the queue", flush=True)
            subprocess.run(["scontrol", "requeue", job], check=False)
        return code


class Queue:
    """SLURM's jobs of one sweep, asked by squeue."""

    def __init__(self, jobs: dict[str, Path]) -> None:
        self.jobs = jobs
        self.arrays = ",".join(sorted({job.split("_")[0] for job in jobs}))
        self.printed = set(TEMPORARY)

    def pending(self) -> set[Path]:
        """Folders whose jobs wait or run; all of them while SLURM does not answer."""
        answer = subprocess.run(
            ["squeue", "-h", "-r", "-o", "%i %r", "-j", self.arrays], capture_output=True, text=True
        )
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return set(self.jobs.values())
        reasons = dict(row.split(maxsplit=1) for row in answer.stdout.splitlines())
        for reason in set(reasons.values()) - self.printed:
            self.printed.add(reason)
            print(f"SLURM holds jobs back: {reason}", flush=True)
        return {where for job, where in self.jobs.items() if job in reasons}

    def cancel(self) -> None:
        """Sends SIGTERM to every running job, which saves and does not return."""
        subprocess.run(["scancel", *self.arrays.split(",")], check=False, capture_output=True)


class Local:
    """The same jobs as processes of this machine, `at_once` at a time."""

    def __init__(self, executor: Any, cells: Sequence[Cell], cpus: int | None, at_once: int) -> None:
        self.executor, self.waiting, self.at_once = executor, deque(task(cell, cpus) for cell in cells), at_once
        self.live: dict[Path, Any] = {}

    def pending(self) -> set[Path]:
        """Folders whose jobs wait or run; starts those for which there is room."""
        self.live = {where: job for where, job in self.live.items() if not job.done()}
        while self.waiting and len(self.live) < self.at_once:
            next_task = self.waiting.popleft()
            self.live[next_task.where] = self.executor.submit(next_task)
        return {*self.live, *(waiting.where for waiting in self.waiting)}

    def cancel(self) -> None:
        """Sends SIGTERM to every running job and starts no other."""
        self.waiting.clear()
        for job in self.live.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # a local job's id is the number of its process


def state(job: str) -> str:
    """SLURM's state of a job: RUNNING; COMPLETING when it is being ended; empty where SLURM does not know it."""
    return subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True).stdout.strip()


def import_submitit() -> Any:
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError("launcher=submitit needs a package: pip install 'kleiber[launch]'") from None
    return submitit


@dataclass(frozen=True)
class Ray(Launcher):
    """One Ray task per cell.

    address        of a running cluster, or auto for the one on this machine; None starts one here for the sweep
    cpus_per_task  cores of a cell; None means one per device, or `trainer.threads` of them
    """

    address: str | None = None
    cpus_per_task: int | None = None

    def __post_init__(self) -> None:
        self.require(cpus_per_task=1)

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError("launcher=ray needs a package: pip install 'kleiber[ray]'") from None
        try:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"launcher.address={self.address}: no Ray cluster answers there ({error})") from error
        try:
            return Watch(cells, RayTasks(ray, cells, self.cpus_per_task)).run()
        finally:
            ray.shutdown()


class RayTasks:
    """Ray's tasks of one sweep; `ray` is the module."""

    def __init__(self, ray: Any, cells: Sequence[Cell], cpus: int | None) -> None:
        self.ray = ray
        self.tasks = {self._submit(cell, cpus): cell.folder for cell in cells}

    def _submit(self, cell: Cell, cpus: int | None) -> Any:
        needs = {"num_cpus": cpus or cell.devices * (cell.threads or 1)}
        if cell.accelerator == "gpu":
            needs["num_gpus"] = cell.devices
        return self.ray.remote(run_in_ray).options(name=cell.folder.name, **needs).remote(task(cell, cpus))

    def pending(self) -> set[Path]:
        """Folders whose tasks wait or run."""
        _, unfinished = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0, fetch_local=False)
        return {self.tasks[handle] for handle in unfinished}

    def cancel(self) -> None:
        for handle in self.tasks:
            self.ray.cancel(handle, force=False, recursive=False)


def run_in_ray(run: Task) -> int:
    """Runs a task. Ray cancels by an interrupt, which would be Ctrl-C to a run; here it becomes SIGTERM: save, exit."""
    before = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        return run()
    finally:
        signal.signal(signal.SIGINT, before)
