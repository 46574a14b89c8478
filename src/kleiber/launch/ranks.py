"""Ranks are made here alone: a job of several devices becomes fresh processes under torch.distributed.run.

Each rank reads the config its parent wrote (`kleiber.launch.process`), so no command line is parsed twice. Rank 0 has
the console, the others write to `ranks/`; whoever fails first is named. `python -m kleiber.launch.ranks FOLDER N` is
the agent between the two.
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
from pathlib import Path
from typing import Any

from kleiber.config.errors import ConfigError
from kleiber.config.signals import PREEMPTED, heeding
from kleiber.records.folder import settle, status

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
FROM_OUTSIDE = (*VARIABLES, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PL_GLOBAL_SEED", "WANDB_RUN_ID")
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
CELL, FAILURES = "KLEIBER_CELL", "KLEIBER_FAILURES"
PATIENCE = 40  # seconds that an agent may take to end its ranks


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def launched() -> bool:
    """Whether a launcher that we know made this process a rank.

    Left-over variables are refused: with them a rank waits for others that never come.
    """
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    known = any(name in os.environ for name in LAUNCHERS)
    if found and not known:
        names = " ".join(text.split("=")[0] for text in found)
        raise ConfigError(
            f"stale distributed variables {' '.join(found)}: no launcher that we know has set them; unset {names}"
        )
    return known and "RANK" in os.environ


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
            with ends(process) as asked:
                code = process.wait()
        except KeyboardInterrupt:
            settle(folder, "killed", "interrupted (Ctrl-C)")
            raise
        if code == 0:
            return 0
        code, error = first_cause(Path(failures)) or (code if code > 0 else 1, f"its processes ended with {code}")
        if asked and status(folder) in ("missing", "killed", "preempted"):  # some heeded it, others had not begun to
            code, error = PREEMPTED, f"{asked[0]}: what was saved before stays"
    if code == PREEMPTED:
        settle(folder, "preempted", error)
    else:  # which ends the other ranks by SIGTERM: rank 0 has then said that it was preempted
        settle(folder, "failed", error, over="preempted")
    return code


@contextlib.contextmanager
def ends(process: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Hands SIGTERM, SIGUSR1 (as SIGTERM) and Ctrl-C on, and leaves no process behind however this one is left."""
    farewell = signal.SIGTERM
    try:
        with heeding(lambda _: process.terminate()) as asked:
            yield asked
    except KeyboardInterrupt:
        farewell = signal.SIGINT
        raise
    finally:
        if process.poll() is None:
            process.send_signal(farewell)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def first_cause(failures: Path) -> tuple[int, str] | None:
    """Exit code and error of the rank that failed first; says which it was unless rank 0 has said the same itself."""
    told = sorted((json.loads(file.read_text()) for file in failures.glob("*.json")), key=lambda one: one["time"])
    if not told:
        return None
    first = told[0]
    said = any(one["rank"] == 0 and one["error"] == first["error"] for one in told)
    if not said and first["code"] != PREEMPTED:
        print(f"rank {first['rank']} failed first:\n{first['trace'] or first['error']}", file=sys.stderr)
    return first["code"], f"rank {first['rank']}: {first['error']}"


def record_failure(code: int, error: BaseException | None) -> None:
    """Leaves for the parent what became of this rank, when a parent of ours is there."""
    if FAILURES not in os.environ:
        return
    trace = "" if error is None else "".join(traceback.format_exception(error))
    told: dict[str, Any] = {"rank": rank(), "code": code, "time": time.time(), "error": repr(error), "trace": trace}
    Path(os.environ[FAILURES], f"{rank()}.json").write_text(json.dumps(told))


def join_parent(signal_number: int) -> None:
    """Asks the kernel for `signal_number` when the parent dies, however it dies. Elsewhere than on Linux: nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal_number)  # PR_SET_PDEATHSIG


def silence(folder: Path) -> None:
    """Sends the output of a rank other than 0 to `ranks/`: one job, one console."""
    if rank() == 0:
        return
    (folder / "ranks").mkdir(parents=True, exist_ok=True)
    with open(folder / "ranks" / f"{rank()}.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def agent(folder: str, devices: str) -> int:
    """Runs the ranks of one job; what went wrong is told by the ranks, not by a traceback of the agent."""
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
