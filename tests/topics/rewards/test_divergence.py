"""The divergence of answers from another model is 0 for that model, and the exact one of a planted policy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from evals.planted import planted, subject

from kleiber.config.compose import Composer, resolve_config
from kleiber.data.evaluation_sets import DataSet
from kleiber_topics.rewards import divergence
from kleiber_topics.rewards.divergence import Divergence
from kleiber_topics.rewards.problems import Sorting


@pytest.fixture
def measured(cache, monkeypatch):
    """Divergence of a policy from a model that writes a and b equally often, and how often that model was opened."""
    opened = []

    def open_model(path):
        opened.append(path)
        return SimpleNamespace(model=planted(a=0.5, b=0.5 - 1e-9))

    monkeypatch.setattr(divergence, "open_model", open_model)
    corpus = Sorting(problems=20, held_out=12, lengths=[2], largest=9).prepare(23)
    data = [DataSet(name, lambda rows=rows: rows, of_run=True) for name, rows in corpus.validation.items()]
    evaluation = Divergence("m", samples=128)

    def measure(policy):
        (scores,) = evaluation.evaluate(subject(policy, data)).scores.values()
        return scores["kl"]

    return measure, opened


def test_it_is_zero_for_the_other_model_and_exact_for_planted_probabilities(measured):
    measure, opened = measured
    assert measure(planted(a=0.5, b=0.5 - 1e-9)).value == pytest.approx(0, abs=1e-5)
    tokens = 8  # of each answer, none of which ends: twice those of the longest right one, with its end
    exact = tokens * (0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2))
    score = measure(planted(a=0.8, b=0.2 - 1e-9))
    assert score.value == pytest.approx(exact, abs=0.2)
    assert opened == ["m"]


def test_a_model_that_cannot_be_opened_is_refused_by_its_key(measured, monkeypatch):
    measure, _ = measured

    def refuse(path):
        raise ValueError(f"{path} is no run")

    monkeypatch.setattr(divergence, "open_model", refuse)
    with pytest.raises(ValueError, match=r"evals\.divergence\.model: m is no run"):
        measure(planted(a=0.5))


def test_the_choice_names_its_class():
    config, _ = resolve_config(Composer("train").compose(["evals=[divergence]", "evals.divergence.model=m"]))
    assert config["evals"]["divergence"]["_target_"] == "kleiber_topics.rewards.Divergence"
