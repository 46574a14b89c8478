"""Which checkpoints are planned, which are kept, and which callbacks take over the state of another stage."""

from types import SimpleNamespace

import pytest

from kleiber.records.summary import StageRecord
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
