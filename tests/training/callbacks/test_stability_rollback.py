"""A rollback goes back to a planned checkpoint and leaves out the data up to the alarm, exactly, and after any kill."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from kleiber.training.callbacks.stability import Stability
from kleiber.training.step import Diverged, Rollback, accumulate

OPTIONS = [
    "trainer.max_steps=60", "budget.steps=60", "callbacks.stability.window=20", "callbacks.checkpoints.every=8",
    "eval.every_steps=0",
]  # fmt: skip
ROLLBACK = "callbacks.stability.policy=rollback"


@pytest.fixture
def planted(launch, monkeypatch):
    """`planted(*positions)` multiplies the reported loss of these batches by four, whenever they come.

    Returns the list of the positions of the batches that are read from then on; `signals[number of the step]` is sent
    to this process while it takes that step.
    """
    order: list[int] = []
    signals: dict[int, int] = {}

    def note(model, objective, batches, *rest):
        order.append(int(batches[0].samples[0]))
        return accumulate(model, objective, batches, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("kleiber.training.lit.accumulate", note)
        launch("trainer.max_steps=120", "budget.steps=120", "eval.tokens=256", root="order")

    def at(*positions: int) -> tuple[list[int], dict[int, int]]:
        read: list[int] = []

        def spoil(model, objective, batches, *rest):
            sums = accumulate(model, objective, batches, *rest)
            position = order.index(int(batches[0].samples[0]))
            read.append(position)
            if len(read) in signals:
                os.kill(os.getpid(), signals.pop(len(read)))
            if position in positions:
                sums.values["ce"] = 4 * sums.values["ce"]
            return sums

        monkeypatch.setattr("kleiber.training.lit.accumulate", spoil)
        return read, signals

    return at


def stage_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())["stages"][0]


def final_weights(folder) -> dict:
    return load_file(folder / "stages/main/checkpoints/step-00000060/model.safetensors")


def assert_same_result(folder, other) -> None:
    ours, theirs = final_weights(folder), final_weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    stages = [stage_of(folder), stage_of(other)]
    for key in ("rollbacks", "metrics", "tokens", "samples", "steps", "checkpoint"):
        assert stages[0][key] == stages[1][key], key


@pytest.mark.slow
def test_the_data_up_to_the_alarm_is_left_out_and_nothing_else(launch, planted, capsys):
    read, _ = planted(29, 40)
    folder = launch(*OPTIONS, ROLLBACK)
    # Step 30 is a spike: back to step 24. Step 24 + 10 reads position 40: back to step 32, whose data ended at 37.
    assert read == [*range(30), *range(30, 41), *range(41, 41 + 28)]
    stage = stage_of(folder)
    assert [(entry["step"], entry["to"]) for entry in stage["rollbacks"]] == [(30, 24), (35, 32)]
    assert stage["steps"] == 60 and stage["metrics"]["stability/alarms/rollback"] == 2
    text = capsys.readouterr().err
    assert "stability at step 30: loss spike: loss " in text and stage["rollbacks"][0]["reason"] in text


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [2, 4, 5])
def test_a_kill_changes_nothing(launch, planted, interrupted, checkpoints):
    planted(29, 31)  # the second alarm comes before the first checkpoint after the rollback
    whole = launch(*OPTIONS, ROLLBACK, root="whole")
    assert [(entry["step"], entry["to"]) for entry in stage_of(whole)["rollbacks"]] == [(30, 24), (26, 24)]
    with interrupted(checkpoints):
        launch(*OPTIONS, ROLLBACK, root="broken", code=130)
    assert_same_result(launch(*OPTIONS, ROLLBACK, root="broken"), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "copied"), [(27, False), (32, False), (27, True)])
def test_a_checkpoint_of_a_preemption_is_not_gone_back_to(launch, planted, tmp_path, monkeypatch, step, copied):
    """Nor is its copy, where that cannot be removed."""

    def closed(*_: object) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr("kleiber.training.remote.Remote.remove", closed)
    copies = [f"callbacks.checkpoints.remote=file://{tmp_path}/copies"] if copied else []
    _, signals = planted(29, 33)  # step 32 is taken after the rollback, as the second from step 24 on
    whole = launch(*OPTIONS, ROLLBACK, root="whole")
    signals[step] = signal.SIGTERM
    planted(29, 33)
    launch(*OPTIONS, ROLLBACK, *copies, root="broken", code=75)
    assert_same_result(launch(*OPTIONS, ROLLBACK, *copies, root="broken"), whole)
    assert len(list(tmp_path.glob(f"copies/**/step-000000{step}/meta.json"))) == copied


@pytest.mark.slow
def test_without_a_checkpoint_the_stage_starts_again_behind_the_spike(launch, planted):
    read, _ = planted(29)
    folder = launch(*OPTIONS, ROLLBACK, "callbacks.checkpoints.every=50")
    assert read == [*range(30), *range(30, 90)]
    assert [(entry["step"], entry["to"]) for entry in stage_of(folder)["rollbacks"]] == [(30, 0)]


def test_tries_bound_the_rollbacks():
    watch = Stability(window=10, policy="rollback", tries=1)
    for _ in range(6):
        watch.refuses(2.0, 1.0)
    with pytest.raises(Rollback, match="loss spike") as alarm:
        watch.refuses(4.0, 1.0)
    watch.record.rollbacks = [{"step": alarm.value.step, "to": 0, "reason": alarm.value.reason}]
    with pytest.raises(Diverged, match="already gone back 1 times"):
        watch.refuses(4.0, 1.0)


def test_what_is_not_finite_is_rolled_back_unless_it_is_skipped():
    with pytest.raises(Rollback, match="not finite"):
        Stability(policy="rollback").refuses(2.0, float("inf"))
    assert Stability(policy="rollback", nonfinite="skip").refuses(2.0, float("inf"))


@pytest.mark.parametrize("option", ["callbacks.checkpoints=null", "callbacks.checkpoints.every=0"])
def test_a_rollback_without_checkpoints_is_refused(launch, capsys, option):
    launch(ROLLBACK, option, code=2)
    assert option in capsys.readouterr().err
