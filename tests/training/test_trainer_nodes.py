"""Ranks on several nodes are one run with the losses of one process: two "nodes" of two processes on this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATIENCE
from small_run import REPOSITORY, TINY, last_of_each

from kleiber.training.fsdp import FSDP
from kleiber.training.trainer import DDP, Local

OPTIONS = [
    "trainer.precision=64", "model.depth=1", "model.context=64", "data.max_bytes=20000", "budget.steps=20",
    "eval.tokens=1024", "callbacks.log.every=1",
]  # fmt: skip
ALONE = ["trainer=ddp", "trainer.devices=1"]


@pytest.fixture
def variables(monkeypatch):
    """Sets the variables of a rank."""

    def set_all(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_all


def test_devices_are_those_of_a_node_and_nodes_those_of_the_ranks(variables):
    assert Local().num_nodes == DDP(devices=4).num_nodes == 1
    variables(WORLD_SIZE=32, LOCAL_WORLD_SIZE=8, RANK=9, LOCAL_RANK=1)
    assert DDP(devices=32).num_nodes == 4 and DDP(devices=32).world_size == 32


@pytest.mark.parametrize("trainer", [DDP, FSDP])
def test_more_gpus_than_a_node_has_are_refused_and_those_of_other_nodes_do_not_count(trainer, variables, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    variables(WORLD_SIZE=32, LOCAL_WORLD_SIZE=8)
    trainer(devices=32, accelerator="gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"trainer\.devices=32 needs 8 GPUs .* 1 are visible"):
        trainer(devices=32, accelerator="gpu")


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start(command: list[object], **values: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **values}
    return subprocess.Popen([*map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def with_torchrun(words: list[str]) -> list[subprocess.Popen[str]]:
    """Two agents of torchrun, as on two nodes, with two processes each."""
    place = ["--nnodes=2", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    run = [sys.executable, "-m", "torch.distributed.run", *place]
    return [start([*run, f"--node-rank={node}", REPOSITORY / "train.py", *last_of_each(words)]) for node in (0, 1)]


def with_srun(words: list[str]) -> list[subprocess.Popen[str]]:
    """Four tasks with the variables that srun sets on two nodes with two tasks each."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS": "4", "MASTER_PORT": free_port()}  # fmt: skip
    places = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % 2), "SLURM_NODEID": str(i // 2)} for i in range(4)]
    return [start([sys.executable, REPOSITORY / "train.py", *last_of_each(words)], **step, **place) for place in places]


def finish(processes: list[subprocess.Popen[str]]) -> str:
    """Waits for the processes, which must all end with 0, and returns what they printed."""
    printed = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return "".join(out + err for out, err in printed)


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if "loss" in k or k == "step"} for row in rows if any("loss" in k for k in row)
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(("begin", "trainer"), [(with_torchrun, "ddp"), (with_torchrun, "fsdp"), (with_srun, "ddp")])
def test_two_nodes_of_two_ranks_give_the_losses_of_one_process(launch, cache_dir, tmp_path, begin, trainer):
    alone = launch(*OPTIONS, *ALONE, root="alone")
    printed = finish(begin([*TINY, f"trainer={trainer}", *OPTIONS, f"root={tmp_path / 'nodes'}"]))
    assert printed.count(": finished") == 1 and "arning:" not in printed, printed
    (folder,) = (tmp_path / "nodes").glob("*/*")
    assert json.loads((folder / "summary.json").read_text())["machine"]["world_size"] == 4
    expected, logged = losses(alone), losses(folder)
    assert len(expected) == len(logged) >= 20
    for row, other in zip(expected, logged, strict=True):
        assert other == pytest.approx(row, abs=1e-9)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_run_of_one_process_goes_on_with_four_ranks_on_two_nodes(launch, interrupted, cache_dir, tmp_path):
    alone = launch(*OPTIONS, *ALONE, root="alone")
    with interrupted(4):
        launch(*OPTIONS, *ALONE, root="moved", code=130)
    assert "resuming at step" in finish(with_torchrun([*TINY, "trainer=ddp", *OPTIONS, f"root={tmp_path / 'moved'}"]))
    (folder,) = (tmp_path / "moved").glob("*/*")
    for row, other in zip(losses(alone), losses(folder), strict=True):
        assert other == pytest.approx(row, abs=1e-9)
