"""Win rates of planted models against the answers of held-out pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from evals.planted import planted
from evals.subjects import subject_of
from evals.test_ood import letters
from tables import folder

from kleiber.data.preference import Preference
from kleiber.data.unpaired import Unpaired
from kleiber.objectives.clm import CLM
from kleiber_topics.judging import WinRate
from kleiber_topics.judging.annotators import Variety, WordShare


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> Preference:
    """Pairs of answers, one of two words of which is `a`, and `b b`."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"q{i}", "chosen": " a b b", "rejected": " b b b", "template": "plain"} for i in range(60)]
    return Preference(folder(tmp_path / "pairs", train=rows[:40], validation=rows[20:]))


def scores(data: Preference, words: list[str], a: float = 0.5, **keys) -> dict:
    subject = subject_of(planted(a=a, b=0.05), data.prepare(16), CLM())
    return WinRate(WordShare(words), **keys).evaluate(subject).scores["pairs"]


def test_the_answer_of_the_greater_utility_wins(data):
    always = scores(data, ["a"], a=0.9, temperature=0.0)  # it writes a, and no other word
    share = always["start_utility"].value / (10 / 3)  # of the answers " a b b", which win over "aaaaaa", no word a
    assert (
        always["utility"].value == 0
        and 0.2 < share < 0.8
        and always["win_rate"].value == pytest.approx((1 - share) / 2)
    )
    assert scores(data, ["aaaaaa"], a=0.9, temperature=0.0)["win_rate"].value == 1


def test_ties_count_half_and_the_length_is_reported(data):
    equal = scores(data, ["zzz"])
    assert equal["win_rate"].value == 0.5 and equal["start_bytes"].value == 6 and equal["bytes"].value == 6


@pytest.mark.slow
def test_each_key_has_an_effect(data, monkeypatch):
    subject = subject_of(planted(a=0.3, b=0.3), data.prepare(16), CLM())
    base = WinRate(Variety(1)).evaluate(subject).scores["pairs"]
    assert base["win_rate"].n == len(data.prepare(16).validation["pairs"])
    assert WinRate(Variety(1), answers=2).evaluate(subject).scores["pairs"]["win_rate"].n == 2
    others = [WinRate(Variety(1), seed=1), WinRate(Variety(2)), WinRate(Variety(1), temperature=0.0)]
    for other in others:
        assert other.evaluate(subject).scores["pairs"]["utility"] != base["utility"]
    assert WinRate(Variety(1)).evaluate(subject).scores["pairs"] == base


def test_data_without_pairs_is_refused(data, tmp_path):
    subject = subject_of(planted(a=0.5), data.prepare(16), CLM())
    verdicts = [{"prompt": f"q{i}", "completion": f"to q{i}", "label": i % 2 == 0} for i in range(40)]
    labeled = Unpaired(folder(tmp_path / "verdicts", train=verdicts, validation=verdicts)).prepare(64)
    with pytest.raises(ValueError, match="--evals win_rate needs pairs of answers, and verdicts has none"):
        WinRate(Variety()).evaluate(subject_of(planted(a=0.5), labeled, CLM()))
    text = replace(letters(0.5, "t"), of_run=True)
    with pytest.raises(ValueError, match="--evals win_rate needs pairs of answers, and t has none"):
        WinRate(Variety()).evaluate(replace(subject, data=[text]))
    assert WinRate(Variety()).accepts(text) and not WinRate(Variety()).accepts(letters(0.5, "t"))
