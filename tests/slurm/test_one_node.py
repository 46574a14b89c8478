"""A real SLURM of one node: an array of cells, two of them sent back to the queue, and the weights of unbroken runs.

Needs root and Debian's packages munge, slurmctld, slurmd, slurm-client (see one_node.sh); skipped without them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from processes import PATIENCE, wait_for
from small_run import REPOSITORY, TINY, last_of_each

pytestmark = [pytest.mark.slow, pytest.mark.process]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
STEPS = ["budget.steps=1000", "trainer.max_steps=1000", "callbacks.checkpoints.every=50", "eval.every_steps=0"]


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("submitit", reason="needs submitit: pip install 'kleiber[launch]'")
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        pytest.skip(f"SLURM is not installed: no {', '.join(absent)}")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of one's own needs root")
    script, where = Path(__file__).with_name("one_node.sh"), tmp_path_factory.mktemp("slurm")
    subprocess.run([script, "up", where], check=True, timeout=PATIENCE)
    monkeypatch.setenv("SLURM_CONF", str(where / "slurm.conf"))
    yield
    subprocess.run([script, "down", where], check=True, timeout=PATIENCE)


def jobs() -> dict[str, str]:
    told = subprocess.run(["squeue", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in told.splitlines())


def seed_of(folder: Path) -> int:
    return yaml.safe_load((folder / "config.yaml").read_text())["seed"]


def weights(folder: Path) -> str:
    meta = folder / "stages/main/checkpoints/step-00001000/meta.json"
    return json.loads(meta.read_text())["sha256"]["model.safetensors"]


def status(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["status"]


def test_an_array_of_cells_two_of_them_preempted_ends_as_unbroken_runs_do(slurm, launch, process, tmp_path):
    array = ["launcher=submitit", "launcher.timeout_min=10", "launcher.array_parallelism=2"]
    sweep = process("-m", "name=s", "seed=0,1,2,3", *STEPS, *array, root="slurm")
    told: list[subprocess.Popen] = []
    try:
        cells = wait_for(lambda: len(f := sorted((tmp_path / "slurm/s").glob("gpt-*/overrides.yaml"))) == 4 and f)
        cells = [path.parent for path in cells]
        ask = {
            0: lambda job: ["scancel", "--signal=USR1", job],  # as the time limit does
            1: lambda job: ["scontrol", "requeue", job],  # as a partition of higher priority does
        }
        for seed, command in ask.items():
            (cell,) = [path for path in cells if seed_of(path) == seed]
            wait_for(lambda cell=cell: list(cell.glob("stages/main/checkpoints/step-????????")))
            (job,) = [job for job in jobs() if job.endswith(f"_{seed}")]
            told.append(subprocess.Popen(command(job)))
            wait_for(lambda cell=cell: (cell / "summary.json").exists() and status(cell) == "preempted")
            told[-1].kill()  # scancel repeats its signal until the job is as it was, and would reach the next start too
        out, err = sweep.communicate(timeout=PATIENCE)
    finally:
        for one in [*told, sweep]:
            one.kill()
            one.wait()
    assert sweep.returncode == 0, out + err
    for cell in cells:
        assert status(cell) == "finished", cell.name
        restarts = (cell / "log.txt").read_text().count("resuming at step")
        assert restarts == (1 if seed_of(cell) in ask else 0), cell.name
        if seed_of(cell) in ask:
            unbroken = launch(*STEPS, f"seed={seed_of(cell)}", root="unbroken")
            assert weights(cell) == weights(unbroken)
    assert jobs() == {}


def test_a_sweep_that_is_ended_takes_its_jobs_with_it(slurm, process, tmp_path):
    sweep = process("-m", "name=s", "seed=0,1,2", *STEPS, "launcher=submitit", "launcher.timeout_min=10", root="slurm")
    try:
        wait_for(lambda: list((tmp_path / "slurm").glob("s/*/stages/main/checkpoints/step-????????")))
        sweep.terminate()
        out, err = sweep.communicate(timeout=PATIENCE)
    finally:
        sweep.kill()
    assert sweep.returncode == 75, out + err
    assert jobs() == {}
    found = [status(path.parent) for path in (tmp_path / "slurm").glob("s/*/summary.json")]
    assert found and set(found) == {"preempted"}


def final_loss(folder: Path) -> float:
    (stage,) = json.loads((folder / "summary.json").read_text())["stages"]
    return next(value for name, value in stage["metrics"].items() if name.endswith("/loss"))


def test_the_tasks_of_srun_are_the_ranks_of_one_run(slurm, launch, tmp_path):
    options = ["trainer=ddp", "trainer.precision=64", "budget.steps=20"]
    alone = launch(*options, "trainer.devices=1", root="alone")
    words = last_of_each([*TINY, *options, f"root={tmp_path / 'srun'}"])
    command = [sys.executable, REPOSITORY / "train.py", *words]
    ended = subprocess.run(
        ["srun", "--ntasks=2", "--overcommit", *map(str, command)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 0 and ended.stdout.count("bits/byte") == 1, ended.stdout + ended.stderr
    (folder,) = (tmp_path / "srun").glob("*/*")
    assert json.loads((folder / "summary.json").read_text())["machine"]["world_size"] == 2
    assert final_loss(folder) == pytest.approx(final_loss(alone), abs=1e-9)
