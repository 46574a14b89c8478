"""A rank that a signal kills is named with the signal, and the run ends with 1. FAULTS 108."""

import json
import os
import signal

import pytest
from processes import alive, rank_of, wait_for

LONG = ["trainer.devices=2", "budget.steps=4000", "trainer.max_steps=4000", "callbacks.checkpoints.every=4"]
LONG += ["model.width=32", "model.context=32", "eval.every_steps=0", "eval.tokens=1024"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(
    ("trainer", "rank", "number"),
    [
        ("ddp", "0", signal.SIGKILL),
        ("ddp", "1", signal.SIGSEGV),
        ("fsdp", "1", signal.SIGKILL),
        ("expert", "0", signal.SIGKILL),
    ],
)
def test_a_killed_rank_is_named_with_its_signal_and_without_the_words_of_a_library(
    process, tmp_path, trainer, rank, number
):
    mixture = ["model=moe", "model.mlp.num_experts=4"] if trainer == "expert" else []
    run = process(f"trainer={trainer}", *mixture, *LONG)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/*/stages/*/checkpoints/step-00000008")))
        pids = [pid for pid, line in alive(tmp_path / "runs").items() if "launch.process" in line]
        (pid,) = [pid for pid in pids if rank_of(pid) == rank]
        os.kill(pid, number)
        out, err = run.communicate(timeout=100)
    finally:
        run.kill()
    assert run.returncode == 1, out + err
    assert f"rank {rank} was killed by {number.name}" in err
    assert "Traceback" not in out + err and "gloo" not in out + err and "preempted" not in err
    (path,) = tmp_path.glob("runs/*/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["status"] == "failed" and f"rank {rank} was killed by {number.name}" in summary["error"]
    assert not alive(tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.process
def test_the_death_of_the_process_that_starts_the_ranks_ends_them_and_is_named(process, tmp_path):
    run = process("trainer=ddp", *LONG)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/*/stages/*/checkpoints/step-00000008")))
        (agent,) = [pid for pid, line in alive(tmp_path / "runs").items() if "launch.ranks" in line]
        os.kill(agent, signal.SIGKILL)
        out, err = run.communicate(timeout=100)
    finally:
        run.kill()
    assert run.returncode == 1 and "killed by SIGKILL" in err and "Traceback" not in err, out + err
    (path,) = tmp_path.glob("runs/*/*/summary.json")
    assert json.loads(path.read_text())["status"] == "failed"
    wait_for(lambda: not alive(tmp_path / "runs"))
