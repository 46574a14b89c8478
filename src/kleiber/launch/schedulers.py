"""`launcher=submitit` and `launcher=ray`: the cells of a sweep as jobs of SLURM or tasks of Ray.

SLURM: a job is one SLURM task on one node, submitted with the library submitit. How it ended is read from its summary;
SLURM is only asked whether the job still exists. A job cannot span nodes. Hydra's plugin for submitit is not used: it
composes every job again on its node, turns SLURM tasks into ranks, and needs hydra/launcher, where kleiber has its own.

Ray: a task starts fresh processes, so a Ray worker holds no state of a run. Ray chooses the machine and the GPUs, and
starts a task again when its worker dies; the run then resumes. All machines must see the folder of the runs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

from annotated_types import Ge, Le

from kleiber.config.child_process import SAFE, safe_children
from kleiber.config.errors import ConfigError, ExitCode
from kleiber.config.model_size import available_cores
from kleiber.launch.cell import Cell, JobMonitor, Launcher, LocalJobs, Task, group_by_resources, make_task
from kleiber.records.terminal import print_line
from kleiber.types import Count, Json, Natural, Positive
from kleiber.types.access import CodePath

ARRAY_SIZE = 1001  # SLURM's default of MaxArraySize
WARNING_SECONDS = 90  # time before the limit of a job at which SLURM sends it SIGUSR1
TEMPORARY_REASONS = {"None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit"}  # the user need not act


@dataclass(frozen=True)
class Submitit(Launcher):
    """Runs each cell as a job of SLURM.

    cluster            slurm, or local: the same jobs as processes of this machine, at most one per core at once
    partition          SLURM partition; None means the default of the cluster, as for the options below
    timeout_min        time limit of a job in minutes; 90 s before it, the job saves and queues itself again
    cpus_per_task      CPU cores of a job; None means one per device, or `trainer.threads` per device
    gpus_per_node      GPUs of a job; None means trainer.devices if accelerator=gpu
    mem_gb             memory of a job in GB
    array_parallelism  largest number of jobs of an array that run at once
    setup              shell lines to run before the job, such as "module load cuda"
    """

    cluster: Literal["slurm", "local"] = "slurm"
    partition: str | None = None
    timeout_min: Annotated[int, Ge(2), Le(10**7)] = 60
    cpus_per_task: Count | None = None
    gpus_per_node: Natural | None = None
    mem_gb: Positive | None = None
    array_parallelism: Count = 256
    setup: Sequence[CodePath] = ()

    def __post_init__(self) -> None:
        for name in ("partition", "gpus_per_node", "mem_gb", "setup"):
            if self.cluster == "local" and vars(self)[name]:
                raise ConfigError(
                    f"launcher.{name}={vars(self)[name]} has no effect with launcher.cluster=local: remove it"
                )

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Submits the cells and waits for their jobs; returns exit codes by folder."""
        submitit = import_submitit()
        home = cells[0].folder.parent / ".submitit"
        if self.cluster == "local":
            executor = submitit.LocalExecutor(home)
            executor.update_parameters(timeout_min=self.timeout_min)
            at_once = max(1, available_cores() // max(self._cpus(cell) for cell in cells))
            jobs = LocalJobs(executor, cells, self.cpus_per_task, min(at_once, self.array_parallelism))
            return JobMonitor(cells, jobs).run()
        try:
            folders = self._submit(submitit, home, cells)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"launcher=submitit: SLURM refused jobs of this sweep ({error}), and those that it had accepted are "
                "canceled: check that this machine has the command sbatch, and that SLURM allows the partition, the "
                "resources and the number of jobs"
            ) from error
        return JobMonitor(cells, SlurmJobs(folders)).run()

    def _submit(self, submitit: ModuleType, home: Path, cells: Sequence[Cell]) -> dict[str, Path]:
        """Submits the cells and returns their folders by job id: `12_3` is job 3 of array 12, `12` a single job.

        Cancels the jobs that SLURM has accepted when it refuses a later array, or when this process is interrupted.
        """
        jobs: dict[str, Path] = {}
        size = max_array_size()
        groups = [
            group[start : start + size] for group in group_by_resources(cells) for start in range(0, len(group), size)
        ]
        try:
            for group in groups:
                executor = submitit.SlurmExecutor(home)
                executor.update_parameters(**self.parameters(group[0]))
                with safe_children(), executor.batch():
                    submitted = [executor.submit(Job(make_task(cell, self.cpus_per_task))) for cell in group]
                jobs |= {job.job_id: cell.folder for job, cell in zip(submitted, group, strict=True)}
                print_line(f"submitted {len(group)} jobs as SLURM array {submitted[0].job_id.split('_')[0]}")
        except BaseException:
            if jobs:
                SlurmJobs(jobs).cancel()
            raise
        return jobs

    def _cpus(self, cell: Cell) -> int:
        return self.cpus_per_task or cell.devices * (cell.threads or 1)

    def parameters(self, cell: Cell) -> Json:
        """Returns the options of the job of a cell, under the names of submitit's `SlurmExecutor`."""
        gpus = cell.devices if self.gpus_per_node is None and cell.accelerator == "gpu" else self.gpus_per_node
        options = {
            "job_name": cell.folder.parent.name,
            "partition": self.partition,
            "time": self.timeout_min,
            "cpus_per_task": self._cpus(cell),
            "gpus_per_node": gpus,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}MB",
            "array_parallelism": self.array_parallelism,
            "setup": [*(f"export {name}={value}" for name, value in SAFE.items()), *self.setup],
            "additional_parameters": {"signal": f"USR1@{WARNING_SECONDS}", "requeue": True},
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A task that goes back to SLURM's queue when it was preempted.

    After a signal alone (at the time limit, or by `scancel --signal`) SLURM still counts the job as running, and the
    job requeues itself. A job that SLURM preempts is requeued by SLURM, and a canceled job must not come back.
    """

    task: Task

    def __call__(self) -> int:
        job = job_id()
        code = self.task()
        if code == ExitCode.PREEMPTED and job_state(job) == "RUNNING":
            print_line(f"requeueing job {job}")
            subprocess.run(["scontrol", "requeue", job], check=False)
        return code


class SlurmJobs:
    """The SLURM jobs of a sweep.

    folders  of the cells, by job id
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.arrays = ",".join(sorted({job.split("_")[0] for job in folders}))
        self.printed = set(TEMPORARY_REASONS)

    def pending(self) -> set[Path]:
        """Returns the folders whose jobs wait or run; all folders while SLURM does not answer.

        Prints why jobs wait, unless the reason passes by itself.
        """
        answer = subprocess.run(
            ["squeue", "-h", "-r", "-o", "%i %r", "-j", self.arrays], capture_output=True, text=True
        )
        if answer.returncode and "Invalid job id" not in answer.stderr:
            return set(self.folders.values())
        reasons = dict(row.split(maxsplit=1) for row in answer.stdout.splitlines())
        for reason in set(reasons.values()) - self.printed:
            self.printed.add(reason)
            print_line(f"SLURM does not start all jobs; its reason is {reason}")
        return {folder for job, folder in self.folders.items() if job in reasons}

    def cancel(self) -> None:
        """Cancels all jobs: running jobs get SIGTERM, save and exit, and do not come back."""
        subprocess.run(["scancel", *self.arrays.split(",")], check=False, capture_output=True)


def max_array_size() -> int:
    """Returns the largest number of jobs of an array, SLURM's MaxArraySize; its default where SLURM does not answer."""
    try:
        answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    except OSError:  # no such command
        answer = ""
    setting = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
    return max(1, int(setting[1])) if setting else ARRAY_SIZE


def job_id() -> str:
    """Returns the id of the job that this process runs in: `12_3` for job 3 of array 12.

    SLURM_JOB_ID of one job of an array is the id of the array, by which SLURM's commands mean all of its jobs.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def job_state(job: str) -> str:
    """Returns SLURM's state of a job, such as RUNNING or COMPLETING; an empty string for an unknown job."""
    return subprocess.run(["squeue", "-h", "-o", "%T", "-j", job], capture_output=True, text=True).stdout.strip()


def import_submitit() -> ModuleType:
    """Imports submitit. Raises ConfigError when it is not installed."""
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError("launcher=submitit needs the package submitit: pip install 'kleiber[launch]'") from None
    return submitit


@dataclass(frozen=True)
class Ray(Launcher):
    """Runs each cell as a task of Ray.

    address        address of a running cluster, or auto for the cluster on this machine; None starts a cluster here,
                   which ends with the sweep
    cpus_per_task  CPU cores of a cell; None means one per device, or `trainer.threads` per device
    """

    address: CodePath | None = None
    cpus_per_task: Count | None = None

    def run(self, cells: Sequence[Cell]) -> dict[Path, int]:
        """Runs the cells as tasks of Ray and waits for them; returns exit codes by folder."""
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError("launcher=ray needs the package ray: pip install 'kleiber[ray]'") from None
        try:
            with safe_children():
                ray.init(
                    address=self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                    runtime_env={"env_vars": SAFE},
                )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"launcher.address={self.address}: no Ray cluster answers at this address ({error}); start one, or set "
                "launcher.address=null"
            ) from error
        try:
            return JobMonitor(cells, RayTasks(ray, cells, self.cpus_per_task)).run()
        finally:
            ray.shutdown()


class RayTasks:
    """The Ray tasks of a sweep.

    ray  the imported package
    """

    def __init__(self, ray: ModuleType, cells: Sequence[Cell], cpus: int | None) -> None:
        self.ray = ray
        self.folders = {self._submit(cell, cpus): cell.folder for cell in cells}

    def _submit(self, cell: Cell, cpus: int | None) -> object:
        """Starts the task of a cell and returns Ray's reference to its result."""
        resources = {"num_cpus": cpus or cell.devices * (cell.threads or 1)}
        if cell.accelerator == "gpu":
            resources["num_gpus"] = cell.devices
        remote = self.ray.remote(run_in_ray).options(name=cell.folder.name, **resources)
        return remote.remote(make_task(cell, cpus))

    def pending(self) -> set[Path]:
        """Returns the folders whose tasks wait or run."""
        _, unfinished = self.ray.wait(list(self.folders), num_returns=len(self.folders), timeout=0, fetch_local=False)
        return {self.folders[reference] for reference in unfinished}

    def cancel(self) -> None:
        """Interrupts every task; `run_in_ray` turns the interrupt into SIGTERM, so that the run saves."""
        for reference in self.folders:
            self.ray.cancel(reference, force=False, recursive=False)


def run_in_ray(task: Task) -> int:
    """Runs a task in a Ray worker and returns its exit code.

    Ray cancels a task by SIGINT, which a run would take for Ctrl-C. This function turns it into SIGTERM, so that the
    run saves a checkpoint and exits as preempted.
    """
    before = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        return task()
    finally:
        signal.signal(signal.SIGINT, before)
