"""Cells as jobs of a scheduler: threads, environment and log of a job, and what is recorded when it has ended."""

import os
from contextlib import nullcontext

import pytest
from fake_run import write_summary

from kleiber.config.errors import Preempted
from kleiber.launch import cell as cell_module
from kleiber.launch.cell import Cell
from kleiber.records.catalog import archived_runs


@pytest.mark.parametrize(
    ("trainer", "cpus", "threads"),
    [({}, None, 1), ({}, 4, 4), ({"devices": 2}, 8, 4), ({"threads": 3}, 8, 3), ({"devices": 4}, 2, 1)],
)
def test_threads_are_those_of_the_config_or_a_share_of_the_job(cell, tmp_path, trainer, cpus, threads):
    assert cell_module.make_task(cell(tmp_path, **trainer), cpus).threads == threads


def test_cells_of_equal_needs_share_an_array(cell, tmp_path):
    cells = [cell(tmp_path / "a"), cell(tmp_path / "b", devices=2), cell(tmp_path / "c")]
    assert [[member.folder.name for member in group] for group in cell_module.group_by_resources(cells)] == [
        ["a", "c"],
        ["b"],
    ]


def test_a_task_hides_the_variables_of_the_scheduler_and_restores_them(tmp_path, monkeypatch):
    environment = {}
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(cell_module, "redirect_to_log", lambda folder: nullcontext())
    monkeypatch.setattr(cell_module, "run_fresh", lambda folder, devices: environment.update(os.environ) or 3)
    assert cell_module.Task(tmp_path, 1, 2)() == 3
    assert "SLURM_NTASKS" not in environment and environment["OMP_NUM_THREADS"] == "2"
    assert os.environ["SLURM_NTASKS"] == "1"


def test_a_finished_run_is_not_started_again(tmp_path, monkeypatch):
    write_summary(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    monkeypatch.setattr(cell_module, "run_fresh", lambda *_: pytest.fail("started"))
    assert cell_module.Task(tmp_path, 1, 1)() == 0


def test_a_worker_that_runs_several_cells_does_not_mix_their_logs(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cell_module, "run_fresh", lambda *_: os.write(1, b"of the cell\n") and 0)
    assert cell_module.Task(tmp_path, 1, 1)() == 0
    os.write(1, b"of the worker\n")
    assert (tmp_path / "log.txt").read_text() == "of the cell\n"
    assert capfd.readouterr().out == "of the worker\n"


class FakeJobs:
    """Jobs that leave the queue one poll after another, each with a status."""

    def __init__(self, cells: list[Cell], ends: list[dict]) -> None:
        self.ends, self.canceled = ends, False
        self.queued = [cell.folder for cell in cells]

    def pending(self):
        for folder, status in (self.ends.pop(0) if self.ends else {}).items():
            self.queued.remove(folder)
            if status is not None:
                write_summary(folder, status=status)
                (folder / "log.txt").touch()
        return set() if self.canceled else set(self.queued)

    def cancel(self):
        self.canceled = True


@pytest.fixture
def cells(cell, tmp_path, monkeypatch):
    monkeypatch.setattr(cell_module, "POLL_SECONDS", 0.01)
    return [cell(tmp_path / name) for name in "abcd"]


def test_exit_codes_of_jobs_follow_from_the_status_of_their_runs(cells, capsys):
    a, b, c, d = (cell.folder for cell in cells)
    codes = cell_module.JobMonitor(
        cells, FakeJobs(cells, [{b: "failed"}, {a: "finished", d: None}, {c: "running"}])
    ).run()
    assert codes == {a: 0, b: 1, c: 1}, "d never started, and is missing"
    archived = {run.folder: run.status for run in archived_runs(a.parent / "runs.jsonl.gz")}
    assert archived == {a: "finished", b: "failed"}, "c was killed, and can continue"
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["[1/4]", "failed"], ["[2/4]", "finished"], ["[3/4]", "killed"],
    ]  # fmt: skip


def test_a_sweep_that_is_preempted_cancels_its_jobs(cells):
    jobs = FakeJobs(cells, [{cells[0].folder: "finished"}, {}])
    pending, polls = jobs.pending, []

    def preempt_at_second_poll():
        polls.append(1)
        if len(polls) == 2:
            os.kill(os.getpid(), 15)
        return pending()

    jobs.pending = preempt_at_second_poll
    with pytest.raises(Preempted, match="SIGTERM"):
        cell_module.JobMonitor(cells, jobs).run()
    assert jobs.canceled
