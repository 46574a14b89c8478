"""Scores of sampled answers are shares of the answers and of the prompts; training prompts are told."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from kleiber.data.evaluation_sets import DataSet
from kleiber.evals import reward as module
from kleiber.evals.evaluation import Subject
from kleiber.evals.reward import Reward, scores_of
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM

Sorting = pytest.importorskip("kleiber_topics.rewards.problems").Sorting


def subject(**options) -> Subject:
    corpus = Sorting(problems=40, held_out=12, lengths=[2], **options).prepare(32)
    torch.manual_seed(0)
    model = Transformer(272, depth=1, width=32, context=32)
    data = [DataSet(name, lambda rows=rows: rows, of_run=True) for name, rows in corpus.validation.items()]
    return Subject(model, corpus.tokenizer, CLM(), CLM(), data, corpus.train, corpus=corpus)


def test_metrics_are_shares_over_answers_and_prompts():
    sampled = np.array([[1, 0], [1, 1], [0, 0.5], [0, 0]])
    scores = scores_of(sampled, np.array([1.0, 1.0, 0.0, 0.0]))
    values = {name: score.value for name, score in scores.items()}
    assert values == {"mean": 0.4375, "pass_at_1": 0.375, "pass_at_k": 0.5, "greedy": 0.5}
    assert all(score.lo <= score.value <= score.hi and score.n == 4 for score in scores.values())  # type: ignore[operator]


def test_a_model_that_copies_the_right_answers_has_them_all_right(monkeypatch):
    tested = subject()
    rows = tested.samples("sorting")
    right = {tuple(rows.question(i)[0]): rows.question(i)[1] for i in range(len(rows))}  # type: ignore[index]
    answer = lambda model, prompts, *_, **__: [right[tuple(prompt)] for prompt in prompts]  # noqa: E731
    monkeypatch.setattr(module, "continuations", answer)
    monkeypatch.setattr("kleiber.objectives.rollouts.continuations", answer)
    scores = Reward(samples=3).evaluate(tested).scores
    assert {name: score.value for name, score in scores["sorting"].items()} == dict.fromkeys(scores["sorting"], 1.0)
    assert scores["sorting"]["pass_at_k"].lo < 1 and scores["sorting"]["mean"].n == 12  # type: ignore[operator]


@pytest.mark.slow
def test_equal_seeds_give_equal_scores_and_a_limit_fewer_prompts():
    tested = subject()
    length = Reward("length", samples=2, limit=5)
    first, again = (length.evaluate(tested).scores["sorting"] for _ in range(2))
    other = Reward("length", samples=2, limit=5, seed=1).evaluate(tested).scores["sorting"]
    assert first == again and first["mean"] != other["mean"] and first["mean"].n == 5


def test_prompts_of_training_are_told(caplog):
    tested = subject()
    assert tested.train is not None
    with caplog.at_level(logging.WARNING):
        Reward(samples=1).evaluate(tested)
        assert not caplog.records
        held_out = tested.samples("sorting")
        Reward(samples=1).evaluate(replace(tested, train=held_out))
    assert "12 of 12 prompts of sorting are training prompts" in caplog.text


def test_data_without_a_verifier_is_refused():
    tested = subject(verifier="")
    with pytest.raises(ValueError, match=r"objective\.reward="):
        Reward().evaluate(tested)
