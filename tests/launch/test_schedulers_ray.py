"""Sweeps in Ray; a real one runs only where Ray is installed."""

import contextlib
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from processes import PATIENCE, wait_for

from kleiber.config.errors import ConfigError
from kleiber.launch.cell import Cell
from kleiber.launch.schedulers import Ray, RayTasks, run_in_ray

STEPS = ["budget.steps=1000", "trainer.max_steps=1000", "callbacks.checkpoints.every=50", "eval.every_steps=0"]


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"kleiber\[ray\]"):
        Ray().run([])


def test_a_cancelled_task_gets_sigterm():
    signals, before = [], signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        assert run_in_ray(lambda: os.kill(os.getpid(), signal.SIGINT) or 5) == 5
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]


class Recorded:
    """Stands in for the package ray: every task is done at once, and `options` has what each asked for."""

    def __init__(self):
        self.asked = []

    def remote(self, function):
        return self

    def options(self, **options):
        self.asked.append(options)
        return SimpleNamespace(remote=lambda task: task.folder)


def test_a_cell_of_several_devices_asks_for_all_of_them(tmp_path):
    trainers = {"one": {}, "ddp": {"devices": 2, "threads": 3}, "gpus": {"devices": 4, "accelerator": "gpu"}}
    cells = [Cell(tmp_path / name, {"trainer": trainer}, []) for name, trainer in trainers.items()]
    package = Recorded()
    RayTasks(package, cells, None)
    RayTasks(package, cells[1:2], 5)
    asked = [(options["num_cpus"], options.get("num_gpus")) for options in package.asked]
    assert asked == [(1, None), (6, None), (4, 4), (5, None)]


@pytest.fixture
def in_ray(process, monkeypatch):
    """Starts a sweep in Ray, whose workers would else have the lowest priority of all processes."""
    pytest.importorskip("ray", reason="needs kleiber[ray]")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    return lambda *overrides: process("-m", "name=s", *overrides, "launcher=ray", root="ray")


@pytest.mark.slow
@pytest.mark.process
def test_cells_in_ray_have_the_results_of_a_single_run(in_ray, launch, tmp_path):
    sweep = in_ray("seed=0,1", "model.num_heads=2,64")
    out, err = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 4, out + err
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("ray/s/*/summary.json")]
    assert sorted(summary["status"] for summary in summaries) == ["failed", "failed", "finished", "finished"]
    alone = json.loads((launch("model.num_heads=2", "seed=1", root="alone") / "summary.json").read_text())
    (same,) = [summary for summary in summaries if summary["config_hash"] == alone["config_hash"]]
    assert same["stages"][0]["metrics"] == alone["stages"][0]["metrics"]


@pytest.mark.slow
@pytest.mark.process
def test_a_cell_whose_worker_dies_goes_on_in_another_one(in_ray, launch, tmp_path):
    """As when its machine is taken away: Ray starts the task again, and the run resumes bit-identical."""
    sweep = in_ray("seed=0,1", *STEPS)
    try:
        checkpoint = wait_for(lambda: next(tmp_path.glob("ray/s/*/stages/main/checkpoints/step-????????"), None))
        cell = checkpoint.parents[3]
        for number in workers_of(cell.name):
            os.kill(number, signal.SIGKILL)
        out, err = sweep.communicate(timeout=PATIENCE)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, out + err
    assert (cell / "log.txt").read_text().count("resuming at step") == 1
    unbroken = launch(*STEPS, f"seed={yaml.safe_load((cell / 'config.yaml').read_text())['seed']}", root="unbroken")
    assert weights(cell) == weights(unbroken)


@pytest.mark.slow
@pytest.mark.process
def test_a_sweep_in_ray_that_is_ended_leaves_a_checkpoint_of_each_cell(in_ray, tmp_path):
    sweep = in_ray("seed=0,1", *STEPS)
    try:
        wait_for(lambda: list(tmp_path.glob("ray/s/*/stages/main/checkpoints/step-????????")))
        sweep.terminate()
        out, err = sweep.communicate(timeout=PATIENCE)
    finally:
        sweep.kill()
    assert sweep.returncode == 75, out + err
    statuses = {json.loads(path.read_text())["status"] for path in tmp_path.glob("ray/s/*/summary.json")}
    assert statuses == {"preempted"}


def workers_of(cell):
    """The numbers of the processes of Ray whose task has the name of the cell, and of all that they started."""
    parents, found = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (process / "cmdline").read_bytes()
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if title.startswith(b"ray::") and cell.encode() in title:
                found.add(int(process.name))
    assert found
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def weights(folder):
    meta = folder / "stages/main/checkpoints/step-00001000/meta.json"
    return json.loads(meta.read_text())["sha256"]["model.safetensors"]
