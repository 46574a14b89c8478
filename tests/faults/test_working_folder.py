"""FAULTS 100: the folder in which a command is typed adds no module to kleiber or to a process that it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.hostile_modules import write_hostile_modules
from small_run import REPOSITORY, SHAPE, TINY, last_of_each

from kleiber.config.child_process import python_command, safe_environment
from kleiber.data.builtin import read_docstrings
from kleiber.data.parallel import map_in_workers

TRAIN = [sys.executable, str(REPOSITORY / "train.py")]
KLEIBER = str(Path(sys.executable).with_name("kleiber"))


@pytest.fixture
def hostile(tmp_path, monkeypatch, cache_dir) -> Path:
    """Changes to a folder of hostile modules; the file that it returns exists once one of them is imported."""
    mark = write_hostile_modules(tmp_path / "hostile")
    monkeypatch.chdir(tmp_path / "hostile")
    return mark


@pytest.mark.process
def test_workers_that_prepare_data_import_none_of_them(hostile):
    assert list(map_in_workers(abs, [-1, 2], workers=1)) == [1, 2]
    assert [len(texts) > 0 for texts in read_docstrings([os.__file__], workers=1)] == [True]
    assert not hostile.exists(), hostile.read_text()


@pytest.mark.process
def test_a_process_and_those_that_it_starts_import_none_of_them(hostile):
    subprocess.run(python_command("json.tool", "--help"), check=True, stdout=subprocess.DEVNULL)
    unaware = [sys.executable, "-m", "json.tool", "--help"]  # as a library starts one
    subprocess.run(unaware, env=safe_environment(), check=True, stdout=subprocess.DEVNULL)
    assert not hostile.exists(), hostile.read_text()
    subprocess.run([sys.executable, "-c", "import queue"], check=True)
    assert hostile.read_text().startswith("queue "), "as Python starts without them"


@pytest.mark.slow
@pytest.mark.process
def test_python_m_kleiber_removes_the_folder_before_it_imports(hostile):
    subprocess.run([sys.executable, "-m", "kleiber", "--version"], check=True, stdout=subprocess.DEVNULL)
    imported = {line.split()[0] for line in hostile.read_text().splitlines()}
    needed = subprocess.run([sys.executable, "-v", "-m", "kleiber.nothing"], capture_output=True, text=True).stderr
    assert len(imported) == 1 and all(f"import '{name}" in needed for name in imported), "only what Python imports"


DOORS = {
    "dry run": ["dry_run=true"],
    "sweep": ["-m", "seed=1,2"],
    "two ranks": ["trainer=ddp", "trainer.devices=2"],
    "submitit": ["-m", "seed=1", "launcher=submitit", "launcher.cluster=local"],
}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("door", DOORS)
def test_no_process_of_a_command_imports_one(door, hostile, tmp_path):
    overrides = last_of_each([*TINY, *SHAPE, f"root={tmp_path / 'runs'}", *DOORS[door]])
    done = subprocess.run([*TRAIN, *overrides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not hostile.exists(), hostile.read_text()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_no_process_of_a_command_on_runs_imports_one(hostile, tmp_path, launch):
    runs = [launch(*SHAPE, f"seed={seed}") for seed in (1, 2)]
    hostile.unlink(missing_ok=True)  # this process has the folder on its path where pytest was started so
    commands = [
        ["reproduce", str(runs[0]), "--out", str(tmp_path / "again")],
        ["judge", *map(str, runs), "--simulate", "variety", "--limit", "2", "--out", str(tmp_path / "judged.jsonl")],
        ["eval", str(runs[0]), "--evals", "perplexity"],
    ]
    for command in commands:
        done = subprocess.run([KLEIBER, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not hostile.exists(), (command[0], hostile.read_text())
