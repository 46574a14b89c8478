"""Scores are weighted sums over rewards by name; what a reward gets is text, and its mistakes name the prompt."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tables import folder

from kleiber.config.errors import ConfigError, RewardFailed
from kleiber.data.instruct import Instruct, InstructCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.objectives.answer_rewards import Answer, AnswerRewards, RewardModel, call_reward, find_reward
from kleiber.types.batch import Batch

verifiers = pytest.importorskip("kleiber_topics.rewards.verifiers")

ANSWERS = [Answer([256, *b"2+3="], [*b" 5 "], True), Answer([256, *b"2+3="], [*b"55555"], False)]
ROWS = [{"answer": "5"}] * 2


@pytest.fixture
def corpus(tmp_path, cache_dir) -> InstructCorpus:
    rows = [{"prompt": f"{i}", "response": "5"} for i in range(30)]
    return Instruct(folder(tmp_path / "t", train=rows, validation=rows[:3]), pack=False).prepare(64)


def test_scores_are_weighted_sums_of_rewards(corpus):
    both = AnswerRewards({"number": 2.0, "length": -1.0}, corpus)
    assert both.score(ANSWERS, ROWS) == pytest.approx([2 - 0.01, -0.05])
    assert AnswerRewards("number", corpus).score(ANSWERS, ROWS) == [1, 0]


def test_a_reward_gets_prompts_and_answers_as_text(corpus, monkeypatch):
    calls = []
    monkeypatch.setattr(verifiers, "length", lambda *arguments: calls.append(arguments) or [0, 0])
    AnswerRewards("length", corpus).score(ANSWERS, ROWS)
    assert calls == [(["2+3=", "2+3="], ["5", "55555"], ROWS)]


def test_the_verifier_is_that_of_the_data(corpus):
    with pytest.raises(ValueError, match="data=t names none"):
        find_reward("verifier", corpus)
    named = dataclasses.replace(corpus, verifier="number")
    assert find_reward("verifier", named) is verifiers.number
    with pytest.raises(ConfigError, match=r"objective\.reward=applause must be .*arithmetic"):
        find_reward("applause", corpus)


@pytest.mark.parametrize("scores", [[1.0], [1.0, "many"], None])
def test_scores_that_are_no_numbers_for_the_answers_are_an_error_with_the_prompt(scores):
    with pytest.raises(RewardFailed, match=r"objective\.reward=mine, prompt '2'"):
        call_reward("mine", lambda *_: scores, ["2", "3"], ["a", "b"], ROWS)


class Opened:
    def __init__(self, tokenizer: Bytes | None = None, heads: int = 1) -> None:
        torch.manual_seed(0)
        self.model, self.tokenizer = Transformer(272, depth=1, width=32, context=16), tokenizer or Bytes()
        for number in range(heads):
            self.model.add_head(f"head{number}", 1)
            torch.nn.init.normal_(self.model.heads[f"head{number}"].get_parameter("weight"))


def test_a_reward_model_scores_the_last_token_of_prompt_and_answer():
    opened = Opened()
    reward = RewardModel("RUN", lambda _: opened, Bytes())
    long = Answer([256, *b"2" * 30], [*b"5"], True)
    scores = reward.score([*ANSWERS, long])
    rows = [[256, *b"2+3= 5 ", 256], [256, *b"2+3=55555"], [256, *b"2" * 15]]
    for score, row in zip(scores, rows, strict=True):
        hidden = opened.model(Batch(torch.tensor([row]))).hidden
        assert score == pytest.approx(opened.model.heads["head0"](hidden[:, -1]).item(), abs=1e-5)


def test_a_model_that_cannot_score_is_refused():
    class Other(Bytes):
        hash = "other/2"

    with pytest.raises(ValueError, match=r"objective\.reward_path=RUN has the tokenizer other/2"):
        RewardModel("RUN", lambda _: Opened(Other()), Bytes())
    with pytest.raises(ValueError, match="must be a run of objective=reward"):
        RewardModel("RUN", lambda _: Opened(heads=0), Bytes())
