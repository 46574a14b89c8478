"""A reward model's score of answers and their divergence from the start are those of planted models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from evals.planted import planted, subject
from torch import nn

from kleiber.config.compose import Composer, resolve_config
from kleiber.data.evaluation_sets import DataSet
from kleiber_topics.rewards import proxy_reward
from kleiber_topics.rewards.problems import Sorting
from kleiber_topics.rewards.proxy_reward import ProxyReward

TOKENS = 6  # of each answer: no planted model ends one


class ShareOfA:
    """A reward model that scores the share of the letter a."""

    def __init__(self, path, open_model, tokenizer) -> None:
        self.path, self.model = path, nn.Module()

    def score(self, answers):
        return [answer.ids.count(ord("a")) / len(answer.ids) for answer in answers]


@pytest.fixture
def measure(cache, monkeypatch):
    """Scores of a policy whose start writes a and b equally often."""
    opened = []

    def open_model(path):
        opened.append(path)
        return SimpleNamespace(model=planted(a=0.5, b=0.5 - 1e-9))

    monkeypatch.setattr(proxy_reward, "open_model", open_model)
    monkeypatch.setattr(proxy_reward, "RewardModel", ShareOfA)
    corpus = Sorting(problems=20, held_out=12, lengths=[2], largest=9).prepare(23)
    data = [DataSet(name, lambda rows=rows: rows, of_run=True) for name, rows in corpus.validation.items()]
    evaluation = ProxyReward("taste", "writer", samples=128, tokens=TOKENS)

    def scores(policy):
        (found,) = evaluation.evaluate(subject(policy, data)).scores.values()
        return found, opened

    return scores


def test_the_start_has_no_divergence_and_a_policy_that_of_its_own_answers(measure):
    still, _ = measure(planted(a=0.5, b=0.5 - 1e-9))
    assert still["kl"].value == pytest.approx(0, abs=1e-5)
    assert still["score"].value == pytest.approx(0.5, abs=0.05)
    moved, opened = measure(planted(a=0.8, b=0.2 - 1e-9))
    exact = TOKENS * (0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5))
    assert moved["kl"].value == pytest.approx(exact, abs=0.1) and moved["score"].value == pytest.approx(0.8, abs=0.03)
    assert all(score.lo < score.value < score.hi for score in moved.values())
    assert opened == ["writer"]  # once


@pytest.mark.parametrize(("broken", "key"), [("open_model", "start: writer"), ("RewardModel", "reward_path=taste")])
def test_a_model_that_cannot_be_used_is_refused_by_its_key(measure, monkeypatch, broken, key):
    def refuse(path, *_):
        raise ValueError(f"{path} is no run" if broken == "open_model" else f"objective.reward_path={path} is no run")

    monkeypatch.setattr(proxy_reward, broken, refuse)
    with pytest.raises(ValueError, match=rf"evals\.proxy_reward\.{key} is no run"):
        measure(planted(a=0.5))


def test_the_choice_names_its_class():
    chosen = ["evals=[proxy_reward]", "evals.proxy_reward.start=m", "evals.proxy_reward.reward_path=r"]
    config, _ = resolve_config(Composer("train").compose(chosen))
    assert config["evals"]["proxy_reward"]["_target_"] == "kleiber_topics.rewards.ProxyReward"
