"""Several runs in the same ranks, forked from the test, which has imported torch: processes start only once."""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from small_run import TINY

from kleiber.launch import ranks
from kleiber.launch.main import main
from kleiber.launch.process import main as run_process
from kleiber.records import continuation


def train_in_ranks(root: Path, devices: int, runs: Sequence[Sequence[str]]) -> tuple[list[Path], list[int]]:
    """Trains runs one after another on `devices` ranks; their folders and exit codes (the largest of the ranks)."""
    folders: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "run_fresh", lambda folder, _: folders.append(folder) or 0)
        # The ranks train after the command has ended, so the config that it wrote has to stay.
        patch.setattr(continuation, "config_kept_until_trained", lambda _: nullcontext())
        for overrides in runs:
            assert main([*TINY, f"root={root}", *overrides]) == 0
    root.mkdir(exist_ok=True)
    codes = [root / f"codes-{rank}" for rank in range(devices)]
    run_forked(devices, folders, codes)
    each = [[int(code) for code in path.read_text().split()] for path in codes]
    return folders, [max(code) for code in zip(*each, strict=True)]


def run_forked(devices: int, folders: Sequence[Path], codes: Sequence[Path]) -> None:
    """Runs the folders in forked ranks, each of which writes its exit codes to a file of its own."""

    def run_all(rank: int) -> int:
        done = []
        for folder in folders:
            done.append(run_process([str(folder)]))
            codes[rank].write_text(" ".join(map(str, done)))
        return 0

    assert fork_ranks(devices, run_all) == 0


def fork_ranks(devices: int, work: Callable[[int], int]) -> int:
    """Calls `work` with the number of each rank in a fork of this process; returns the largest exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    variables |= {"LOCAL_WORLD_SIZE": str(devices), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "forked"}
    children = []
    for rank in range(devices):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                os.environ |= {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                os._exit(work(rank))
            finally:
                os._exit(99)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
