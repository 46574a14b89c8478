"""Group-relative policy optimization: the model writes answers to prompts, and learns from their rewards.

Each prompt has a group of answers, which are compared with each other, so there is no model of values. The reference is
the model as it was when the stage began; its weights are kept in the folder of the stage.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from kleiber.models.counting import forward_flops
from kleiber.objectives.answer_rewards import MODEL, Answer, AnswerRewards, Chosen, OpenedModel, RewardModel
from kleiber.objectives.auxiliary import loss_with_auxiliary
from kleiber.objectives.clm import CLM, read_tokens
from kleiber.objectives.policy_loss import Estimator, LossName, PolicyLoss, estimate_kl, sum_by
from kleiber.objectives.reference import start_weights
from kleiber.objectives.rollouts import (
    OLD,
    START,
    Question,
    answer_limit,
    frozen_log_probs,
    of_all_ranks,
    prompts_of,
    select_rows,
    tensors_of,
    to_batch,
    token_log_probs,
    write_answers,
)
from kleiber.types import Count, Json, NonNegative, Positive
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model, device_of
from kleiber.types.score import Metric, Metrics


class GRPO(CLM):
    """A policy gradient from groups of answers to one prompt (Shao et al. 2024, arXiv:2402.03300).

    The loss of held-out samples is the cross-entropy of their right answers; `evals=[reward]` scores written ones.
    The loss of a step is a mean over answers, and so are its metrics: "reward", "kl" from the start by `kl_estimator`
    and "entropy" of the policy by its answers (nats per answer and per token), "length" in tokens, and the shares "cut"
    of answers that reach the limit, "degenerate" of answers in groups of equal rewards, which teach nothing, and
    "clipped" of ratios.

    open_model    reads a model from its folder; the run supplies it
    run_seed      seed of the run, which supplies it
    reward        "verifier" of the data, "model", the name of a reward that a package offers, or weights by name
    reward_path   run of objective=reward, for "model"
    group         answers to each prompt
    tokens        most tokens of an answer; null: twice those of the longest right one, if the context has room
    loss, clip, kl, kl_estimator  see `PolicyLoss`
    epochs        optimizer steps that learn from the same answers
    """

    likelihood = False
    trains_future = False
    trains_answers = True
    couples_samples = True
    learning_rate_factor = 0.1
    default_epochs = 1.0
    answers: int = 8
    metrics: Metrics = MappingProxyType({"loss": Metric("loss of right answers", "lower", "nats per token")})

    def __init__(
        self,
        corpus: Corpus,
        open_model: Callable[[str], OpenedModel],
        run_seed: int = 0,
        reward: Chosen = "verifier",
        reward_path: str | None = None,
        group: Annotated[int, Ge(2), Le(4096)] = 8,
        tokens: Count | None = None,
        loss: LossName = "grpo",
        clip: Positive = 0.2,
        kl: NonNegative = 0.0,
        kl_estimator: Estimator = "k3",
        epochs: Annotated[int, Ge(1), Le(1000)] = 1,
    ) -> None:
        super().__init__()
        names = [reward] if isinstance(reward, str) else [*reward]
        if (MODEL in names) != (reward_path is not None) or not names:
            raise ValueError(
                f"objective.reward={reward} and objective.reward_path={reward_path} must go together: set "
                "objective.reward_path=RUN for objective.reward=model, and to nothing for other rewards"
            )
        _check_samples(corpus)
        self.corpus, self.open_model, self.seed, self.reward = corpus, open_model, run_seed, reward
        self.models = {} if reward_path is None else {"reward_path": reward_path}
        self.answers, self.passes, self.tokens = group, epochs, tokens
        self.loss: LossName = loss
        self.kl_estimator: Estimator = kl_estimator
        self.clip, self.kl = clip, kl
        self.start: Model | None = None
        self.rollouts: Batch | None = None  # the latest ones, of all ranks where further steps learn from them

    @cached_property
    def rewards(self) -> AnswerRewards:
        """The rewards. Raises ValueError for a name that none offers, and for a reward model that does not fit."""
        paths = self.models.values()
        opened = [RewardModel(path, self.open_model, self.corpus.tokenizer) for path in paths]
        return AnswerRewards(self.reward, self.corpus, *opened)

    def check(self, model: Model) -> None:
        """Raises ValueError for a bidirectional model, for rewards that do not fit, and for answers without room."""
        super().check(model)
        _ = self.rewards
        self.limit(model)

    def limit(self, model: Model) -> int:
        """Most tokens of an answer."""
        return answer_limit(self.corpus.train, model.context, self.tokens, "objective.tokens")

    @cached_property
    def policy_loss(self) -> PolicyLoss:
        """The loss of the answers."""
        assert self.start is not None, "a stage that has begun has its start"
        return PolicyLoss(self.loss, self.clip, self.kl, self.kl_estimator, self.limit(self.start))

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Keeps the model that the stage of `folder` began with as the reference."""
        self.rollouts = None  # of a process that goes back to a checkpoint
        if model is not None:
            self.start = copy.deepcopy(model).eval().requires_grad_(False)
            self.start.load_state_dict(start_weights(model, folder))

    def prepare_step(self, model: Model, batches: Sequence[Batch]) -> list[Batch]:
        """The answers to the prompts of each micro-batch, written now unless an earlier step of `epochs` did that."""
        prompts = prompts_of(batches, self.corpus.train)
        if self.rollouts is None or not prompts.keys() <= set(self._numbers(self.rollouts)):
            self.rollouts = None
            rows = self._roll_out(model, prompts, self.answers * max(map(len, batches)))
            self.rollouts = of_all_ranks(rows) if self.passes > 1 else rows
        places = {number: place for place, number in enumerate(self._numbers(self.rollouts))}
        group, parts = torch.arange(self.answers), []
        for batch in batches:
            assert batch.samples is not None
            begins = torch.tensor([places[int(number)] for number in batch.samples]) * self.answers
            chosen = (begins[:, None] + group).flatten().to(self.rollouts.tokens.device)
            parts.append(select_rows(self.rollouts, chosen).to(batch.tokens.device))
        return parts

    def _numbers(self, rollouts: Batch) -> list[int]:
        """The numbers of the samples, in the order of their groups."""
        assert rollouts.samples is not None
        return rollouts.samples[:: self.answers].tolist()

    @torch.no_grad()
    def _roll_out(self, model: Model, prompts: Mapping[int, Question], rows: int) -> Batch:
        """Rows of answers with what the loss needs of them in `labels` and `reference`; `rows` in a forward pass."""
        assert self.start is not None, "a stage that has begun has its start"
        tokenizer, device = self.corpus.tokenizer, device_of(model)
        texts = {number: question.prompt for number, question in prompts.items()}
        room = model.context + 1 - max(map(len, texts.values()))
        eager = torch.compiler.set_stance("force_eager")  # each length would need its own graph
        with eager:
            tokens = min(room, self.policy_loss.longest)
            answers = write_answers(model, texts, self.answers, tokens, tokenizer.eos, self.seed)
            columns = [question.columns(tokenizer) for question in prompts.values() for _ in range(self.answers)]
            rewards = torch.tensor(self.rewards.score(answers, columns), device=device, dtype=torch.float64)
            numbers = [number for number in prompts for _ in range(self.answers)]
            batch = to_batch(answers, numbers, tokenizer.eos, model.context + 1).to(device)
            start = frozen_log_probs(self.start.to(device), batch, rows)
            needs_old = self.passes > 1 or (self.kl > 0 and self.kl_estimator == "k1")
            old = frozen_log_probs(model, batch, rows) if needs_old else torch.zeros_like(start)
        return dataclasses.replace(
            batch, labels=self._labels(batch, answers, rewards, old, start), reference=torch.stack([old, start], 1)
        )

    def _labels(self, batch: Batch, answers: Sequence[Answer], rewards: Tensor, old: Tensor, start: Tensor) -> Tensor:
        """Advantage and reward of each answer, and whether it is cut, and in a group of equal rewards."""
        assert batch.weights is not None
        targets = batch.weights[:, 1:] > 0
        penalized = self.policy_loss.penalized(rewards, old[targets], start[targets], targets.nonzero()[:, 0])
        groups = rewards.view(-1, self.answers)
        equal = (groups == groups[:, :1]).all(1, keepdim=True).expand_as(groups).flatten()
        advantages = self.policy_loss.advantages(penalized.view_as(groups)).flatten()
        cut = torch.tensor([not answer.ended for answer in answers], device=rewards.device)
        return torch.stack([advantages, rewards, cut.to(rewards), equal.to(rewards)], 1).to(start.dtype)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """The loss of the rows of `prepare_step` as a sum over answers; else the cross-entropy of right answers."""
        if batch.reference is None or batch.labels is None:
            return super().__call__(model, batch)
        assert batch.weights is not None
        values, owner, output, rows = token_log_probs(model, batch)
        now, targets, count = values.detach(), batch.weights[:, 1:] > 0, len(batch)
        old = now if self.passes == 1 else batch.reference[:, OLD][targets].to(values)
        start = batch.reference[:, START][targets].to(values)
        advantages, reward, cut, degenerate = batch.labels.to(values).T
        losses, clipped = self.policy_loss(values, old, start, owner, advantages)
        lengths = sum_by(owner, torch.ones_like(now), count)
        metrics = {
            "ce": losses.detach().sum(),
            "reward": reward.sum(),
            "kl": estimate_kl(self.kl_estimator, now, start).sum(),
            "entropy": (sum_by(owner, -now, count) / lengths).sum(),
            "length": lengths.sum(),
            "cut": cut.sum(),
            "degenerate": degenerate.sum(),
            "clipped": clipped.sum(),
        }
        return loss_with_auxiliary(losses.sum(), count, metrics, output, rows, batch.auxiliary_ratio)

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[int | Tensor, int | Tensor] | None:
        """Numbers of answers, and of tokens in their rows."""
        return super().auxiliary_counts(model, batch) if batch.labels is None else (len(batch), read_tokens(batch))

    def targets(self, model: Model, batch: Batch) -> float | Tensor:
        """Number of answers, or of the targets of rows that the model has not written."""
        return super().targets(model, batch) if batch.labels is None else len(batch)

    def forward_only_flops(self, model: Model, time: int) -> float:
        """Those of writing answers, and of their log-probabilities under the start and the policy that wrote them."""
        passes = 2 + (self.passes > 1 or (self.kl > 0 and self.kl_estimator == "k1"))
        return passes * forward_flops(model, time) / self.passes

    def state(self) -> Json:
        """The latest rollouts, if further steps learn from them."""
        return {} if self.rollouts is None or self.passes == 1 else {"rollouts": tensors_of(self.rollouts)}

    def restore(self, state: Json) -> None:
        self.rollouts = Batch(**state["rollouts"])


def _check_samples(corpus: Corpus) -> None:
    """Raises ValueError for data without prompts, or with several in a row."""
    row = corpus.train.gather(np.arange(1))
    if row.weights is None or not corpus.train.random_access:
        raise ValueError(
            f"objective=grpo needs prompts, and data={corpus.name} has none: set data=verifiable/arithmetic"
        )
    if row.segments is not None:
        raise ValueError(
            f"objective=grpo needs one prompt in a row, and data={corpus.name} has several: set data.pack=false"
        )
