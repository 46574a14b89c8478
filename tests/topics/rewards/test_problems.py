"""Problems have right answers, no held-out problem is trained on, and arithmetic is that of data=arithmetic."""

from __future__ import annotations

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.targets import build
from kleiber.data.instruct import PackedConversations
from kleiber.data.tokenizers import Bytes
from kleiber.objectives.answer_rewards import AnswerRewards, find_reward
from kleiber.objectives.rollouts import questions_of
from kleiber_topics.rewards.problems import Countdown, Sorting


@pytest.mark.parametrize("data", [Sorting(problems=80, held_out=20), Countdown(problems=80, held_out=20)])
def test_right_answers_score_1_and_held_out_prompts_are_new(data):
    corpus = data.prepare(64)
    (held_out,) = corpus.validation.values()
    rewards, texts = AnswerRewards("verifier", corpus), []
    for samples in (corpus.train, held_out):
        questions = questions_of(samples)
        rows = [question.columns(corpus.tokenizer) for question in questions]
        answers = [corpus.tokenizer.decode(question.right) for question in questions]
        assert find_reward("verifier", corpus)([], answers, rows) == [1.0] * len(rows)
        assert sum(find_reward("verifier", corpus)([], [answers[-1]] * len(rows), rows)) < len(rows) / 4
        texts.append({row["prompt"] for row in rows})
        assert len(texts[-1]) == len(rows) == len(samples)
    assert not texts[0] & texts[1] and len(texts[1]) == 20 and rewards.weights == {"verifier": 1.0}


def test_keys_change_the_problems_and_long_ones_are_refused():
    few = Sorting(problems=10, held_out=4, lengths=[2], largest=9).prepare(64)
    assert few.hash != Sorting(problems=10, held_out=4, lengths=[2], largest=8).prepare(64).hash
    rows = [question.columns(Bytes()) for question in questions_of(few.train)]
    assert all(len(row["numbers"]) == 2 and max(row["numbers"]) <= 9 for row in rows)
    packed = Sorting(problems=10, held_out=4, pack=True).prepare(64).train
    assert isinstance(packed, PackedConversations)
    with pytest.raises(ValueError, match=r"model\.context"):
        Sorting(problems=10).prepare(8)
    assert len(Sorting(problems=1000, held_out=4, max_bytes=600).prepare(64).train) < 60


def test_verifiable_arithmetic_has_the_prompts_digits_and_tokenizer_of_arithmetic(cache_dir):
    texts = []
    for choice in ("arithmetic", "verifiable/arithmetic"):
        config, _ = resolve_config(Composer("train").compose([f"data={choice}", "data.problems=50"]))
        corpus = build(config["data"]).prepare(32)
        rows = corpus.train.samples if choice == "arithmetic" else corpus.train
        texts.append([rows.question(i) for i in range(len(rows))])
        names = [*corpus.validation]
        assert names == ["digits1", "digits2", "digits3", "digits4"] and corpus.tokenizer.hash == "bytes/1"
    assert texts[0] == texts[1] and corpus.verifier == "arithmetic"
