"""The score of a reward model for what a policy writes, and how far the policy has moved to get it."""

from __future__ import annotations

from typing import ClassVar

import torch

from kleiber.config import local_copy
from kleiber.data import DataSet
from kleiber.evals import Evaluation, Results, Subject, mean_score
from kleiber.objectives import (
    RewardModel,
    answer_limit,
    frozen_log_probs,
    questions_of,
    to_batch,
    write_answers,
)
from kleiber.runs import TrainedModel, open_model
from kleiber.types import Count, Metric, Metrics, Scores, Seed, device_of

ROWS = 256  # answers in a forward pass
KEY = "evals.proxy_reward"


class ProxyReward(Evaluation):
    """Scores of a reward model for answers to held-out prompts, and KL(policy || start) of the same answers.

    The reward model is a proxy of what was wanted. As the divergence grows, its score keeps rising after the true
    preference has turned (Gao et al. 2022, arXiv:2210.10760). The policy writes answers y, and the mean of
    log policy(y) - log start(y) estimates the divergence without bias.

    reward_path  run of objective=reward
    start        RUN or RUN/STAGE that the policy started from
    samples      answers to each prompt, sampled at temperature 1
    tokens       most tokens of an answer; null: twice those of the longest right one, if the context has room
    limit        most prompts of a data set; null: all
    seed         of the answers
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "score": Metric("score of the reward model", "higher"),
        "kl": Metric("divergence from the start", "lower", "nats per answer"),
    }
    reads = "prompts with answers, such as those of data=judged"

    def __init__(
        self,
        reward_path: str,
        start: str,
        samples: Count = 2,
        tokens: Count | None = None,
        limit: Count | None = 200,
        seed: Seed = 0,
    ) -> None:
        self.reward_path, self.start, self.seed = reward_path, start, seed
        self.samples, self.tokens, self.limit = samples, tokens, limit
        self.opened: tuple[RewardModel, TrainedModel] | None = None

    def accepts(self, data: DataSet) -> bool:
        """Only the data of the run."""
        return data.of_run

    def evaluate(self, subject: Subject) -> Results:
        """The scores on each data set. Raises ValueError, which names the key, for a model that cannot be used."""
        self.opened = self.opened or self._open(subject)
        rewards, start = self.opened
        scores: dict[str, Scores] = {}
        for domain in subject.domains:
            held_out, eos = subject.samples(domain, subject.tokens), subject.tokenizer.eos
            questions = questions_of(held_out, self.limit)
            tokens = answer_limit(held_out, subject.model.context, self.tokens, f"{KEY}.tokens")
            prompts = {number: question.prompt for number, question in enumerate(questions)}
            answers = write_answers(subject.model, prompts, self.samples, tokens, eos, self.seed)
            numbers = [number for number in prompts for _ in range(self.samples)]
            batch = to_batch(answers, numbers, eos, subject.model.context + 1).to(device_of(subject.model))
            now, before = (
                frozen_log_probs(model, batch, ROWS).sum(1).double().cpu() for model in (subject.model, start.model)
            )
            by_prompt = torch.stack([torch.tensor(rewards.score(answers)).double(), now - before]).view(
                2, -1, self.samples
            )
            score, kl = by_prompt.mean(2).numpy()
            scores[domain] = {"score": mean_score(score), "kl": mean_score(kl)}
        return Results(scores)

    def _open(self, subject: Subject) -> tuple[RewardModel, TrainedModel]:
        """The reward model and the start, on the device of the subject."""
        device = device_of(subject.model)
        try:
            start = open_model(local_copy(self.start) or self.start)
        except ValueError as error:
            raise ValueError(f"{KEY}.start: {error}") from None
        try:
            path = str(local_copy(self.reward_path) or self.reward_path)
            rewards = RewardModel(path, open_model, subject.tokenizer)
        except ValueError as error:
            raise ValueError(str(error).replace("objective.reward_path", f"{KEY}.reward_path")) from None
        start.model.to(device)
        rewards.model.to(device)
        return rewards, start
