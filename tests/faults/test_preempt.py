"""SIGTERM and SIGUSR1 save, say so, and leave with 75; the same command continues. FAULTS 9, 10, 11."""

import json
import os
import shutil
import signal
from contextlib import suppress

import pytest
from faults.test_kill import STEPS, facts
from processes import wait_for

import kleiber.runs.plan
from kleiber.training import checkpoint
from kleiber.training.step import accumulate


@pytest.fixture
def signalled(monkeypatch):
    """Sends this process a signal in its n-th step."""

    def at(step: int, number: signal.Signals) -> None:
        calls = []

        def asks(*arguments):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), number)
            return accumulate(*arguments)

        monkeypatch.setattr("kleiber.training.lit.accumulate", asks)

    return at


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGTERM, 75, "preempted"),
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, "preempted", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_ends_bit_identical(
    launch, once, signalled, tmp_path, capsys, number, code, status
):
    unbroken = once(*STEPS).parents[1]
    before = signal.getsignal(number)
    signalled(11, number)
    folder = launch(*STEPS, root="killed", code=code)
    assert signal.getsignal(number) == before
    found = json.loads((folder / "summary.json").read_text())
    assert found["status"] == status and f"{number.name} at step 11" in found["error"]
    assert (folder / "stages/main/checkpoints/step-00000011/meta.json").is_file()
    assert f"{status} by {number.name}" in capsys.readouterr().err
    launch(*STEPS, root="killed")
    assert "resuming at step 11" in capsys.readouterr().err
    assert facts(tmp_path / "killed") == facts(unbroken)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_run_at_once_with_130(child, signalled, tmp_path, monkeypatch):
    """FAULTS 86: while the checkpoint of the first one is written, which is whole or absent. The run is interrupted."""
    signalled(11, signal.SIGINT)
    save = checkpoint.save

    def impatient(folder, step, *arguments):
        if step == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return save(folder, step, *arguments)

    monkeypatch.setattr(checkpoint, "save", impatient)
    assert child(*STEPS, root="killed") == 130
    (folder,) = tmp_path.glob("killed/*/*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    newest, defects = checkpoint.latest(folder / "stages/main/checkpoints")
    assert newest is not None and newest.step in (8, 11) and not defects


@pytest.mark.slow
def test_a_run_whose_folder_is_deleted_says_so_and_ends_with_1(launch, monkeypatch, tmp_path, capsys):
    """FAULTS 87."""
    calls = []

    def deletes(*arguments):
        calls.append(1)
        if len(calls) == 11:
            shutil.rmtree(next(tmp_path.glob("gone/*/*")))
        return accumulate(*arguments)

    monkeypatch.setattr("kleiber.training.lit.accumulate", deletes)
    launch(*STEPS, root="gone", code=1)
    error = capsys.readouterr().err
    assert str(tmp_path / "gone") in error and "Traceback" not in error and not list(tmp_path.glob("gone/*/*"))


@pytest.mark.slow
def test_a_signal_in_the_last_step_interrupts_nothing(launch, signalled):
    signalled(20, signal.SIGTERM)
    folder = launch()
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_wandb_is_told_of_the_preemption(launch, signalled):
    from wandb_records import read

    signalled(5, signal.SIGTERM)
    folder = launch("logger=wandb", "logger.wandb.mode=offline", code=75)
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    wait_for(lambda: read(path)["exit_code"] == 75)  # the client returns before its file is whole


def test_a_signal_whose_exception_a_library_swallows_ends_the_run_after_its_first_step(launch, monkeypatch):
    make_plan = kleiber.runs.plan.make_plan

    def swallows(*arguments):
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
        return make_plan(*arguments)

    monkeypatch.setattr("kleiber.runs.plan.make_plan", swallows)
    folder = launch(code=130)
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert (folder / "stages/main/checkpoints/step-00000001/meta.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["kleiber.runs.plan.make_plan", "kleiber.evals.task_scores.held_out_loss"])
def test_a_signal_where_no_step_is_trained_is_heeded_too(launch, monkeypatch, place):
    """While data are prepared and while the last score is taken, when Lightning's own handlers are not there."""
    import importlib

    module, name = place.rsplit(".", 1)
    owner = importlib.import_module(module)
    original = getattr(owner, name)

    def asked(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, asked)
        folder = launch(code=75) if name == "make_plan" else launch("eval.every_steps=5", code=75)
    assert json.loads((folder / "summary.json").read_text())["status"] == "preempted"
    launch()
