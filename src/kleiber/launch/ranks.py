"""A run in fresh processes, one per device: its ranks, started by torch.distributed.run.

Each rank reads the config that its parent process wrote (`kleiber.launch.process`), so no command line is parsed twice.
Rank 0 prints to the console, the other ranks to files in `ranks/`. An agent process between parent and ranks,
`python -m kleiber.launch.ranks FOLDER N`, runs torch.distributed.run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from kleiber.config.child_process import python_command, safe_environment
from kleiber.config.errors import (
    SIGNAL_CODES,
    ConfigError,
    ExitCode,
    Status,
    exit_on_signals,
    on_preemption,
    preempted_by,
    signals_held,
)
from kleiber.config.model_size import available_cores
from kleiber.launch.rank_failures import FAILURES, Failure, end_of, first_failure, record_killed_ranks
from kleiber.records.folder import status, write_final_status
from kleiber.records.locks import scratch_folder
from kleiber.records.regular_files import make_folder, open_to_append
from kleiber.records.terminal import print_line

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
NOT_INHERITED = (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PL_GLOBAL_SEED", "WANDB_RUN_ID")
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")  # variables that torchrun or SLURM sets in every rank
CELL_VARIABLE, PARENT = "KLEIBER_CELL", "KLEIBER_PARENT"
STOP_SECONDS = 40  # that an agent may take to end its ranks


def rank() -> int:
    """Returns the rank of this process; 0 for a run of one process."""
    return int(os.environ.get("RANK", "0"))


def started_as_rank() -> bool:
    """Whether torchrun or SLURM's srun started this process as a rank; then its rank variables are set.

    Raises ConfigError when rank variables are set but not by torchrun or SLURM, because this process would then wait
    for other ranks that do not exist, and for nodes with different numbers of processes.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        os.environ |= slurm_variables(os.environ)
    variables = [name for name in RANK_VARIABLES if name in os.environ]
    supported = any(name in os.environ for name in LAUNCHERS)
    if variables and not supported:
        values = " ".join(f"{name}={os.environ[name]}" for name in variables)
        raise ConfigError(
            f"environment variables {values} are left over from another program, not set by torchrun or SLURM: "
            f"unset {' '.join(variables)}"
        )
    return supported and "RANK" in os.environ


def slurm_variables(step: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that torchrun would set in this task of a step of SLURM: its rank, and where rank 0 is.

    step  variables that srun sets; a MASTER_ADDR or MASTER_PORT among them takes precedence

    Raises ConfigError for nodes with different numbers of tasks.
    """
    here, _, others = step["SLURM_STEP_TASKS_PER_NODE"].partition(",")
    if others:
        raise ConfigError(
            f"srun starts {step['SLURM_STEP_TASKS_PER_NODE']} tasks on the nodes: set --ntasks-per-node, so that every "
            "node has the same number of them"
        )
    job, number = int(step["SLURM_JOB_ID"]), int(step["SLURM_STEP_ID"])
    nodes = re.match(r"([^,\[]+)(?:\[(\w+))?", step["SLURM_STEP_NODELIST"])  # node[07-09] begins with node07
    assert nodes is not None
    return {
        "RANK": step["SLURM_PROCID"],
        "LOCAL_RANK": step["SLURM_LOCALID"],
        "GROUP_RANK": step["SLURM_NODEID"],
        "WORLD_SIZE": step["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": here.partition("(")[0],
        "MASTER_ADDR": step.get("MASTER_ADDR", f"{nodes[1]}{nodes[2] or ''}"),
        "MASTER_PORT": step.get("MASTER_PORT", str(10_000 + (101 * job + number) % 20_000)),
        "TORCHELASTIC_RUN_ID": f"slurm-{job}.{number}",
    }


def run_fresh(folder: Path, devices: int, visible: str | None = None) -> int:
    """Runs the run in `folder` in fresh processes, one per device.

    Returns 0, or the exit code of the rank that failed first, whose error it also writes to summary.json.

    visible  value of CUDA_VISIBLE_DEVICES in these processes
    """
    with scratch_folder("kleiber-ranks-") as failures:
        env = {name: value for name, value in safe_environment().items() if name not in NOT_INHERITED}
        env |= {CELL_VARIABLE: "1", FAILURES: str(failures), PARENT: str(os.getpid())}
        env.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // devices)))
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        module = (
            ["kleiber.launch.process", str(folder)]
            if devices == 1
            else ["kleiber.launch.ranks", str(folder), str(devices)]
        )
        with contextlib.ExitStack() as stack:
            with signals_held():
                process = subprocess.Popen(python_command(*module), env=env)
                received = stack.enter_context(forward_signals(process, folder))
            # Ray interrupts a task without a signal of the system, which would not end a wait without a time limit.
            while (code := process.poll()) is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
        if code == ExitCode.DONE:
            return code
        failure = first_failure(failures, devices)
        # The signal decides where it ended the ranks, and where they had not started to train, so could not save.
        stopped = (Status.MISSING, Status.KILLED, Status.PREEMPTED, Status.INTERRUPTED)
        if received and (failure is None or failure.code in SIGNAL_CODES or status(folder) in stopped):
            reason = preempted_by(received[0], "")
            failure = Failure(reason.status.exit_code, str(reason))
        elif failure is None:
            failure = Failure(code if code > 0 else ExitCode.FAILED, end_of(code), is_cause=True)
            print_line(f"kleiber: {' '.join(module)}: {failure.error}", err=True)
    record_end(folder, failure)
    return failure.code


def record_end(folder: Path, failure: Failure) -> None:
    """Writes the final status of a run whose ranks have failed or were preempted, where rank 0 did not write it."""
    if failure.code in SIGNAL_CODES:
        final = Status.PREEMPTED if failure.code == ExitCode.PREEMPTED else Status.INTERRUPTED
        write_final_status(folder, final, failure.error, (Status.PREEMPTED,))
        return
    # A rank that fails ends the others by SIGTERM, so rank 0 may have written the status `preempted`.
    replaceable = (Status.PREEMPTED, Status.FAILED) if failure.is_cause else (Status.PREEMPTED,)
    write_final_status(folder, Status.FAILED, failure.error, replaceable)


@contextlib.contextmanager
def forward_signals(process: subprocess.Popen[bytes], folder: Path) -> Iterator[list[str]]:
    """Forwards SIGTERM, SIGUSR1 and Ctrl-C to `process` as SIGTERM, and ends it on exit if it still runs.

    Yields the list of names of the signals that came. A second Ctrl-C kills the process, and with it the ranks.
    """

    def kill() -> None:
        process.kill()
        write_final_status(folder, Status.INTERRUPTED, "SIGINT, twice: no new checkpoint was written")

    try:
        with on_preemption(lambda _: process.terminate(), kill) as received:
            yield received
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def end_with_parent(signal_number: int) -> None:
    """Asks the kernel to send `signal_number` to this process when its parent dies, or sends it if it has died already.

    Does nothing outside Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal_number)  # PR_SET_PDEATHSIG
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), signal_number)


def redirect_rank_output(folder: Path) -> None:
    """Redirects the output of every rank except 0 to a file in `folder`/ranks, so that only rank 0 prints."""
    if rank() == 0:
        return
    redirect_output(make_folder(folder, "ranks") / f"{rank()}.txt")


def redirect_output(path: Path) -> None:
    """Redirects stdout and stderr of this process and its children to a file, to which they are appended."""
    with open_to_append(path) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def run_agent(folder: str, devices: str) -> int:
    """Runs the ranks of a run and returns 1 if any of them failed. The ranks print their errors, the agent does not."""
    import logging

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process forwards Ctrl-C as SIGTERM
    exit_on_signals()
    end_with_parent(signal.SIGTERM)
    os.environ |= {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT", PARENT: str(os.getpid())}
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    try:
        run.main(["--standalone", f"--nproc-per-node={devices}", "-m", "kleiber.launch.process", folder])
    except ChildFailedError as error:
        record_killed_ranks({number: failure.exitcode for number, failure in error.failures.items()})
        return 1
    except SignalException:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_agent(*sys.argv[1:]))
