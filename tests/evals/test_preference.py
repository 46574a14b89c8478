"""Preferences with intervals: the scorer's own means, and a bootstrap that knows a sure gain from none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tables import folder

from kleiber.data.preference import Preference
from kleiber.evals import Subject
from kleiber.evals.preference import bootstrap_mean, evaluate, summarize_pairs
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.objectives.dpo import DPO
from kleiber.objectives.reward import Reward


@pytest.fixture
def subject(tmp_path: Path, monkeypatch) -> Subject:
    """A model that was another one when its stage began."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    words = ["".join(row) for row in np.random.default_rng(0).choice(list("abcdefgh"), (24, 6))]
    table = [{"prompt": f"{i}", "chosen": words[i], "rejected": words[12 + i]} for i in range(12)]
    corpus = Preference(folder(tmp_path / "t", train=table, validation=table)).prepare(64)
    torch.manual_seed(0)
    start, now = (Transformer(272, depth=2, width=32, context=64) for _ in range(2))
    objective = DPO(corpus)
    objective.begin(start, corpus, tmp_path / "stage")
    return Subject(now, corpus, objective, rows=5)


def test_its_values_are_those_of_the_scorer_and_of_the_start(subject: Subject) -> None:
    (found,) = evaluate(subject).values()
    scorer = subject.objective.scorer()  # pyright: ignore[reportAttributeAccessIssue]
    for batch in subject.batches("t"):
        scorer.add(subject.model, batch)
    told = scorer.compute()
    for name in ("accuracy", "reward_accuracy", "longer_accuracy"):
        assert found[name]["value"] == pytest.approx(told[name])
        assert found[name]["lo"] <= found[name]["value"] <= found[name]["hi"]
    assert found["pairs"] == 12
    gap = found["accuracy"]["value"] - found["start_accuracy"]["value"]
    assert found["accuracy_less_start"]["value"] == pytest.approx(gap) and gap != 0


def test_a_reward_model_stands_beside_the_longer_answer_alone(subject: Subject) -> None:
    objective = Reward(subject.corpus)
    subject.model.add_head(objective.head, 1)
    torch.nn.init.normal_(subject.model.heads[objective.head].weight)
    (found,) = evaluate(Subject(subject.model, subject.corpus, objective, rows=5)).values()
    assert found.keys() == {"pairs", "accuracy", "longer_accuracy", "accuracy_less_longer"}
    scorer = objective.scorer()
    for batch in subject.batches("t"):
        scorer.add(subject.model, batch)
    assert found["accuracy"]["value"] == pytest.approx(scorer.compute()["accuracy"])


def test_a_gain_on_every_pair_is_sure_and_a_coin_is_not() -> None:
    coin = np.tile([0.0, 1.0], 100)
    ones = np.ones(200)
    pairs = {"accuracy": coin, "reward_accuracy": ones, "start_accuracy": 1 - coin, "longer_accuracy": np.zeros(200)}
    found = summarize_pairs(pairs)
    assert found["reward_accuracy_less_longer"] == {"value": 1.0, "lo": 1.0, "hi": 1.0}
    assert found["accuracy_less_start"]["lo"] < 0 < found["accuracy_less_start"]["hi"]


def test_the_interval_of_a_coin_is_that_of_the_binomial() -> None:
    found = bootstrap_mean(np.tile([0.0, 1.0], 200))
    assert (found["hi"] - found["lo"]) / 2 == pytest.approx(1.645 * 0.5 / np.sqrt(400), rel=0.1)


def test_resamples_of_many_pairs_are_not_held_at_once(monkeypatch) -> None:
    values, held = np.tile([0.0, 1.0], 1000), []
    whole, mean = bootstrap_mean(values), np.mean
    monkeypatch.setattr(np, "mean", lambda rows, axis=None: (held.append(rows.size), mean(rows, axis=axis))[1])
    found = bootstrap_mean(values)
    assert max(held) <= 2**20 and found == whole


def test_an_objective_without_pairs_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="objective=CLM"):
        evaluate(Subject(subject.model, subject.corpus, CLM()))
