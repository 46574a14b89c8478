"""Which slots the cells of a sweep get, tested with fake processes that end at once."""

import os
import signal
from pathlib import Path

import pytest
from fake_run import write_summary

from kleiber.config.errors import ConfigError, Preempted
from kleiber.launch import local_pool
from kleiber.launch.local_pool import Pool
from kleiber.launch.price import num_workers


class EndedProcess:
    """A process that ends as soon as it is started."""

    exitcode = 0

    def __init__(self, target, args):
        self.args = args

    def start(self):
        self.sentinel, end = os.pipe()
        os.close(end)
        write_summary(self.args[0])
        STARTED.append(self.args)

    def join(self):
        os.close(self.sentinel)


STARTED: list[tuple] = []


@pytest.fixture
def started(monkeypatch):
    STARTED.clear()
    monkeypatch.setattr(local_pool, "fork_server", lambda: type("Context", (), {"Process": EndedProcess}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    return STARTED


def test_cells_that_run_at_once_have_different_gpus(cell, started, tmp_path):
    needs = [2, 1, 3, 1]
    cells = [cell(tmp_path / str(i), devices=n, accelerator="gpu") for i, n in enumerate(needs)]
    codes = Pool(cells, workers=None, retries=0, stop_after=None).run()
    assert list(codes.values()) == [0] * 4
    visible = [arguments[-1].split(",") for arguments in started]
    assert [len(ids) for ids in visible] == needs
    assert sorted(visible[0] + visible[1]) == ["4", "5", "6"], "the first two run at once"


def test_more_gpus_than_the_machine_has_are_refused(cell, started, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.devices=4 .*3"):
        Pool([cell(tmp_path, devices=4, accelerator="gpu")], None, 0, None)


@pytest.mark.parametrize(
    ("visible", "ids"),
    [(None, ["0", "1"]), ("4,GPU-5e", ["4", "GPU-5e"]), ("", []), ("-1", []), ("2,-1,3", ["2"])],
)
def test_the_ids_of_gpus_are_those_of_cuda(monkeypatch, visible, ids):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    container = [Path("/dev/nvidia7"), Path("/dev/nvidia3")]  # which has two of the GPUs of its machine
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(container))
    assert local_pool.gpu_ids() == ids


@pytest.mark.parametrize(
    ("workers", "trainer", "at_once"),
    [
        (None, {}, 8),
        (2, {}, 2),
        (2, {"threads": 2}, 2),
        (None, {"threads": 3}, 2),
        (2, {"threads": 16}, 1),
        (2, {"devices": 3, "accelerator": "gpu"}, 1),
        (2, {"accelerator": "gpu"}, 2),
    ],
)
def test_workers_are_cells_that_run_at_once_and_a_dry_run_counts_them(
    cell, started, tmp_path, monkeypatch, workers, trainer, at_once
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    cells = [cell(tmp_path / str(i), **trainer) for i in range(9)]
    pool = Pool(cells, workers, retries=0, stop_after=None)
    pool._start_cells()
    assert len(pool.running) == at_once == num_workers({**cells[0].config, "launcher": {"workers": workers}})
    assert len(pool.run()) == 9


def test_cells_of_one_device_and_thread_are_forked_and_others_are_fresh(cell, started, tmp_path):
    cells = [cell(tmp_path / "a"), cell(tmp_path / "b", threads=2), cell(tmp_path / "c", devices=2)]
    pool = Pool(cells, workers=4, retries=0, stop_after=None)
    pool.run()
    assert (pool.progress.done, pool.progress.total) == (len(cells), len(cells))
    assert [arguments[1] for arguments in started] == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [True, False])
def test_a_signal_may_end_a_process_before_it_can_tell_its_number(cell, started, tmp_path, monkeypatch, signalled):
    def killed(_process):
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        raise EOFError

    monkeypatch.setattr(EndedProcess, "start", killed)
    with pytest.raises(Preempted if signalled else EOFError):
        Pool([cell(tmp_path)], None, 0, None).run()
