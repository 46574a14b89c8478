"""Options and answers of SLURM, tested with fake commands; tests/slurm uses a real SLURM."""

import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from kleiber.config.errors import ConfigError
from kleiber.launch import schedulers
from kleiber.launch.cell import Task
from kleiber.launch.schedulers import Job, SlurmJobs, Submitit


@pytest.mark.parametrize(
    ("option", "parameter"),
    [
        ({"partition": "big"}, {"partition": "big"}),
        ({"timeout_min": 7}, {"time": 7}),
        ({"cpus_per_task": 6}, {"cpus_per_task": 6}),
        ({"gpus_per_node": 1}, {"gpus_per_node": 1}),
        ({"mem_gb": 1.5}, {"mem": "1536MB"}),
        ({"array_parallelism": 3}, {"array_parallelism": 3}),
        ({"setup": ["module load x"]}, {"setup": ["export PYTHONSAFEPATH=1", "module load x"]}),
    ],
)
def test_every_option_becomes_a_parameter_of_the_job_and_none_is_set_by_default(cell, tmp_path, option, parameter):
    first = cell(tmp_path)
    assert Submitit(**option).parameters(first) == {**Submitit().parameters(first), **parameter}
    assert set(Submitit().parameters(first)) == {
        "job_name", "time", "cpus_per_task", "array_parallelism", "additional_parameters", "setup",
    }  # fmt: skip


def test_a_job_has_the_cores_and_gpus_of_its_cell(cell, tmp_path):
    assert Submitit().parameters(cell(tmp_path, devices=2, threads=3))["cpus_per_task"] == 6
    assert Submitit().parameters(cell(tmp_path, devices=2, accelerator="gpu"))["gpus_per_node"] == 2


def test_submitit_accepts_the_parameters(cell, tmp_path):
    submitit = pytest.importorskip("submitit", reason="needs kleiber[launch]")
    from submitit.slurm.slurm import _make_sbatch_string

    parameters = Submitit(partition="p", mem_gb=2, gpus_per_node=1, setup=["a"]).parameters(cell(tmp_path))
    assert "#SBATCH --signal=USR1@90" in _make_sbatch_string("x", tmp_path, map_count=2, **parameters)
    assert submitit


class Executor:
    """Stands for submitit.SlurmExecutor: keeps what it is asked, and calls its jobs <array>_<place>."""

    made: ClassVar[list["Executor"]] = []

    def __init__(self, folder):
        self.folder, self.parameters, self.jobs = folder, {}, []
        self.made.append(self)

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def batch(self):
        return nullcontext()

    def submit(self, job):
        self.jobs.append(job)
        return SimpleNamespace(job_id=f"{len(self.made)}_{len(self.jobs) - 1}")


def test_cells_of_equal_resources_are_one_array(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(Executor, "made", [])
    cells = [cell(tmp_path / "a"), cell(tmp_path / "b", devices=2), cell(tmp_path / "c")]
    folders = Submitit(mem_gb=2)._submit(SimpleNamespace(SlurmExecutor=Executor), tmp_path, cells)
    assert folders == {"1_0": cells[0].folder, "1_1": cells[2].folder, "2_0": cells[1].folder}
    assert [executor.parameters["cpus_per_task"] for executor in Executor.made] == [1, 2]
    assert all(executor.parameters["mem"] == "2048MB" for executor in Executor.made)


def test_no_array_is_larger_than_slurm_allows_and_a_refusal_cancels_the_accepted_ones(
    cell, tmp_path, monkeypatch, commands
):
    answers, calls = commands
    answers["scontrol"] = (0, "MaxArraySize            = 2\nMaxJobCount             = 10000\n", "")
    monkeypatch.setattr(Executor, "made", [])
    cells = [cell(tmp_path / name) for name in "abcde"]
    submitit = SimpleNamespace(SlurmExecutor=Executor)
    folders = Submitit()._submit(submitit, tmp_path, cells)
    assert list(folders) == ["1_0", "1_1", "2_0", "2_1", "3_0"] and list(folders.values()) == [c.folder for c in cells]

    def refuse(self, job):
        if len(self.made) == 6:
            raise RuntimeError("QOSMaxSubmitJobPerUserLimit")
        return submit(self, job)

    submit = Executor.submit
    monkeypatch.setattr(Executor, "submit", refuse)
    monkeypatch.setattr(schedulers, "import_submitit", lambda: submitit)
    with pytest.raises(ConfigError, match="QOSMaxSubmitJobPerUserLimit"):
        Submitit().run(cells)
    assert calls[-1] == ["scancel", "4", "5"]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"cluster": "local", "mem_gb": 4}, "launcher.mem_gb=4"),
        ({"cluster": "local", "setup": ["x"]}, "launcher.setup=['x']"),
    ],
)
def test_options_without_a_meaning_are_refused(options, value):
    with pytest.raises(ConfigError) as error:
        Submitit(**options)
    assert value in str(error.value)


@pytest.fixture
def commands(monkeypatch):
    """Fake answers of SLURM, (exit code, stdout, stderr) by command, and the list of the commands that were called."""
    answers, calls = {}, []

    def run(command, **_):
        calls.append(command)
        code, out, err = answers.get(command[0], (0, "", ""))
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(schedulers.subprocess, "run", run)
    return answers, calls


def test_a_job_is_pending_until_slurm_no_longer_knows_it(commands, capsys):
    answers, _ = commands
    jobs = SlurmJobs({"7_0": Path("a"), "7_1": Path("b"), "9": Path("c")})
    answers["squeue"] = (0, "7_1 Resources\n9 PartitionTimeLimit\n", "")
    assert jobs.pending() == {Path("b"), Path("c")} == jobs.pending()
    assert capsys.readouterr().out.count("PartitionTimeLimit") == 1
    answers["squeue"] = (1, "", "slurm_load_jobs error: Unable to contact slurm controller")
    assert jobs.pending() == {Path("a"), Path("b"), Path("c")}
    answers["squeue"] = (1, "", "slurm_load_jobs error: Invalid job id specified")
    assert jobs.pending() == set()


@pytest.mark.parametrize(
    ("code", "state", "requeued"), [(75, "RUNNING", True), (75, "COMPLETING", False), (0, "RUNNING", False)]
)
def test_a_preempted_job_requeues_itself_while_it_runs(commands, monkeypatch, code, state, requeued):
    answers, calls = commands
    answers["squeue"] = (0, f"{state}\n", "")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(Task, "__call__", lambda self: code)
    assert Job(Task(Path("a"), 1, 1))() == code
    assert (["scontrol", "requeue", "12"] in calls) == requeued


def test_a_preempted_job_of_an_array_requeues_itself_alone(commands, monkeypatch):
    """SLURM_JOB_ID of one job of an array is that of the array, whose jobs SLURM then lists and requeues together."""
    answers, calls = commands
    answers["squeue"] = (0, "RUNNING\n", "")
    for name, value in {"JOB_ID": "36", "ARRAY_JOB_ID": "36", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(Task, "__call__", lambda self: 75)
    assert Job(Task(Path("a"), 1, 1))() == 75
    assert [call[-1] for call in calls] == ["36_3", "36_3"] and calls[-1][:2] == ["scontrol", "requeue"]


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"kleiber\[launch\]"):
        Submitit().run([])
