"""Sweeps whose cells run in processes: forked cells, retries, ranks, and the end by a signal."""

import json
import signal
import subprocess
import sys

import pytest
from processes import PATIENCE, alive, wait_for
from small_run import REPOSITORY

from kleiber.records.catalog import archived_runs, read_runs

ARGUMENTS = [
    "trainer=smoke", "trainer.max_steps=3", "logger=csv", "eval.tokens=64", "data=text", "callbacks=null",
    f"data.path={REPOSITORY / 'tests/data/tiny.txt'}",
]  # fmt: skip


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py in a process."""
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.process
@pytest.mark.slow
def test_forked_cells_write_their_own_logs_and_are_archived(tmp_path):
    sweep = ["-m", "name=s", f"root={tmp_path}", "seed=0,1", "model.context=64,32000", "batch.tokens=32000", *ARGUMENTS]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )
    runs = read_runs(tmp_path / "s")
    assert done.returncode == 4, done.stdout + done.stderr
    assert done.stdout.count("model.context=32000") == 2, (
        "cells that are refused before their first step leave no folder"
    )
    assert [run.status for run in runs] == ["finished", "finished"]
    assert all((run.folder / "log.txt").exists() for run in runs)
    archived = archived_runs(tmp_path / "s" / "runs.jsonl.gz")
    assert [(run.name, run.status) for run in archived] == [(run.name, run.status) for run in runs]
    assert all(run.summary["machine"]["threads"] == 1 for run in runs)


@pytest.mark.slow
@pytest.mark.process
def test_failed_cells_are_retried_until_stop_after(tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    cells = ["seed=0,1", "data=text", f"data.path={tmp_path / 'short.txt'}", "trainer=smoke", "logger=csv"]
    options = ["launcher.workers=1", "launcher.retries=1", "launcher.stop_after=1"]
    sweep = ["-m", "name=s", f"root={tmp_path / 'root'}", *cells, *options]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 4, done.stdout + done.stderr
    labels = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("[")]
    assert labels == ["again", "again", "failed"]
    errors = [run.summary["error"] for run in read_runs(tmp_path / "root" / "s")]
    assert len(errors) == 1 and "model.context=64" in errors[0], "of the cell that was not tried again"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_run_on_two_ranks_has_the_losses_of_one_process(tmp_path):
    losses = []
    arguments = [text for text in ARGUMENTS if not text.startswith("eval.tokens")]  # every rank needs some to evaluate
    ranks = ["trainer._target_=kleiber.training.DDP", "trainer.devices=2"]
    for name, options in (("alone", []), ("ranks", ranks)):
        done = train(f"name={name}", f"root={tmp_path}", *arguments, *options)
        assert done.returncode == 0, done.stderr
        (summary,) = (tmp_path / name).rglob("summary.json")
        losses.append(json.loads(summary.read_text())["stages"][0]["metrics"])
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert losses[1][key] == pytest.approx(value, rel=1e-4)


LONG = ["budget.steps=5000", "trainer.max_steps=5000", "callbacks.checkpoints.every=20", "eval.every_steps=0"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code", "becomes"),
    [(signal.SIGTERM, 75, "preempted"), pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow)],
)
@pytest.mark.slow
def test_a_sweep_that_is_ended_ends_its_cells_with_a_status(process, tmp_path, number, code, becomes):
    """FAULTS 12: cells that have not started stay missing, and finished cells stay finished."""
    sweep = process("-m", "name=s", "seed=0,1,2", "budget.steps=3,5000", *LONG[1:], "launcher.workers=2")
    try:
        assert "finished" in next(line for line in sweep.stdout if line.startswith("[1/6]"))
        wait_for(lambda: list(tmp_path.glob("runs/s/*/stages/main/checkpoints/step-00000020")))
        sweep.send_signal(number)
        out, err = sweep.communicate(timeout=PATIENCE)
    finally:
        sweep.kill()
    assert sweep.returncode == code, out + err
    statuses = {run.status for run in read_runs(tmp_path / "runs/s")}
    assert statuses == {"finished", becomes, "missing"}, out + err
    ended = [run.folder for run in read_runs(tmp_path / "runs/s") if run.status == becomes]
    assert any(list(where.glob("stages/main/checkpoints/step-????????")) for where in ended)
    assert not alive(tmp_path)
