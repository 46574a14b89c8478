"""Files of a run that somebody deletes while it trains: its lock, its rows, and its folder. FAULTS 111 and 112."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import TINY

from kleiber.launch.main import main
from kleiber.training.step import accumulate

EVERY_STEP = ["callbacks.log.every=1", "budget.steps=12", "trainer.max_steps=12", "eval.every_steps=5"]


@pytest.fixture
def at_step(monkeypatch):
    """Calls a function in the n-th step that this process trains."""

    def set_act(step: int, act: Callable[[], object]) -> None:
        calls = []

        def acts(*arguments):
            calls.append(1)
            if len(calls) == step:
                act()
            return accumulate(*arguments)

        monkeypatch.setattr("kleiber.training.lit.accumulate", acts)

    return set_act


def rows(folder: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Step and keys of each row."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], tuple(sorted(row))) for row in lines]


def in_fork(command: list[str]) -> int:
    """The exit code of a command in a fork."""
    pid = os.fork()
    if pid == 0:
        os._exit(main(command))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("lost", [".lock", "folder"])
def test_the_same_command_neither_trains_beside_the_run_nor_doubles_its_rows(
    launch, at_step, once, tmp_path, capsys, lost
):
    expected = rows(once(*EVERY_STEP))
    codes = []

    def start_again() -> None:
        (folder,) = tmp_path.glob("runs/*/*")
        if lost == ".lock":
            (folder / ".lock").unlink()
        while lost == "folder" and folder.exists():  # a checkpoint is written to it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        codes.append(in_fork([*TINY, f"root={tmp_path / 'runs'}", *EVERY_STEP]))

    at_step(5, start_again)
    folder = launch(*EVERY_STEP, code=1 if lost == "folder" else 0)
    assert codes == [0 if lost == "folder" else 2]
    assert rows(folder) == expected
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "act", ["delete", *(pytest.param(act, marks=pytest.mark.slow) for act in ("empty", "replace"))]
)
def test_rows_that_are_deleted_in_mid_run_are_reported_and_the_run_is_marked(launch, at_step, tmp_path, capsys, act):
    def lose() -> None:
        (path,) = tmp_path.glob("runs/*/*/metrics.jsonl")
        {"delete": path.unlink, "empty": lambda: os.truncate(path, 0), "replace": lambda: replace(path)}[act]()

    at_step(7, lose)
    folder = launch(*EVERY_STEP)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and len(summary["warnings"]) == 1
    assert "metrics.jsonl" in summary["warnings"][0]
    out, err = capsys.readouterr()
    assert err.count("metrics.jsonl was deleted") == 1 and "metrics.jsonl was deleted" in out, "in the closing table"
    assert [step for step, _ in rows(folder)] == sorted(step for step, _ in rows(folder)) and len(rows(folder)) >= 5


def replace(path: Path) -> None:
    """Puts another file in the place of one."""
    path.rename(path.with_suffix(".old"))
    path.write_text("")


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [1, 0])
def test_rows_that_are_deleted_before_a_killed_run_goes_on_are_reported(launch, child, tmp_path, evaluated):
    """Also if the run logged steps before any evaluation, as it has where the kill leaves only an early checkpoint."""
    options = [*EVERY_STEP, "callbacks.checkpoints.every=4", f"eval.every_steps={evaluated}"]
    assert child(*options, root="runs", at=("kleiber.training.lit.accumulate", 10)) == -signal.SIGKILL
    (path,) = tmp_path.glob("runs/*/*/metrics.jsonl")
    path.unlink()
    summary = json.loads((launch(*options) / "summary.json").read_text())
    assert summary["status"] == "finished" and len(summary["warnings"]) == 1


def test_a_run_of_which_nothing_is_deleted_has_no_warning(once):
    assert "warnings" not in json.loads((once(*EVERY_STEP) / "summary.json").read_text())
