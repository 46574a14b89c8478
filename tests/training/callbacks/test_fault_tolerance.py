"""Which checkpoints are planned, which are kept, and which callbacks take over the state of another stage."""

import signal
from types import SimpleNamespace

import pytest

from kleiber.records.summary import StageRecord
from kleiber.training.callbacks import fault_tolerance
from kleiber.training.callbacks.fault_tolerance import Checkpoints, restore_callbacks
from kleiber.training.callbacks.log import Throughput
from kleiber.training.callbacks.stability import Stability
from kleiber.training.step import Rollback


@pytest.mark.parametrize(
    ("step", "planned", "due"), [(10, True, True), (7, True, True), (26, False, True), (8, False, False)]
)
def test_a_checkpoint_is_due_at_planned_steps_and_at_the_last_one(tmp_path, step, planned, due):
    callback = Checkpoints(tmp_path, "0", every=5, branch_steps=[7])
    assert callback.is_planned(step) is planned
    assert callback.due(SimpleNamespace(global_step=step, max_steps=26)) is due  # type: ignore[arg-type]


def test_a_rollback_removes_checkpoints_that_an_interruption_saved(tmp_path):
    callback = Checkpoints(tmp_path, "0", every=5)
    for step in (5, 10, 12, 13):
        (tmp_path / f"step-{step:08d}").mkdir()
    callback.on_exception(SimpleNamespace(is_global_zero=True), None, Rollback(14, "a spike", []))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000010"]


def test_state_of_one_stage_is_not_taken_over_by_another():
    record = StageRecord("main")
    clock, watch = Throughput(batch_tokens=1, record=record), Stability(window=10)
    state = {clock.state_key: {"seconds": 3.0}, watch.state_key: {**watch.state_dict(), "spikes": 2}}
    restore_callbacks([clock, watch], state, same_stage=False)
    assert clock.seconds == 0 and watch.spikes == 2
    restore_callbacks([clock, watch], state)
    assert clock.seconds == 3


@pytest.mark.parametrize(("step", "goes_on"), [(3, False), (8, True)])
def test_the_first_ctrl_c_says_what_it_waits_for(monkeypatch, capfd, step, goes_on):
    """A long evaluation after the last step is not interrupted by the first one, and whoever pressed it reads that."""
    monkeypatch.setattr(fault_tolerance, "note_signal", lambda number: None)
    preempt = fault_tolerance.Preempt(None)
    preempt.trainer = SimpleNamespace(global_step=step, max_steps=8, is_global_zero=True)
    for _ in range(2):
        preempt.note(signal.SIGINT, None)
    (line,) = capfd.readouterr().err.splitlines()
    assert ("goes on" in line) == goes_on and preempt.received == signal.SIGINT
    quiet = fault_tolerance.Preempt(None)
    quiet.trainer = SimpleNamespace(global_step=step, max_steps=8, is_global_zero=False)
    quiet.note(signal.SIGINT, None)
    assert capfd.readouterr().err == "", "other ranks leave it to rank 0"
