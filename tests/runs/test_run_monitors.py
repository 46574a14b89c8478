"""Callbacks of Lightning that monitor a metric or stop training: EarlyStopping and Timer."""

import json

import pytest
from lightning.pytorch.callbacks import Timer

STOPS = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:%s,patience:1,min_delta:100}"
TIMER = "+callbacks.stop={_target_:lightning.pytorch.callbacks.Timer,duration:{seconds:%d}}"
METRICS = ["val/tiny/loss", "val/tiny/bits_per_byte"]


def stage_of(folder):
    return json.loads((folder / "summary.json").read_text())["stages"][0]


@pytest.mark.parametrize("dry_run", [pytest.param("true", marks=[pytest.mark.slow, pytest.mark.process]), "false"])
def test_a_monitor_that_is_not_measured_is_refused_with_those_that_are(launch, tmp_path, capsys, dry_run):
    """FAULTS 126."""
    launch(STOPS % "val_loss", f"dry_run={dry_run}", code=2)
    error = capsys.readouterr().err
    assert "callbacks.stop.monitor=val_loss" in error and "budget.stop_at_loss" in error
    assert all(name in error for name in METRICS)
    assert not list((tmp_path / "runs").glob("*/*"))


def test_early_stopping_ends_training_at_a_validation_that_is_no_better(launch, capsys):
    folder = launch(STOPS % METRICS[0], "eval.every_steps=4")
    stage = stage_of(folder)
    assert stage["steps"] == 8 and stage["stopped_at_loss"] is None
    assert [row["step"] for row in stage["curve"]] == [4, 8]
    assert stage["metrics"][METRICS[0]] == stage["curve"][-1][METRICS[0]]
    assert stage["checkpoint"].endswith("step-00000008") and (folder / stage["checkpoint"]).is_dir()
    assert "callback of Lightning" in capsys.readouterr().err
    assert stage_of(launch(STOPS % METRICS[0], "eval.every_steps=4")) == stage


def test_a_stop_between_validations_is_scored_as_the_last_step(launch, monkeypatch):
    monkeypatch.setattr(Timer, "time_elapsed", lambda timer, stage=None: 2.0 * (timer.calls > 4))
    monkeypatch.setattr(Timer, "calls", 0, raising=False)
    check = Timer._check_time_remaining

    def counted(timer, trainer):
        timer.calls += 1
        check(timer, trainer)

    monkeypatch.setattr(Timer, "_check_time_remaining", counted)
    stage = stage_of(launch(TIMER % 1, "eval.every_steps=3"))
    assert stage["steps"] == 4
    assert [row["step"] for row in stage["curve"]] == [3, 4]
    assert set(METRICS) <= stage["metrics"].keys() and stage["checkpoint"].endswith("step-00000004")


def test_a_stop_before_the_first_step_is_refused(launch, capsys):
    launch(TIMER % 0, code=2)
    assert "before its first step" in capsys.readouterr().err
