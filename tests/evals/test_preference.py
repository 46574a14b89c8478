"""Preferences with intervals: the scorer's own means, and a bootstrap that knows a sure gain from none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from evals.subjects import subject_of
from tables import folder

from kleiber.data.preference import Preference, PreferenceCorpus
from kleiber.evals.evaluation import Score, Scores, Subject
from kleiber.evals.preference import Preference as Evaluation
from kleiber.evals.preference import pair_scores
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.objectives.dpo import DPO
from kleiber.objectives.reward import Reward


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch) -> PreferenceCorpus:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    words = ["".join(row) for row in np.random.default_rng(0).choice(list("abcdefgh"), (24, 6))]
    table = [{"prompt": f"{i}", "chosen": words[i], "rejected": words[12 + i]} for i in range(12)]
    return Preference(folder(tmp_path / "t", train=table, validation=table)).prepare(64)


@pytest.fixture
def subject(corpus: PreferenceCorpus, tmp_path: Path) -> Subject:
    """A model that was another one when its stage began."""
    torch.manual_seed(0)
    start, now = (Transformer(272, depth=2, width=32, context=64) for _ in range(2))
    objective = DPO(corpus)
    objective.begin(start, corpus, tmp_path / "stage")
    return subject_of(now, corpus, objective, rows=5)


def scores_of(subject: Subject) -> Scores:
    (scores,) = Evaluation().evaluate(subject).scores.values()
    return scores


def test_its_values_are_those_of_the_scorer_and_of_the_start(subject: Subject) -> None:
    found = scores_of(subject)
    scorer = subject.objective.scorer()
    for batch in subject.batches("t"):
        scorer.add(subject.model, batch)
    told = scorer.compute()
    for name in ("accuracy", "reward_accuracy", "longer_accuracy"):
        score = found[name]
        assert score.value == pytest.approx(told[name]) and score.n == 12
        assert score.lo is not None and score.hi is not None and score.lo <= score.value <= score.hi
    gap = found["accuracy"].value - found["start_accuracy"].value
    assert found["accuracy_less_start"].value == pytest.approx(gap) and gap != 0


def test_a_reward_model_stands_beside_the_longer_answer_alone(subject: Subject, corpus: PreferenceCorpus) -> None:
    objective = Reward(corpus)
    subject.model.add_head(objective.head, 1)
    torch.nn.init.normal_(subject.model.heads[objective.head].weight)
    found = scores_of(subject_of(subject.model, corpus, objective, rows=5))
    assert found.keys() == {"accuracy", "longer_accuracy", "accuracy_less_longer"}
    scorer = objective.scorer()
    for batch in subject.batches("t"):
        scorer.add(subject.model, batch)
    assert found["accuracy"].value == pytest.approx(scorer.compute()["accuracy"])


def test_a_gain_on_every_pair_is_sure_and_a_coin_is_not() -> None:
    coin = np.tile([0.0, 1.0], 100)
    ones = np.ones(200)
    pairs = {"accuracy": coin, "reward_accuracy": ones, "start_accuracy": 1 - coin, "longer_accuracy": np.zeros(200)}
    found = pair_scores(pairs)
    assert found["reward_accuracy_less_longer"] == Score(1.0, 1.0, 1.0, 200)
    gain = found["accuracy_less_start"]
    assert gain.lo is not None and gain.hi is not None and gain.lo < 0 < gain.hi


def test_an_objective_without_pairs_is_refused(subject: Subject, corpus: PreferenceCorpus) -> None:
    with pytest.raises(ValueError, match="objective=CLM"):
        scores_of(subject_of(subject.model, corpus, CLM()))
