"""Ranks: which processes are ranks, where their output goes, and whose failure is reported."""

import os
import signal

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException

from kleiber.config.errors import ConfigError, Preempted, RankLost, RankTimeout
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


@pytest.fixture
def failures(monkeypatch, tmp_path):
    """Records the failures of ranks, in this order."""
    monkeypatch.setenv(ranks.FAILURES, str(tmp_path))

    def record(*errors: tuple[str, int, Exception]):
        for rank, code, error in errors:
            monkeypatch.setenv("RANK", rank)
            ranks.record_failure(code, error)
        return tmp_path

    return record


def test_the_exit_code_is_that_of_the_rank_that_failed_first(failures, tmp_path, capsys):
    assert ranks.first_failure(tmp_path, 2) is None
    failures(("1", 3, RuntimeError("boom")), ("0", 1, RuntimeError("later")))
    assert ranks.first_failure(tmp_path, 2) == (3, "rank 1: RuntimeError('boom')", False)
    assert "rank 1 " in capsys.readouterr().err


def test_a_rank_that_lost_another_one_is_not_the_first_to_fail(failures):
    folder = failures(("0", 1, RankLost("the connection broke")), ("1", 3, RuntimeError("boom")))
    assert ranks.first_failure(folder, 2) == (3, "rank 1: RuntimeError('boom')", False)


@pytest.mark.parametrize("other", [RankLost("the connection broke"), Preempted("SIGTERM at step 3")])
def test_a_rank_that_was_killed_is_named_with_the_signal_whatever_the_others_report(failures, capsys, other):
    """FAULTS 108."""
    folder = failures(("0", 75, other))
    ranks.record_killed_ranks({1: -signal.SIGKILL, 0: 75, 2: -signal.SIGSEGV})
    failure = ranks.first_failure(folder, 3)
    assert failure is not None and failure.code == 1 and failure.is_cause
    assert "rank 1 was killed by SIGKILL" in failure.error and "rank 2 was killed by SIGSEGV" in failure.error
    assert "rank 1 was killed by SIGKILL" in capsys.readouterr().err


def test_ranks_that_did_not_answer_are_named(failures, capsys):
    folder = failures(("0", 1, RankTimeout("waited")), ("2", 1, RankLost("Connection closed by peer")))
    failure = ranks.first_failure(folder, 4)
    assert failure is not None and failure.code == 1
    assert "rank 1, 3 " in failure.error and "rank 1, 3 " in capsys.readouterr().err


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
