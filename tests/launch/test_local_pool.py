"""Which slots the cells of a sweep get, with processes that end at once and do nothing."""

import os
import subprocess
import sys

import pytest
from small_run import TINY

from kleiber.config.errors import ConfigError
from kleiber.launch import local_pool
from kleiber.launch.local_pool import Pool
from kleiber.records.summary import Summary


class Ended:
    """A process that is over as soon as it has been started."""

    exitcode = 0

    def __init__(self, target, args):
        self.args = args

    def start(self):
        self.sentinel, end = os.pipe()
        os.close(end)
        Summary(self.args[0]).update(status="finished")
        STARTED.append(self.args)

    def join(self):
        os.close(self.sentinel)


STARTED: list[tuple] = []


@pytest.fixture
def started(monkeypatch):
    STARTED.clear()
    monkeypatch.setattr(local_pool, "context", lambda: type("Context", (), {"Process": Ended}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    return STARTED


def test_cells_at_once_have_gpus_of_their_own(cell, started, tmp_path):
    needs = [2, 1, 3, 1]
    cells = [cell(tmp_path / str(i), devices=n, accelerator="gpu") for i, n in enumerate(needs)]
    codes = Pool(cells, workers=None, retries=0, stop_after=None).run()
    assert list(codes.values()) == [0] * 4
    visible = [arguments[-1].split(",") for arguments in started]
    assert [len(ids) for ids in visible] == needs
    assert sorted(visible[0] + visible[1]) == ["4", "5", "6"], "the first two run at once"


def test_more_gpus_than_there_are_is_refused(cell, started, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.devices=4, but there are 3 GPUs"):
        Pool([cell(tmp_path, devices=4, accelerator="gpu")], None, 0, None)


def test_cells_of_one_device_and_thread_are_forked_and_others_are_fresh(cell, started, tmp_path):
    cells = [cell(tmp_path / "a"), cell(tmp_path / "b", threads=2), cell(tmp_path / "c", devices=2)]
    Pool(cells, workers=4, retries=0, stop_after=None).run()
    assert [arguments[1] for arguments in started] == [False, True, True]


@pytest.mark.slow
def test_a_forked_cell_has_nothing_left_to_import(tmp_path):
    """What the server has not imported every cell imports anew; what is not frozen every cell copies."""
    overrides = [*TINY, f"root={tmp_path}", "budget.steps=2"]
    told = f"""
import gc, sys
import kleiber.launch.preload
frozen, before = gc.get_freeze_count(), set(sys.modules)
from kleiber.launch.main import main
assert main({overrides!r}) == 0
print(frozen > 100_000, sorted(name for name in set(sys.modules) - before if name.startswith(("kleiber", "lightning"))))
"""
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True []"
