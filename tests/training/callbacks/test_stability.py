"""Spikes of the loss: printed once with their step, skipped on request, and none in a healthy run."""

import json
from copy import copy

import pytest
import torch
from safetensors.torch import load_file

from kleiber.records.folder import config_hash
from kleiber.training.callbacks.stability import Stability
from kleiber.training.step import Diverged, accumulate
from kleiber.types.batch import Loss

OPTIONS = ["trainer.max_steps=40", "budget.steps=40", "callbacks.stability.window=20"]


@pytest.fixture
def leaping(monkeypatch):
    """Multiplies the reported loss of the given steps by four."""

    def at(*steps: int) -> None:
        calls = []

        def leap(*arguments):
            calls.append(1)
            sums = accumulate(*arguments)
            if len(calls) in steps:
                sums.values["ce"] = 4 * sums.values["ce"]
            return sums

        monkeypatch.setattr("kleiber.training.lit.accumulate", leap)

    return at


def spikes(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/spikes" in row]


@pytest.mark.slow
def test_a_spike_is_printed_once_with_its_step(launch, leaping, capsys):
    leaping(30, 31)
    folder = launch(*OPTIONS)
    messages = [line for line in capsys.readouterr().err.splitlines() if "samples [" in line]
    assert len(messages) == 1 and "step 30" in messages[0] and "samples [" in messages[0]
    assert spikes(folder) == [{"step": 30, "train/spikes": 1.0}]


@pytest.mark.slow
def test_a_healthy_run_says_nothing(launch, capsys):
    folder = launch(*OPTIONS)
    assert "spike" not in capsys.readouterr().err
    assert spikes(folder) == []


def test_what_is_usual_is_resumed():
    before, after = Stability(window=10), Stability(window=10)
    before.recent.extend([2.0, 2.1, 1.9, 2.0, 2.0, 2.05])
    after.load_state_dict(before.state_dict())
    assert after.threshold() == before.threshold() == pytest.approx(2.3)
    assert Stability(window=10).threshold() is None


def test_a_gradient_of_ten_times_the_usual_norm_is_a_spike_too():
    watch = Stability(window=10, policy="skip")
    assert not any(watch.refuses(2.0, 1.0 + 0.01 * step) for step in range(6))
    assert watch.refuses(2.0, 11.0) and not watch.refuses(2.0, 9.0)
    assert (watch.spikes, watch.skipped) == (1, 1)


def test_a_loss_that_has_moved_and_not_leapt_ends_the_run():
    watch = Stability(window=10, policy="skip")
    for _ in range(6):
        watch.refuses(2.0, 1.0)
    with pytest.raises(Diverged, match=r"10 consecutive.*loss 4"):
        for _ in range(11):
            watch.refuses(4.0, 1.0)


@pytest.fixture
def bad(launch, monkeypatch):
    """`bad(position, factor)` scales the loss of one batch, by its samples, wherever and in whatever run it comes."""

    def at(position: int, factor: float) -> None:
        order: list[int] = []

        def note(model, objective, batches, *rest):
            order.append(int(batches[0].samples[0]))
            return accumulate(model, objective, batches, *rest)

        with monkeypatch.context() as patch:
            patch.setattr("kleiber.training.lit.accumulate", note)
            launch(*OPTIONS, root="order")

        def spoil(model, objective, batches, *rest):
            class Scaled(type(objective)):
                def __call__(self, model, batch):
                    loss = objective(model, batch)
                    return Loss(loss.total * factor, loss.tokens, {**loss.metrics, "ce": loss.metrics["ce"] * factor})

            scaled = copy(objective)
            scaled.__class__ = Scaled
            chosen = scaled if int(batches[0].samples[0]) == order[position] else objective
            return accumulate(model, chosen, batches, *rest)

        monkeypatch.setattr("kleiber.training.lit.accumulate", spoil)

    return at


def weights(folder) -> dict:
    return load_file(max(folder.glob("stages/main/checkpoints/*/model.safetensors")))


@pytest.mark.slow
@pytest.mark.parametrize("factor, policy", [(1e4, "policy"), (float("nan"), "nonfinite")])
def test_a_skipped_step_changes_nothing_but_the_position_and_is_resumed(launch, bad, interrupted, factor, policy):
    options = [*OPTIONS, f"callbacks.stability.{policy}=skip", "callbacks.checkpoints.every=1"]
    options += ["callbacks.checkpoints.keep=40"]
    bad(30, factor)
    folder = launch(*options, root="whole")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/skipped"] for row in rows if "train/skipped" in row] == [1.0]
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    with interrupted(28):
        launch(*options, root="broken", code=130)
    again = launch(*options, root="broken")
    whole, resumed = weights(folder), weights(again)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before, after = (load_file(folder / f"stages/main/checkpoints/step-000000{n}/model.safetensors") for n in (30, 31))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_what_is_not_finite_halts_by_default(launch, bad):
    bad(30, float("nan"))
    folder = launch(*OPTIONS, code=1)
    assert json.loads((folder / "summary.json").read_text())["status"] == "diverged"


def test_a_policy_that_changes_weights_is_part_of_a_runs_identity():
    plain = {"callbacks": {"stability": {"window": 50}}, "seed": 0}
    config = {"callbacks": {"stability": {"window": 20, "policy": "tell"}}, "seed": 0}
    others = [
        {"callbacks": {"stability": {"window": 50, "policy": policy}, "checkpoints": {"every": every}}, "seed": 0}
        for policy, every in (("skip", 5), ("halt", 5), ("rollback", 5), ("rollback", 6))
    ]
    assert config_hash(plain) == config_hash(config)
    assert len({config_hash(plain), *map(config_hash, others)}) == 5


def test_halting_ends_the_run_at_the_spike():
    watch = Stability(window=10, policy="halt")
    for _ in range(6):
        watch.refuses(2.0, 1.0)
    with pytest.raises(Diverged, match="loss spike: loss 4"):
        watch.refuses(4.0, 1.0)


def test_a_spike_alarm_that_is_null_is_off():
    watch = Stability(window=10, norms=None, deviations=None, policy="skip")
    assert not any(watch.refuses(2.0, 1.0) for _ in range(6))
    assert not watch.refuses(20.0, 1.0) and not watch.refuses(2.0, 1e6)
    assert watch.spikes == 0


LOOKS = ["model.depth=2", "trainer.max_steps=15", "callbacks.stability.window=10", "callbacks.stability.every=5"]
CROSSED = {  # a bound of each alarm that every run crosses
    "max_attention_logit": 0.01, "min_attention_entropy": 1.0, "max_update_ratio": 1e-9, "max_activation": 1e-3,
    "max_log_z": 0.01, "min_gradient_ratio": 1.0,
}  # fmt: skip
KINDS = {"attention_logit", "attention_entropy", "update", "activation", "log_z", "gradient"}


def stage_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())["stages"][0]


@pytest.mark.slow
def test_every_bound_raises_its_alarm_once(launch, capsys):
    folder = launch(*LOOKS, *(f"callbacks.stability.{key}={bound}" for key, bound in CROSSED.items()))
    text, metrics = capsys.readouterr().err, stage_of(folder)["metrics"]
    kinds = {key.rpartition("/")[2] for key in metrics if key.startswith("stability/alarms/")}
    assert kinds == KINDS and metrics["stability/alarms"] == sum(metrics[f"stability/alarms/{kind}"] for kind in kinds)
    assert metrics["stability/alarms/attention_logit"] == 4  # two layers of two heads, once each
    assert "stability at step 5: largest attention logit of layer 0, head 0 is " in text
    assert "stability at step 15: relative update |dW|/|W| of " in text and "more alarms" in text


@pytest.mark.slow
def test_alarms_that_are_null_cost_nothing(launch, monkeypatch, capsys):
    for name in ("look_inside", "gradient_norms", "sample_entries"):
        monkeypatch.delattr(f"kleiber.training.callbacks.stability.{name}")
    folder = launch(*LOOKS, *(f"callbacks.stability.{key}=null" for key in CROSSED))
    assert stage_of(folder)["metrics"]["stability/alarms"] == 0 and "stability at" not in capsys.readouterr().err


@pytest.mark.slow
def test_training_is_bit_identical_without_the_callback(launch):
    watched = launch(*LOOKS, "callbacks.stability.every=2", "model.dropout=0.1", root="watched")
    alone = launch(*LOOKS[:2], "model.dropout=0.1", "callbacks.stability=null", root="alone")
    ours, theirs = weights(watched), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any("stability/log_z" in line for line in (watched / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("options", [["model=moe"], ["model=bert", "objective=mlm"], ["model/attention=window"]])
def test_other_models_are_measured_too(launch, options):
    folder = launch(*LOOKS, *options, *(f"callbacks.stability.{key}={bound}" for key, bound in CROSSED.items()))
    assert {f"stability/alarms/{kind}" for kind in KINDS} <= stage_of(folder)["metrics"].keys()
