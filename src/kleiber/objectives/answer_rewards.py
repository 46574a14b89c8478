"""The rewards of `objective.reward`: verifiers and programs that packages offer, and trained reward models.

A package offers rewards by name in the literal REWARDS of its `__init__.py`, as REWARDS = {"sorting":
"verifiers.sorting"}; `objective.reward` and `evals.reward.reward` name them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from annotated_types import Ge, Le
from torch import Tensor

from kleiber.config.errors import RewardFailed
from kleiber.config.extensions import import_offer, offers
from kleiber.data.batches import pad
from kleiber.data.instruct import InstructCorpus
from kleiber.data.prompts import answer_text
from kleiber.objectives.classify import pool
from kleiber.types import Row
from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model, device_of
from kleiber.types.tokenizer import Tokenizer

VERIFIER, MODEL = "verifier", "model"
KIND = "REWARDS"  # of the offers of packages
Chosen = str | Mapping[str, Annotated[float, Ge(-1000), Le(1000)]]  # a name, or weights by name
Ids = Sequence[int]
MODEL_ROWS = 64  # scored at once by a reward model


class Reward(Protocol):
    """Scores answers; a function is one. A verifier gives 1 to a right answer, and less to another one."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> Sequence[float]:
        """Returns a finite score for each answer.

        prompts  text that each answer follows
        answers  text without white space around it
        rows     columns of the data for each answer, with a right answer as `answer`
        """
        ...


class OpenedModel(Protocol):
    """A model that was read from a folder, with its tokenizer."""

    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True)
class Answer:
    """An answer of the policy: its token ids without end-of-text token, and whether it has that token."""

    prompt: Ids
    ids: Ids
    ended: bool


class AnswerRewards:
    """The weighted sum of one or several rewards.

    chosen  name of a reward, or weights by name: "verifier" is that of the data, "model" the reward model, and others
            are offered by packages
    model   the reward model, if it is chosen
    """

    def __init__(self, chosen: Chosen, corpus: Corpus, model: RewardModel | None = None) -> None:
        self.weights = {chosen: 1.0} if isinstance(chosen, str) else dict(chosen)
        self.tokenizer, self.model = corpus.tokenizer, model
        self.programs = {name: find_reward(name, corpus) for name in self.weights if name != MODEL}

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> list[float]:
        """Returns the score of each answer. Raises RewardFailed, which names the prompt, where a reward has none."""
        prompts = [self.tokenizer.decode([*answer.prompt]) for answer in answers]
        texts = [answer_text(self.tokenizer, [*answer.prompt], [*answer.ids]) for answer in answers]
        totals = [0.0] * len(answers)
        for name, weight in self.weights.items():
            if name == MODEL:
                assert self.model is not None, "a reward model is opened where it is chosen"
                scores = self.model.score(answers)
            else:
                scores = call_reward(name, self.programs[name], prompts, texts, rows)
            for i, score in enumerate(scores):
                if not math.isfinite(score):
                    raise failure(name, prompts[i], f"the score of the answer {texts[i]!r} is {score}")
                totals[i] += weight * score
        return totals


def find_reward(name: str, corpus: Corpus) -> Reward:
    """Returns the reward of a name. Raises ValueError for data without a verifier, and for a name that none offers."""
    if name == VERIFIER:
        verifier = corpus.verifier if isinstance(corpus, InstructCorpus) else None
        if verifier is None:
            raise ValueError(
                f"objective.reward=verifier needs data with a verifier, and data={corpus.name} names none: set "
                f"data=verifiable/arithmetic, or objective.reward={{NAME: 1}} with a name of {', '.join(offers(KIND))}"
            )
        name = verifier
    return import_offer(KIND, name, f"objective.reward={name}")  # type: ignore[return-value]


def call_reward(
    name: str, reward: Reward, prompts: Sequence[str], texts: Sequence[str], rows: Sequence[Row]
) -> list[float]:
    """Returns the scores of a reward. Raises RewardFailed where it raises, or returns another number of scores."""
    try:
        scores = [float(score) for score in reward(prompts, texts, rows)]
    except Exception as error:
        raise failure(name, prompts[0], f"{type(error).__name__}: {error}") from error
    if len(scores) != len(texts):
        raise failure(name, prompts[0], f"it returned {len(scores)} scores for {len(texts)} answers")
    return scores


def failure(name: str, prompt: str, reason: str) -> RewardFailed:
    """The error of a reward that cannot score the answers of a batch whose first prompt, or this one, is `prompt`."""
    return RewardFailed(f"objective.reward={name}, prompt {prompt[:80]!r}: {reason}: correct the reward")


class RewardModel:
    """A model of objective=reward, which scores the hidden state of the last token of prompt and answer.

    Opened on first use; raises ValueError where it cannot be opened, has no such output layer, or another tokenizer.
    """

    def __init__(self, path: str, open_model: Callable[[str], OpenedModel], tokenizer: Tokenizer) -> None:
        try:
            opened = open_model(path)
        except ValueError as error:
            raise ValueError(f"objective.reward_path: {error}") from None
        if opened.tokenizer.hash.rpartition("/")[2] != tokenizer.hash.rpartition("/")[2]:
            raise ValueError(
                f"objective.reward_path={path} has the tokenizer {opened.tokenizer.hash}, and the data has "
                f"{tokenizer.hash}: set data.tokenizer to the tokenizer of the reward model"
            )
        heads = [head for name, head in opened.model.heads.items() if len(head.get_parameter("weight")) == 1]
        if len(heads) != 1:
            raise ValueError(
                f"objective.reward_path={path} must be a run of objective=reward, and has no output for it"
            )
        self.model, self.head, self.eos = opened.model.requires_grad_(False).eval(), heads[0], tokenizer.eos

    @torch.no_grad()
    def score(self, answers: Sequence[Answer]) -> list[float]:
        """Returns the score of each answer, read up to the context of the reward model."""
        rows = [[*a.prompt, *a.ids, *([self.eos] if a.ended else [])][: self.model.context] for a in answers]
        return [value for i in range(0, len(rows), MODEL_ROWS) for value in self._scores(rows[i : i + MODEL_ROWS])]

    def _scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import numpy as np

        tokens, real = pad([np.array(row) for row in rows], self.model.context, self.eos)
        batch = Batch(tokens, real).to(device_of(self.model))
        pooled: Tensor = pool(self.model(batch).hidden, batch.real, "last")
        return self.head(pooled)[:, 0].double().tolist()
