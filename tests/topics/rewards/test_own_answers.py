"""Answers of a model are data: a planted model writes right and wrong ones, and the verifier sorts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from evals.planted import planted

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.data.tokenizers import Bytes
from kleiber.objectives.answer_rewards import Answer
from kleiber.objectives.rollouts import questions_of
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer
from kleiber_topics.rewards import own_answers
from kleiber_topics.rewards.own_answers import AnswerPairs, RightAnswers
from kleiber_topics.rewards.problems import Sorting

PROBLEMS = Sorting(problems=12, held_out=4, lengths=[2])


@dataclass
class Opened:
    """A model that other functions stand in for."""

    model: Model = field(default_factory=lambda: planted(a=0.5))
    tokenizer: Tokenizer = field(default_factory=Bytes)


OPENED = Opened()


@pytest.fixture(autouse=True)
def answers(cache, monkeypatch):
    """The model answers the first prompt wrong, others right and wrong, one of both twice, and once without end."""
    calls = []

    def write(model, prompts, group, tokens, eos, seed):
        calls.append(seed)
        written = []
        for number, prompt in prompts.items():
            words = bytes(token for token in prompt if token != eos).decode().rstrip("=").split()
            right = " ".join(sorted(words, key=int)).encode()
            texts = [b"?", b"!", b"!", b"!"] if number == 0 else [right, b"?", right, b"?"]
            written += [Answer(prompt, [*text], True) for text in texts[: group - 1]]
            written.append(Answer(prompt, [*right], False))
        return written

    monkeypatch.setattr(own_answers, "write_answers", write)
    return calls


def texts(samples) -> list[tuple[str, str]]:
    return [
        (Bytes().decode(question.prompt), Bytes().decode([token for token in question.right if token != Bytes.eos]))
        for question in questions_of(samples)
    ]


def test_training_samples_are_the_different_right_answers_and_validation_is_that_of_the_problems():
    plain, corpus = PROBLEMS.prepare(32), RightAnswers(lambda _: OPENED, "m", PROBLEMS, samples=4).prepare(32)
    written = dict(texts(corpus.train))
    assert len(corpus.train) == len(written) == len(plain.train) - 1
    assert all(answer == dict(texts(plain.train))[prompt] for prompt, answer in written.items())
    assert texts(corpus.validation["sorting"]) == texts(plain.validation["sorting"])
    assert corpus.verifier == "sorting" and corpus.hash != plain.hash
    weights = corpus.train.gather(np.arange(1)).weights
    assert weights is not None and (weights[0] > 0).sum() == len(texts(corpus.train)[0][1]) + 1  # with its end


def test_pairs_are_a_right_and_a_wrong_answer_and_held_out_prompts_those_of_the_problems():
    plain, corpus = PROBLEMS.prepare(32), AnswerPairs(lambda _: OPENED, "m", PROBLEMS, samples=4).prepare(32)
    assert len(corpus.train) == len(plain.train) - 1
    other = corpus.train.gather(np.arange(3)).counterpart
    assert other is not None and other.weights is not None
    for i in range(3):
        marks = other.weights[i] > 0
        assert bytes(other.tokens[i][marks].tolist()[:-1]) == b"?"
    assert dict(texts(corpus.validation["sorting"])) == dict(texts(plain.validation["sorting"]))


def test_answers_are_written_once_for_both_kinds_and_anew_for_another_seed(answers):
    RightAnswers(lambda _: OPENED, "m", PROBLEMS, samples=4).prepare(32)
    AnswerPairs(lambda _: OPENED, "m", PROBLEMS, samples=4).prepare(32)
    assert len(answers) == 2  # training prompts, and held-out ones of the pairs
    RightAnswers(lambda _: OPENED, "m", PROBLEMS, samples=4, seed=1).prepare(32)
    assert answers[2:] == [1]
    few = RightAnswers(lambda _: OPENED, "m", PROBLEMS, samples=4, max_bytes=30).prepare(32)
    assert len(few.train) < 4


def test_a_model_that_is_never_right_or_has_another_tokenizer_is_refused():
    with pytest.raises(ValueError, match=r"data\.model=m answers none of 1 prompts right"):
        RightAnswers(lambda _: OPENED, "m", PROBLEMS, prompts=1, samples=3).prepare(32)
    with pytest.raises(ValueError, match=r"data\.model=m answers none of 1 prompts both"):
        AnswerPairs(lambda _: OPENED, "m", PROBLEMS, prompts=1, samples=3).prepare(32)
    other = Opened(tokenizer=SimpleNamespace(hash="bpe/2"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokenizer"):
        RightAnswers(lambda _: other, "m", PROBLEMS).prepare(32)


@pytest.mark.parametrize("choice", ["answers/right", "answers/pairs"])
def test_choices_name_their_classes(choice):
    config, _ = resolve_config(Composer("train").compose([f"data={choice}", "data.model=m"]))
    kinds = {"answers/right": "RightAnswers", "answers/pairs": "AnswerPairs"}
    assert config["data"]["_target_"] == f"kleiber_topics.rewards.{kinds[choice]}"


def test_the_base_of_the_study_composes_and_passes_the_check():
    config, _ = resolve_config(Composer("train").compose(["experiment=sums_and_words"]))
    check(config)
    assert list(config["stages"]["chain"]) == ["words", "sums"]
