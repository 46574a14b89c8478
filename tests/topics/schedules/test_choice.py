"""The best decay by a law of schedules: that of the true law, with intervals, and against WSD and cosine."""

import json

import numpy as np
import pytest

from kleiber.launch.cli import main
from kleiber.studies.laws import laws_json
from kleiber_topics.schedules.choice import DECAYS, best_decay
from kleiber_topics.schedules.forms import FORMS, rate_path
from kleiber_topics.schedules.prediction import values_of

from .planted import curves, fit

STEPS = 12000


@pytest.fixture(scope="module")
def law():
    table = curves(noise=1e-3)
    return fit(table[table["schedule"] != "wsd"], bootstrap=100)


@pytest.fixture(scope="module")
def answer(law):
    return best_decay(law, {"steps": STEPS, "warmup_steps": 500.0})


def linear_decay(share, peak):
    """Steps and rates of 500 steps of warm-up, a constant rate and a linear decay to 0."""
    steps = np.arange(1.0, STEPS + 1)
    left = np.minimum(1.0, (STEPS - steps + 1) / (share * STEPS))
    return steps, peak * np.minimum(1.0, steps / 500) * left


@pytest.mark.slow
def test_the_chosen_decay_has_the_least_loss_of_all(law, answer):
    losses = []
    for share in DECAYS:
        steps, rates = linear_decay(share, 3e-4)
        losses.append(FORMS[law["form"]].losses(rate_path(steps, rates, steps[-1:]), values_of(law))[0, 0])
    assert [row["decay"] for row in answer["decays"]] == pytest.approx(DECAYS)
    assert [row["value"] for row in answer["decays"]] == pytest.approx(losses, rel=5e-4)
    assert answer["decay"]["value"] == DECAYS[int(np.argmin(losses))]
    assert answer["value"] == pytest.approx(min(losses), rel=5e-4)


@pytest.mark.slow
def test_differences_have_two_intervals_and_are_those_of_predictions(law, answer):
    decay, usual = answer["decay"], answer["against"]["wsd"]
    assert 0 < decay["lo"] <= decay["value"] <= decay["hi"] <= 1
    predicted = next(row["value"] for row in answer["decays"] if row["decay"] == 0.2)
    assert usual["value"] == pytest.approx(answer["value"] - predicted, abs=1e-6) and usual["value"] <= 0
    for row in answer["against"].values():
        assert row["run_lo"] < row["lo"] <= row["value"] <= row["hi"] < row["run_hi"]


@pytest.mark.slow
def test_the_command_predicts_the_best_decay(law, tmp_path, capsys):
    laws_json.write(law, tmp_path / "law.json")
    command = ["predict", str(tmp_path / "law.json"), "--schedule", "best"]
    assert main([*command, "--steps", str(STEPS), "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert {"decay", "against", "decays", "value", "run_lo", "run_hi", "curve"} <= set(content)
    wrong = ([], ["--steps", "100", "decay=0.1"], ["--steps", "100", "lr=x"], ["--steps", "100", "warmup=3"])
    assert [main([*command, *words]) for words in wrong] == [2, 2, 2, 2]
    assert "decay=0.1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_law_without_draws_has_no_intervals():
    table = curves(noise=1e-3)
    answer = best_decay(fit(table, bootstrap=0), {"steps": STEPS})
    assert answer["decay"]["lo"] is None and answer["against"]["wsd"]["run_lo"] is None
