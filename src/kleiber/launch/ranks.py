"""Fresh processes for one run, one per device: its ranks, started by torch.distributed.run.

Each rank reads the config that its parent wrote (`kleiber.launch.process`), so no command line is parsed twice. Rank 0
has the console, the others write to `ranks/`, and the error names the rank that failed first. The agent between parent
and ranks is `python -m kleiber.launch.ranks FOLDER N`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from kleiber.config.errors import ConfigError, ExitCode, Status, on_preemption
from kleiber.records.folder import settle, status

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
FROM_OUTSIDE = (*VARIABLES, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PL_GLOBAL_SEED", "WANDB_RUN_ID")
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
CELL, FAILURES = "KLEIBER_CELL", "KLEIBER_FAILURES"
PATIENCE = 40  # seconds that an agent may take to end its ranks


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def launched() -> bool:
    """Whether torchrun or SLURM started this process as a rank.

    Raises ConfigError for stale variables: with them a rank would wait for others that never come.
    """
    variables = [name for name in VARIABLES if name in os.environ]
    supported = any(name in os.environ for name in LAUNCHERS)
    if variables and not supported:
        values = " ".join(f"{name}={os.environ[name]}" for name in variables)
        raise ConfigError(
            f"stale distributed variables {values}: neither torchrun nor SLURM set them; unset {' '.join(variables)}"
        )
    return supported and "RANK" in os.environ


def run_fresh(folder: Path, devices: int, visible: str | None = None) -> int:
    """Runs `folder` in fresh processes, one per device, and returns the exit code of the rank that failed first."""
    with tempfile.TemporaryDirectory(prefix="kleiber-") as failures:
        env = {name: value for name, value in os.environ.items() if name not in FROM_OUTSIDE}
        env |= {CELL: "1", FAILURES: failures}
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        module = (
            ["kleiber.launch.process", str(folder)]
            if devices == 1
            else ["kleiber.launch.ranks", str(folder), str(devices)]
        )
        process = subprocess.Popen([sys.executable, "-m", *module], env=env)
        try:
            with ending_with(process) as received:
                code = process.wait()
        except KeyboardInterrupt:
            settle(folder, Status.KILLED, "interrupted (Ctrl-C)")
            raise
        if code == ExitCode.DONE:
            return code
        code, error = first_failure(Path(failures)) or (code if code > 0 else ExitCode.FAILED, f"exit code {code}")
        # Some ranks saved; others had not started to train, and could not.
        if received and status(folder) in (Status.MISSING, Status.KILLED, Status.PREEMPTED):
            code, error = ExitCode.PREEMPTED, f"{received[0]}: earlier checkpoints remain"
    if code == ExitCode.PREEMPTED:
        settle(folder, Status.PREEMPTED, error)
    else:  # a failing rank ends the others by SIGTERM, so rank 0 may have written that it was preempted
        settle(folder, Status.FAILED, error, over=Status.PREEMPTED)
    return code


@contextlib.contextmanager
def ending_with(process: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Forwards SIGTERM, SIGUSR1 (as SIGTERM) and Ctrl-C to `process`, and ends it on exit if it still runs."""
    last_signal = signal.SIGTERM
    try:
        with on_preemption(lambda _: process.terminate()) as received:
            yield received
    except KeyboardInterrupt:
        last_signal = signal.SIGINT
        raise
    finally:
        if process.poll() is None:
            process.send_signal(last_signal)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def first_failure(failures: Path) -> tuple[int, str] | None:
    """Exit code and error of the rank that failed first. Prints its traceback, unless rank 0 printed the same error."""
    records = sorted((json.loads(file.read_text()) for file in failures.glob("*.json")), key=itemgetter("time"))
    if not records:
        return None
    first = records[0]
    printed = any(record["rank"] == 0 and record["error"] == first["error"] for record in records)
    if not printed and first["code"] != ExitCode.PREEMPTED:
        print(f"rank {first['rank']} failed first:\n{first['trace'] or first['error']}", file=sys.stderr)
    return first["code"], f"rank {first['rank']}: {first['error']}"


def record_failure(code: int, error: BaseException | None) -> None:
    """Writes exit code, error and traceback of this rank for `first_failure` of the parent, if kleiber started it."""
    if FAILURES not in os.environ:
        return
    trace = "" if error is None else "".join(traceback.format_exception(error))
    record = {"rank": rank(), "code": code, "time": time.time(), "error": repr(error), "trace": trace}
    Path(os.environ[FAILURES], f"{rank()}.json").write_text(json.dumps(record))


def join_parent(signal_number: int) -> None:
    """Asks the kernel to send `signal_number` to this process when its parent dies. Does nothing outside Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal_number)  # PR_SET_PDEATHSIG


def silence(folder: Path) -> None:
    """Sends the output of every rank but 0 to `ranks/` of the run's folder, so that a job has one console."""
    if rank() == 0:
        return
    (folder / "ranks").mkdir(parents=True, exist_ok=True)
    redirect_output(folder / "ranks" / f"{rank()}.txt")


def redirect_output(path: Path) -> None:
    """Appends everything that this process and its children print to a file."""
    with open(path, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def agent(folder: str, devices: str) -> int:
    """Runs the ranks of one job. The ranks print their errors; the agent prints no traceback of its own."""
    import logging

    join_parent(signal.SIGTERM)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    try:
        run.main(["--standalone", f"--nproc-per-node={devices}", "-m", "kleiber.launch.process", folder])
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(agent(*sys.argv[1:]))
