"""What SLURM is told and how its answers are read; tests/slurm has the real one."""

import subprocess
from pathlib import Path

import pytest

from kleiber.config.errors import ConfigError
from kleiber.launch import schedulers
from kleiber.launch.cell import Task
from kleiber.launch.schedulers import Job, Queue, Submitit


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"partition": "big"}, {"partition": "big"}),
        ({"timeout_min": 7}, {"time": 7}),
        ({"cpus_per_task": 6}, {"cpus_per_task": 6}),
        ({"gpus_per_node": 1}, {"gpus_per_node": 1}),
        ({"mem_gb": 1.5}, {"mem": "1536MB"}),
        ({"array_parallelism": 3}, {"array_parallelism": 3}),
        ({"setup": ["module load x"]}, {"setup": ["module load x"]}),
    ],
)
def test_every_option_reaches_sbatch_and_one_left_out_is_slurms_own(cell, tmp_path, option, told):
    one = cell(tmp_path)
    assert Submitit(**option).parameters(one) == {**Submitit().parameters(one), **told}
    assert set(Submitit().parameters(one)) == {
        "job_name", "time", "cpus_per_task", "array_parallelism", "additional_parameters",
    }  # fmt: skip


def test_a_job_has_the_cores_and_gpus_of_its_cell(cell, tmp_path):
    assert Submitit().parameters(cell(tmp_path, devices=2, threads=3))["cpus_per_task"] == 6
    assert Submitit().parameters(cell(tmp_path, devices=2, accelerator="gpu"))["gpus_per_node"] == 2


def test_submitit_takes_what_we_tell_it(cell, tmp_path):
    submitit = pytest.importorskip("submitit", reason="needs kleiber[launch]")
    from submitit.slurm.slurm import _make_sbatch_string

    given = Submitit(partition="p", mem_gb=2, gpus_per_node=1, setup=["a"]).parameters(cell(tmp_path))
    assert "#SBATCH --signal=USR1@90" in _make_sbatch_string("x", tmp_path, map_count=2, **given)
    assert submitit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout_min": 1}, "launcher.timeout_min=1"),
        ({"cpus_per_task": 0}, "launcher.cpus_per_task=0"),
        ({"cluster": "local", "mem_gb": 4}, "launcher.mem_gb=4 has no effect on launcher.cluster=local"),
        ({"cluster": "local", "setup": ["x"]}, "launcher.setup"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        Submitit(**options)


@pytest.fixture
def commands(monkeypatch):
    """Answers instead of SLURM's: (exit code, stdout, stderr) by command; what was asked."""
    answers, asked = {}, []

    def run(command, **_):
        asked.append(command)
        code, out, err = answers.get(command[0], (0, "", ""))
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(schedulers.subprocess, "run", run)
    return answers, asked


def test_a_job_is_there_until_slurm_says_otherwise(commands, capsys):
    answers, _ = commands
    queue = Queue({"7_0": Path("a"), "7_1": Path("b"), "9": Path("c")})
    answers["squeue"] = (0, "7_1 Resources\n9 PartitionTimeLimit\n", "")
    assert queue.pending() == {Path("b"), Path("c")} == queue.pending()
    assert capsys.readouterr().out.count("SLURM holds jobs back: PartitionTimeLimit") == 1
    answers["squeue"] = (1, "", "slurm_load_jobs error: Unable to contact slurm controller")
    assert queue.pending() == {Path("a"), Path("b"), Path("c")}
    answers["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    assert queue.pending() == set()


@pytest.mark.parametrize(
    ("code", "state", "back"), [(75, "RUNNING", True), (75, "COMPLETING", False), (0, "RUNNING", False)]
)
def test_a_job_goes_back_to_the_queue_when_slurm_has_not_decided_otherwise(commands, monkeypatch, code, state, back):
    answers, asked = commands
    answers["squeue"] = (0, f"{state}\n", "")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(Task, "__call__", lambda self: code)
    assert Job(Task(Path("a"), 1, 1))() == code
    assert (["scontrol", "requeue", "12"] in asked) == back


def test_without_the_package_it_is_said_which(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"kleiber\[launch\]"):
        Submitit().run([])
