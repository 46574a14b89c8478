"""Reward modeling: scores whole answers, and learns from which of two answers was preferred.

One forward pass reads both answers of a pair. An output layer for this task scores the hidden state of the last token.
There is no reference model.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kleiber.data.preference import PreferenceCorpus
from kleiber.nn.heads import head_name
from kleiber.objectives.auxiliary import loss_with_auxiliary, real_tokens
from kleiber.objectives.classify import pool
from kleiber.objectives.dpo import stack_pairs, wins
from kleiber.objectives.sample_table import SampleTable
from kleiber.types import NonNegative
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus, Objective, Scorer
from kleiber.types.model import Model
from kleiber.types.score import Metric, Metrics


class Reward(Objective):
    """-log sigmoid(r(c) - r(r)) for answers c preferred to r, summed over pairs, r(x) = head(hidden of the last token).

    Every pair has weight 1. The loss begins at ln 2, because the head begins at 0. Ouyang et al. 2022,
    arXiv:2203.02155, eq. 1, with two answers per prompt. A row of model.context + 1 tokens is read without its last.

    center  weight of (r(c) + r(r))^2, which keeps rewards around 0 (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2;
            0.01 is usual); without it the level of the rewards is arbitrary. It is part of the trained loss but not of
            the metric "ce"
    """

    metric = "accuracy"
    metrics: ClassVar[Metrics] = {
        "loss": Metric("loss", "lower", "nats per pair"),
        "accuracy": Metric("accuracy of preferences", "higher"),
        "longer_accuracy": Metric("accuracy of choosing the longer answer", "none"),
        "margin": Metric("reward margin", "higher"),
    }
    default_epochs = 3.0
    compares_answers = True

    def __init__(self, corpus: Corpus, center: NonNegative = 0.0) -> None:
        if not isinstance(corpus, PreferenceCorpus):
            raise ValueError(
                f"objective=reward needs pairs of answers, and data={corpus.name} has none: set data=preference"
            )
        self.center = center
        self.head = head_name(corpus.name, "reward")
        self.outputs = {self.head: 1}

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.score_pairs(model, batch)[1]

    def score_pairs(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "pairs 2"], Loss]:
        """The rewards of the chosen and the rejected answer of each pair, in fp32 or fp64, and their loss.

        Metrics: "ce" is the loss without centering, "accuracy" the share of pairs with r(c) > r(r) (1/2 for ties),
        "margin" the difference r(c) - r(r).
        """
        rows = self._rows(model, batch)
        output = model(rows)
        scores = model.heads[self.head](pool(output.hidden, rows.real, "last"))
        rewards = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(2, -1).T
        margin = rewards[:, 0] - rewards[:, 1]
        ranking = -F.logsigmoid(margin).sum()
        total = ranking + self.center * rewards.sum(1).square().sum() if self.center else ranking
        with torch.no_grad():
            metrics = {
                "ce": ranking.detach(),
                "accuracy": wins(margin).sum(),
                "margin": margin.sum(),
                "reward_chosen": rewards[:, 0].sum(),
                "reward_rejected": rewards[:, 1].sum(),
            }
        return rewards, loss_with_auxiliary(total, len(batch), metrics, output, rows, batch.auxiliary_ratio)

    def _rows(self, model: Model, batch: Batch) -> Batch:
        """The chosen rows of a batch, then the rejected ones, each cut to the context."""
        if batch.counterpart is None:
            raise ValueError("objective=reward needs pairs of answers, and this batch has none: set data=preference")
        stacked = stack_pairs(batch, batch.counterpart)
        stacked = stacked.columns(model.context)
        return Batch(tokens=stacked.tokens, real=stacked.real, samples=stacked.samples)

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[int, int | Tensor]:
        """Numbers of pairs, and of tokens in their rows."""
        return len(batch), real_tokens(self._rows(model, batch))

    def scorer(self) -> RewardScorer:
        return RewardScorer(self)


class RewardScorer(Scorer):
    """Metrics of held-out pairs.

    accuracy         share of pairs with r(c) > r(r)
    longer_accuracy  share in which the chosen answer is the longer one: what a baseline by length scores
    margin           mean r(c) - r(r)

    Ties count 1/2.
    """

    def __init__(self, objective: Reward) -> None:
        super().__init__(objective)
        self.reward, self.table = objective, SampleTable()

    def add(self, model: Model, batch: Batch) -> Loss:
        rewards, loss = self.reward.score_pairs(model, batch)
        assert batch.labels is not None
        self.table.add(batch.samples, rewards=rewards, longer=batch.labels)
        return loss

    def compute(self) -> dict[str, float]:
        return {name: values.mean().item() for name, values in self.pairs().items()}

    def pairs(self) -> dict[str, Float[Tensor, "pairs"]]:
        """Metrics of each pair by name (pairs,), whose means `compute` returns."""
        table = {name: value.double() for name, value in self.table.gather().items()}
        margin = table["rewards"][:, 0] - table["rewards"][:, 1]
        return {"accuracy": wins(margin), "longer_accuracy": table["longer"], "margin": margin}
