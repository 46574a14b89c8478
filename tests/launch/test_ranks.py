"""Ranks: which processes are ranks, where their output goes, and whose failure is reported."""

import os
import signal
import sys

import pytest
from fake_run import fake_run
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException

from kleiber.config.errors import ConfigError
from kleiber.launch import ranks


@pytest.fixture(autouse=True)
def no_rank(monkeypatch):
    for name in (*ranks.RANK_VARIABLES, *ranks.LAUNCHERS, ranks.FAILURES):
        monkeypatch.delenv(name, raising=False)


def test_a_rank_is_a_process_that_torchrun_or_slurm_started(monkeypatch):
    assert not ranks.started_as_rank() and ranks.rank() == 0
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="RANK=3"):
        ranks.started_as_rank()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert ranks.started_as_rank() and ranks.rank() == 3


STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_TASKS_PER_NODE": "8(x4)",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
}  # fmt: skip


def test_a_task_of_srun_gets_the_variables_of_torchrun(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert ranks.started_as_rank() and ranks.rank() == 9
    expected = {"LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "32", "LOCAL_WORLD_SIZE": "8"}
    assert expected.items() <= os.environ.items() and os.environ["MASTER_ADDR"] == "gpu07"
    other = ranks.slurm_variables({**STEP, "SLURM_PROCID": "31", "MASTER_ADDR": "10.0.0.1"})
    assert other["MASTER_PORT"] == os.environ["MASTER_PORT"] and 10_000 <= int(other["MASTER_PORT"]) < 30_000
    assert other["MASTER_ADDR"] == "10.0.0.1"
    assert ranks.slurm_variables({**STEP, "SLURM_STEP_ID": "3"})["MASTER_PORT"] != other["MASTER_PORT"]


@pytest.mark.parametrize(("nodes", "first"), [("a1", "a1"), ("a1,b2", "a1"), ("n-[3,5-6]", "n-3"), ("c[01-04]", "c01")])
def test_rank_0_is_on_the_first_node(nodes, first):
    assert ranks.slurm_variables({**STEP, "SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_nodes_with_different_numbers_of_tasks_are_refused():
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        ranks.slurm_variables({**STEP, "SLURM_STEP_TASKS_PER_NODE": "8(x3),4"})


@pytest.mark.parametrize("tasks", [{}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_and_a_step_of_one_task_are_no_ranks(monkeypatch, tasks):
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "32", **tasks}.items():
        monkeypatch.setenv(name, value)
    assert not ranks.started_as_rank()


def test_ranks_other_than_0_write_to_a_file_of_their_own(monkeypatch, tmp_path, capfd):
    written = []
    monkeypatch.setattr(ranks, "redirect_output", written.append)
    ranks.redirect_rank_output(tmp_path)
    monkeypatch.setenv("RANK", "2")
    ranks.redirect_rank_output(tmp_path)
    assert written == [tmp_path / "ranks" / "2.txt"] and written[0].parent.is_dir()


def test_fresh_processes_are_a_rank_or_an_agent_that_starts_the_ranks(monkeypatch, tmp_path):
    started = []

    class Started:
        def __init__(self, command, env):
            started.append((command[1:], env))

        def wait(self, timeout=None):
            return 0

        poll = wait

    monkeypatch.setattr(ranks.subprocess, "Popen", Started)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert ranks.run_fresh(tmp_path, 2) == ranks.run_fresh(tmp_path, 1, visible="3") == 0
    (agent, first), (rank, second) = started
    assert agent == ["-P", "-m", "kleiber.launch.ranks", str(tmp_path), "2"]
    assert rank == ["-P", "-m", "kleiber.launch.process", str(tmp_path)]
    assert "MASTER_PORT" not in first and first[ranks.CELL_VARIABLE] == "1" and second["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_agent_hands_the_run_to_torchrun_and_returns_1_where_a_rank_fails(monkeypatch):
    arguments = []
    for name in ("kleiber.launch.ranks.end_with_parent", "signal.signal", "logging.disable"):
        monkeypatch.setattr(name, lambda *_: None)
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    monkeypatch.setattr(run, "main", arguments.append)
    assert ranks.run_agent("folder", "2") == 0
    assert arguments == [["--standalone", "--nproc-per-node=2", "-m", "kleiber.launch.process", "folder"]]

    def fail(_):
        raise SignalException("ended", signal.SIGTERM)

    monkeypatch.setattr(run, "main", fail)
    assert ranks.run_agent("folder", "2") == 1


ENDED = """
import json, os, signal, sys, time

def end(*_):
    with open(os.path.join(os.environ["KLEIBER_FAILURES"], "0.json"), "w") as file:
        record = {"rank": 0, "time": 0, "code": 75, "error": "Preempted", "trace": "", "killed": False, "lost": False}
        json.dump({**record, "timeout": False}, file)
    sys.exit(1)

def held(pid):  # by the launcher, until it handles signals; another thread of pytest would take them
    with open(f"/proc/{pid}/status") as file:
        (mask,) = (line.split()[1] for line in file if line.startswith("SigBlk"))
    return int(mask, 16) >> signal.SIGTERM - 1 & 1

signal.signal(signal.SIGTERM, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
while held(os.getppid()):
    time.sleep(0.01)
os.kill(os.getppid(), getattr(signal, sys.argv[1]))
time.sleep(30)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75)])
@pytest.mark.parametrize("before", ["failed", "preempted", "running"])
def test_the_signal_decides_the_code_of_ranks_that_it_ended_whatever_the_start_before_recorded(
    monkeypatch, tmp_path, name, code, before
):
    """FAULTS 122: ranks get SIGTERM for a Ctrl-C of their launcher, and a failed run keeps its status at first."""
    folder = fake_run(tmp_path / "run", stages=[], status=before)
    monkeypatch.setattr(ranks, "python_command", lambda *_: [sys.executable, "-c", ENDED, name])
    assert ranks.run_fresh(folder, 2) == code
