"""Kahneman-Tversky optimization (KTO): learns from single answers that are labeled good or bad.

The frozen reference is the model as it was when the stage began; it scores every row once. Log-ratios are compared with
a reference point, the mean log-ratio of mismatched answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleiber.data.unpaired import UnpairedCorpus
from kleiber.models.counting import forward_flops
from kleiber.objectives.auxiliary import loss_with_auxiliary, real_tokens
from kleiber.objectives.clm import next_token_inputs
from kleiber.objectives.dpo import pair_log_probs, row_log_probs, wins
from kleiber.objectives.reference import set_reference
from kleiber.objectives.sample_table import SampleTable
from kleiber.types import Positive
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus, Objective, Scorer
from kleiber.types.model import Model
from kleiber.types.ranks import all_reduce_together
from kleiber.types.score import Metric, Metrics


class KTO(Objective):
    """Sum over good answers of w (1 - sigmoid(beta (r - z))), and over bad ones of w (1 - sigmoid(beta (z - r))).

    r = log pi(y|x)/ref(y|x), summed over the answer's tokens. z, without a gradient, is max(0, mean r) of mismatched
    answers (those to another prompt) over the whole batch of a step. w is `desirable` for good answers
    and `undesirable` for bad ones; the loss begins at w / 2. Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8 and
    section 4.1. Differs in that a row's mismatched answer is fixed with the data and not by the batch, so the reference
    scores it once. The forward pass of mismatched answers is part of a run's executed FLOPs, not of its model FLOPs.

    beta                    strength of the pull towards the reference
    desirable, undesirable  weights of good and bad answers; eq. 9 of the paper wants the ratio of (weight x number of
                            answers) in [1, 4/3]
    """

    trains_answers = True
    metric = "auc"
    metrics: ClassVar[Metrics] = {
        "loss": Metric("loss", "lower", "per answer"),
        "auc": Metric("AUC of good answers", "higher"),
        "accuracy": Metric("accuracy of labels", "higher"),
        "margin": Metric("reward margin", "higher"),
        "point": Metric("reference point", "none", "nats"),
    }
    learning_rate_factor = 0.1
    default_epochs = 3.0
    couples_samples = True  # by the reference point of the whole step
    needs_causal = True

    def __init__(
        self, corpus: Corpus, beta: Positive = 0.1, desirable: Positive = 1.0, undesirable: Positive = 1.0
    ) -> None:
        if not isinstance(corpus, UnpairedCorpus):
            raise ValueError(
                f"objective=kto needs answers labeled good or bad, and data={corpus.name} has none: set data=unpaired"
            )
        self.beta, self.desirable, self.undesirable = beta, desirable, undesirable

    def answer_loss(
        self, ratio: Float[Tensor, "rows"], point: Float[Tensor, "rows"], good: Bool[Tensor, "rows"]
    ) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
        """Returns the loss and the margin of each answer: beta (r - z) of a good answer and beta (z - r) of a bad one.

        ratio  the log-ratio r = log pi(answer) - log ref(answer) of model and reference, in nats
        point  the reference point z, in nats
        good   whether the answer is labeled good
        """
        margin = self.beta * torch.where(good, ratio - point, point - ratio)
        weight = torch.where(good, self.desirable, self.undesirable)
        return weight * (1 - margin.sigmoid()), margin

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.score_answers(model, batch)[1]

    def score_answers(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "rows 2"], Loss]:
        """Log-ratios to the reference of each answer and of its mismatched answer, in nats, and the loss.

        If the batch comes from `prepare_step`, the second value is not computed for each answer, but is the reference
        point z, the mean log-ratio of mismatched answers. Metrics:
        "accuracy" is the share of answers on the desired side of z (1/2 for ties), "point" is z in nats.
        """
        if batch.labels is None:
            raise ValueError("objective=kto needs labeled answers, and this batch has no labels: set data=unpaired")
        sums, _, output, rows = row_log_probs(model, batch)
        ratio = log_ratios(sums, batch, 0)
        if batch.counterpart is None:
            assert batch.reference is not None, "a batch of `prepare_step` has its reference point"
            mismatched = point = batch.reference[:, 1].to(sums)
        else:
            mismatched = self._mismatched(model, batch)
            point = mismatched.mean().clamp(min=0).expand(len(batch))
        losses, margin = self.answer_loss(ratio, point, batch.labels > 0.5)
        total = losses.sum()
        with torch.no_grad():
            metrics = {
                "ce": total.detach(),
                "accuracy": wins(margin).sum(),
                "margin": margin.sum(),
                "point": point.sum(),
            }
        loss = loss_with_auxiliary(total, len(batch), metrics, output, rows, batch.auxiliary_ratio)
        return torch.stack([ratio, mismatched], 1), loss

    @torch.no_grad()
    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[int, int | Tensor]:
        """Numbers of answers, and of tokens in their rows."""
        return len(batch), real_tokens(next_token_inputs(batch))

    def forward_only_flops(self, model: Model, time: int) -> float:
        """Those of the mismatched answers."""
        return forward_flops(model, time)

    def prepare_step(self, model: Model, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of a step, with the reference point z of the whole step in place of mismatched answers.

        z is the same on all ranks. It replaces column 1 of `reference`.
        """
        ratios = torch.cat([self._mismatched(model, batch) for batch in batches])
        total, count = all_reduce_together([ratios.sum(), ratios.new_full((), float(len(ratios)))])
        point = (total / count).clamp(min=0)
        step_batches = []
        for batch in batches:
            assert batch.reference is not None, "a stage that has begun has a reference for every row"
            values = torch.stack([batch.reference[:, 0], point.to(batch.reference).expand(len(batch))], 1)
            step_batches.append(dataclasses.replace(batch, counterpart=None, reference=values))
        return step_batches

    @torch.no_grad()
    def _mismatched(self, model: Model, batch: Batch) -> Float[Tensor, "rows"]:
        """Log-ratios of the mismatched answers to the reference, in nats."""
        assert batch.counterpart is not None, "each row has a mismatched answer"
        # Random draws are the same for both rows of a sample.
        rows = dataclasses.replace(batch.counterpart, samples=batch.samples)
        return log_ratios(row_log_probs(model, rows)[0], batch, 1)

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Sets the reference of every row: `model`, or the model that the stage of `folder` began with."""
        assert isinstance(corpus, UnpairedCorpus)
        set_reference(model, corpus, folder, corpus.rows(), pair_log_probs)

    def scorer(self) -> KTOScorer:
        return KTOScorer(self)


class KTOScorer(Scorer):
    """Metrics of held-out answers. The reference point z is that of all held-out answers.

    auc       probability that a good answer has a larger log-ratio than a bad one; absent where all are good or all bad
    loss      mean KTO loss per answer
    margin    mean of beta (r - z) for good answers and beta (z - r) for bad ones, with r the log-ratio in nats
    accuracy  share of answers with a margin above 0
    point     the reference point z, in nats
    """

    def __init__(self, objective: KTO) -> None:
        super().__init__(objective)
        self.kto, self.table = objective, SampleTable()

    def add(self, model: Model, batch: Batch) -> Loss:
        ratios, loss = self.kto.score_answers(model, batch)
        assert batch.labels is not None
        self.table.add(batch.samples, ratios=ratios, good=batch.labels > 0.5)
        return loss

    def compute(self) -> dict[str, float]:
        """The metrics over all held-out answers; every rank computes the same numbers."""
        table = self.table.gather()
        (ratio, mismatched), good = table["ratios"].double().T, table["good"]
        point = mismatched.mean().clamp(min=0)
        losses, margin = self.kto.answer_loss(ratio, point.expand(len(ratio)), good)
        metrics = {"loss": losses.mean(), "accuracy": wins(margin).mean(), "margin": margin.mean(), "point": point}
        if good.any() and not good.all():
            metrics["auc"] = auc(ratio[good], ratio[~good])
        return {name: value.item() for name, value in metrics.items()}


def log_ratios(sums: Float[Tensor, "rows"], batch: Batch, column: int) -> Float[Tensor, "rows"]:
    """`sums` minus the reference's log-probabilities in a column of `batch.reference`, in nats.

    Before a stage begins there is no reference. Then a model that is scored is compared with itself, and the loss of a
    training step is NaN, so it cannot train a model.
    """
    if batch.reference is not None:
        return sums - batch.reference[:, column].to(sums)
    return sums - (torch.full_like(sums, torch.nan) if torch.is_grad_enabled() else sums.detach())


def auc(high: Float[Tensor, "high"], low: Float[Tensor, "low"]) -> Float[Tensor, ""]:
    """Share of the pairs (a value of `high`, a value of `low`) in which the former is larger; ties count 1/2."""
    low = low.sort().values
    smaller = torch.searchsorted(low, high)
    smaller_or_equal = torch.searchsorted(low, high, right=True)
    return ((smaller + smaller_or_equal).double() / 2).mean() / len(low)
