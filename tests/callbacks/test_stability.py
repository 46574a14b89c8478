"""A loss that leaps is told once, with its step; a healthy run and its resumption say nothing."""

import json

import pytest

from kleiber.callbacks.stability import Stability
from kleiber.step import accumulate

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

        monkeypatch.setattr("kleiber.lit.accumulate", leap)

    return at


def spikes(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/spikes" in row]


def test_a_spike_is_told_once_with_its_step(launch, leaping, capsys):
    leaping(30, 31)
    folder = launch(*OPTIONS)
    told = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert len(told) == 1 and "step 30" in told[0] and "samples [" in told[0]
    assert spikes(folder) == [{"step": 30, "train/spikes": 1.0}]


def test_a_healthy_run_says_nothing(launch, capsys):
    folder = launch(*OPTIONS)
    assert "spike" not in capsys.readouterr().err
    assert spikes(folder) == []


def test_what_is_usual_is_resumed():
    before, after = Stability(window=10), Stability(window=10)
    before.recent.extend([2.0, 2.1, 1.9, 2.0, 2.0, 2.05])
    after.load_state_dict(before.state_dict())
    assert after.line() == before.line() == pytest.approx(2.3)
    assert Stability(window=10).line() is None


@pytest.mark.parametrize("options", [{"window": 5}, {"deviations": 0.0}, {"least": -1.0}])
def test_what_would_never_or_always_speak_is_refused(options):
    with pytest.raises(ValueError, match=r"callbacks\.stability"):
        Stability(**options)
