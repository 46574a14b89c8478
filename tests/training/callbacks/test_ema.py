"""The average of the weights: its formula, its scores, and exact resumption."""

import json

import pytest
import torch
from safetensors.torch import load_file

OPTIONS = ["callbacks=ema", "callbacks.ema.decay=0.8", "callbacks.checkpoints.every=1"]
OPTIONS += ["callbacks.checkpoints.keep=20", "budget.steps=10", "eval.every_steps=5"]


def weights(folder, place: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "stages/main" / place / "model.safetensors")


def stage(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())["stages"][0]


@pytest.mark.slow
def test_the_average_is_its_formula_from_its_start_and_training_is_left_alone(launch):
    folder = launch(*OPTIONS, "callbacks.ema.start=4")
    expected = weights(folder, "checkpoints/step-00000004")
    for step in range(5, 11):
        for name, tensor in weights(folder, f"checkpoints/step-{step:08d}").items():
            expected[name] = 0.8 * expected[name] + 0.2 * tensor
    average = weights(folder, "ema/step-00000010")
    for name, tensor in expected.items():
        torch.testing.assert_close(average[name], tensor)
    plain = launch("budget.steps=10", "eval.every_steps=5", root="plain")
    last = weights(plain, "checkpoints/step-00000010")
    assert all(torch.equal(last[n], t) for n, t in weights(folder, "checkpoints/step-00000010").items())
    scored = [row["step"] for row in stage(folder)["curve"] if any(key.startswith("val_ema/") for key in row)]
    assert scored == [5, 10]


@pytest.mark.slow
def test_an_average_that_would_begin_late_is_refused(launch, interrupted, capsys):
    with interrupted(2):
        launch("budget.steps=4", "trainer.max_steps=4", code=130)
    launch("budget.steps=4", "trainer.max_steps=4", "callbacks=ema", code=2)
    assert "callbacks.ema.start=0: the run is at step 1" in capsys.readouterr().err
    folder = launch("budget.steps=4", "trainer.max_steps=4", "callbacks=ema", "callbacks.ema.start=2")
    assert (folder / "stages/main/ema/step-00000004").is_dir()


@pytest.mark.slow
def test_it_is_scored_as_what_it_is_and_resumed_bit_by_bit(launch, interrupted):
    folder = launch(*OPTIONS)
    metrics = stage(folder)["metrics"]
    (name,) = (key for key in metrics if key.startswith("val/") and key.endswith("/loss"))
    averaged = metrics[name.replace("val/", "val_ema/")]
    assert averaged != metrics[name] and abs(averaged - metrics[name]) < 0.5
    with interrupted(7):
        launch(*OPTIONS, root="broken", code=130)
    again = launch(*OPTIONS, root="broken")
    assert stage(again)["metrics"] == metrics
    first, second = (weights(run, "ema/step-00000010") for run in (folder, again))
    assert all(torch.equal(first[key], second[key]) for key in first)
