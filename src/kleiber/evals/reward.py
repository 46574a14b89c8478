"""Rewards of answers that a model samples to held-out prompts, as the data's verifier scores them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from kleiber.evals.evaluation import Evaluation, Results, Subject, mean_score, proportion_score
from kleiber.models.generation import continuations
from kleiber.objectives.answer_rewards import VERIFIER, Answer, AnswerRewards, Chosen
from kleiber.objectives.rollouts import Question, answer_limit, questions_of, write_answers
from kleiber.types import Count, Seed
from kleiber.types.contracts import HeldOut
from kleiber.types.score import Metric, Metrics, Scores

log = logging.getLogger(__name__)

RIGHT = 1.0  # score of a right answer, up to rounding


class Reward(Evaluation):
    """Rewards of sampled answers and of greedy ones, for a run whose data has prompts.

    mean       mean score of answers that are sampled at temperature 1
    pass_at_1  share of the sampled answers that are right, which is a score of 1 or more
    pass_at_k  share of the prompts with a right answer among `samples`
    greedy     mean score of the most probable answers

    The intervals are over prompts. Where there are several data sets, `all` has the scores of all their prompts.

    reward   name of a reward, or weights by name, as objective.reward; "verifier": that of the data
    samples  answers to each prompt
    tokens   most tokens of an answer; null: twice those of the longest right one, if the context has room
    limit    most prompts of a data set; null: all
    seed     of the answers
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "mean": Metric("reward", "higher"),
        "pass_at_1": Metric("share of right answers", "higher"),
        "pass_at_k": Metric("share of prompts with a right answer", "higher"),
        "greedy": Metric("reward of greedy answers", "higher"),
    }
    data_labels: ClassVar[Mapping[str, str]] = {"all": "all data sets"}
    reads = "prompts with right answers, such as those of data=verifiable/arithmetic"

    def __init__(
        self,
        reward: Chosen = VERIFIER,
        samples: Count = 8,
        tokens: Count | None = None,
        limit: Count | None = 200,
        seed: Seed = 0,
    ) -> None:
        self.reward, self.samples, self.tokens, self.limit, self.seed = reward, samples, tokens, limit, seed
        self.trained: set[tuple[int, ...]] | None = None  # prompts of training, of which a run has the same

    def evaluate(self, subject: Subject) -> Results:
        """The scores on each data set. Raises ValueError for data without prompts or without the reward."""
        if subject.corpus is None:
            raise ValueError(f"--evals reward needs a run whose data has {self.reads}")
        rewards = AnswerRewards(self.reward, subject.corpus)
        if self.trained is None and subject.train is not None:
            self.trained = {tuple(question.prompt) for question in questions_of(subject.train)}
        sampled: dict[str, Float[np.ndarray, "prompts samples"]] = {}
        greedy: dict[str, Float[np.ndarray, "_"]] = {}
        for domain in subject.domains:
            held_out = subject.samples(domain, subject.tokens)
            questions = questions_of(held_out, self.limit if subject.limit is None else subject.limit)
            shared = sum(tuple(question.prompt) in (self.trained or ()) for question in questions)
            if shared:
                log.warning("evals=reward: %d of %d prompts of %s are training prompts", shared, len(questions), domain)
            sampled[domain], greedy[domain] = self._score(subject, held_out, questions, rewards)
        if len(sampled) > 1:
            sampled["all"], greedy["all"] = (np.concatenate([*parts.values()]) for parts in (sampled, greedy))
        return Results({domain: scores_of(sampled[domain], greedy[domain]) for domain in sampled})

    def _score(
        self, subject: Subject, held_out: HeldOut, questions: Sequence[Question], rewards: AnswerRewards
    ) -> tuple[Float[np.ndarray, "prompts samples"], Float[np.ndarray, "_"]]:
        """Scores of the sampled answers and of the most probable one to each question."""
        model, eos = subject.model, subject.tokenizer.eos
        tokens = answer_limit(held_out, model.context, self.tokens, "evals.reward.tokens")
        prompts = dict(enumerate(question.prompt for question in questions))
        answers = write_answers(model, prompts, self.samples, tokens, eos, self.seed)
        rows = [question.columns(subject.tokenizer) for question in questions]
        scores = rewards.score(answers, [row for row in rows for _ in range(self.samples)])
        best = continuations(model, [*prompts.values()], tokens, eos, label="answering greedily")
        ended = [Answer(prompts[i], ids, len(ids) < tokens) for i, ids in enumerate(best)]
        return np.array(scores).reshape(-1, self.samples), np.array(rewards.score(ended, rows))


def scores_of(sampled: Float[np.ndarray, "prompts samples"], greedy: Float[np.ndarray, "_"]) -> Scores:
    """The metrics of `Reward`."""
    right = sampled >= RIGHT - 1e-6
    return {
        "mean": mean_score(sampled.mean(1)),
        "pass_at_1": mean_score(right.mean(1)),
        "pass_at_k": proportion_score(right.max(1)),
        "greedy": mean_score(greedy),
    }
