"""Cells as jobs of a scheduler: what a cell needs, its environment, and what is recorded when its job has ended."""

import os
from contextlib import nullcontext

import pytest

from kleiber.config.errors import Preempted
from kleiber.launch import cell as cells_module
from kleiber.launch.cell import Cell
from kleiber.records.catalog import archived_runs
from kleiber.records.summary import Summary


@pytest.mark.parametrize(
    ("trainer", "cpus", "threads"),
    [({}, None, 1), ({}, 4, 4), ({"devices": 2}, 8, 4), ({"threads": 3}, 8, 3), ({"devices": 4}, 2, 1)],
)
def test_threads_are_the_cells_own_or_its_share_of_the_job(cell, tmp_path, trainer, cpus, threads):
    assert cells_module.task(cell(tmp_path, **trainer), cpus).threads == threads


def test_cells_of_equal_needs_share_an_array(cell, tmp_path):
    cells = [cell(tmp_path / "a"), cell(tmp_path / "b", devices=2), cell(tmp_path / "c")]
    assert [[member.folder.name for member in group] for group in cells_module.group_by_resources(cells)] == [
        ["a", "c"],
        ["b"],
    ]


def test_a_task_starts_without_the_schedulers_variables_and_leaves_them_there(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(cells_module, "logged", lambda where: nullcontext())
    monkeypatch.setattr(cells_module, "run_fresh", lambda where, devices: seen.update(os.environ) or 3)
    assert cells_module.Task(tmp_path, 1, 2)() == 3
    assert "SLURM_NTASKS" not in seen and seen["OMP_NUM_THREADS"] == "2"
    assert os.environ["SLURM_NTASKS"] == "1"


def test_a_finished_run_is_not_started_again(tmp_path, monkeypatch):
    Summary(tmp_path).update(status="finished")
    monkeypatch.setattr(cells_module, "run_fresh", lambda *_: pytest.fail("started"))
    assert cells_module.Task(tmp_path, 1, 1)() == 0


def test_a_worker_that_runs_several_cells_does_not_mix_their_logs(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cells_module, "run_fresh", lambda *_: os.write(1, b"of the cell\n") and 0)
    assert cells_module.Task(tmp_path, 1, 1)() == 0
    os.write(1, b"of the worker\n")
    assert (tmp_path / "log.txt").read_text() == "of the cell\n"
    assert capfd.readouterr().out == "of the worker\n"


class Fake:
    """Jobs that leave the queue look by look, each with a status."""

    def __init__(self, cells: list[Cell], ends: list[dict]) -> None:
        self.ends, self.cancelled = ends, False
        self.open = [one.folder for one in cells]

    def pending(self):
        for where, status in (self.ends.pop(0) if self.ends else {}).items():
            self.open.remove(where)
            if status is not None:
                Summary(where).update(status=status)
                (where / "log.txt").touch()
        return set() if self.cancelled else set(self.open)

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def cells(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "POLL", 0.01)
    return [cell(tmp_path / name) for name in "abcd"]


def test_what_became_of_a_job_is_what_its_run_wrote(cells, capsys):
    a, b, c, d = (one.folder for one in cells)
    codes = cells_module.Watch(cells, Fake(cells, [{b: "failed"}, {a: "finished", d: None}, {c: "running"}])).run()
    assert codes == {a: 0, b: 1, c: 1}, "d never began, and is missing"
    archived = {run.folder: run.status for run in archived_runs(a.parent / "runs.jsonl.gz")}
    assert archived == {a: "finished", b: "failed"}, "c was cut short, and goes on"
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["[1/4]", "failed"], ["[2/4]", "finished"], ["[3/4]", "killed"],
    ]  # fmt: skip


def test_a_sweep_that_is_asked_to_end_takes_its_jobs_with_it(cells):
    jobs = Fake(cells, [{cells[0].folder: "finished"}, {}])
    look, looks = jobs.pending, []

    def then_ask():
        looks.append(1)
        if len(looks) == 2:
            os.kill(os.getpid(), 15)
        return look()

    jobs.pending = then_ask
    with pytest.raises(Preempted, match="SIGTERM"):
        cells_module.Watch(cells, jobs).run()
    assert jobs.cancelled
