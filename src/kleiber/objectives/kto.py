"""Kahneman-Tversky optimization (KTO): learns from single answers that were labelled good or bad.

The frozen reference is the model as it was when the stage began, asked once for every row. Log-ratios are measured from
the mean log-ratio of mismatched answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from kleiber.data.unpaired import UnpairedCorpus
from kleiber.objectives.dpo import asked_for, row_log_probs, won
from kleiber.objectives.objective import Collected, rescaled, set_reference
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus, Objective, Scorer
from kleiber.types.model import Model


class KTO(Objective):
    """w (1 - sigmoid(+-beta (r - z))), + and w = desirable for good answers, - and w = undesirable for bad ones.

    r = log pi(y|x)/ref(y|x), summed over the answer's tokens; z, of which no gradient is taken, is max(0, mean of r) of
    mismatched answers (another row's, to this prompt) over the whole batch of a step. Ethayarajh et al. 2024,
    arXiv:2402.01306, eq. 8 and section 4.1. An answer counts one; the loss begins at w / 2. Differs in that the
    partner of a row is fixed with the data, not by the batch, so that the reference is asked but once. The forward pass
    of mismatched rows is not in what a run counts as FLOPs.

    beta                    how dear it is to leave the reference
    desirable, undesirable  weights; the paper's eq. 9 wants the ratio of (weight x number of answers) in [1, 4/3]
    """

    metric = "auc"
    higher_is_better = True
    unit = "loss/sample"
    learning_rate_factor = 0.1

    def __init__(self, corpus: Corpus, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> None:
        if not isinstance(corpus, UnpairedCorpus):
            raise ValueError(
                f"objective=kto learns from verdicts on answers, and data={corpus.name} has none: take data=unpaired"
            )
        if beta <= 0 or min(desirable, undesirable) <= 0:
            raise ValueError(
                f"objective.beta={beta}, objective.desirable={desirable} and objective.undesirable={undesirable} must "
                "be positive; 0.1, 1 and 1 are usual"
            )
        self.beta, self.desirable, self.undesirable = beta, desirable, undesirable

    def worth(
        self, ratio: Float[Tensor, "rows"], point: Float[Tensor, "rows"], good: Bool[Tensor, "rows"]
    ) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
        """The loss of each answer from its log-ratio to the reference and the point that it is measured from; and how
        far it is on the side of that point where it should be, in units of beta."""
        margin = self.beta * torch.where(good, ratio - point, point - ratio)
        weight = torch.where(good, self.desirable, self.undesirable)
        return weight * (1 - margin.sigmoid()), margin

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.judged(model, batch)[1]

    def judged(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "rows 2"], Loss]:
        """Log-ratios to the reference of each answer and of its mismatched one (of a prepared batch: the point), and
        the loss. "accuracy" is the share on the right side of the point (1/2 for ties), "point" is z in nats.
        """
        if batch.labels is None:
            raise ValueError("objective=kto was given rows without verdicts: take data=unpaired")
        sums, _, output, rows = row_log_probs(model, batch)
        ratio = gained(sums, batch, 0)
        if batch.against is None:
            assert batch.reference is not None, "a prepared batch knows its point"
            other = point = batch.reference[:, 1].to(sums)
        else:
            other = self._mismatched(model, batch)
            point = other.mean().clamp(min=0).expand(len(batch))
        losses, margin = self.worth(ratio, point, batch.labels > 0.5)
        total, aux = losses.sum(), rescaled(output, rows, len(batch))
        with torch.no_grad():
            metrics = {
                "ce": total.detach(),
                "accuracy": won(margin).sum(),
                "margin": margin.sum(),
                "point": point.sum(),
                **{name: value.detach() for name, value in aux.items()},
            }
        count = torch.tensor(float(len(batch)), device=total.device)
        return torch.stack([ratio, other], 1), Loss(total + aux["loss"] if "loss" in aux else total, count, metrics)

    @torch.no_grad()
    def prepared(self, model: Model, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of a step with z of the whole step, over all ranks, in the place of mismatched rows."""
        ratios = torch.cat([self._mismatched(model, batch) for batch in batches])
        total = torch.stack([ratios.sum(), ratios.new_tensor(float(len(ratios)))])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        point = (total[0] / total[1]).clamp(min=0)
        made = []
        for batch in batches:
            assert batch.reference is not None, "a stage that has begun has asked for every row"
            values = torch.stack([batch.reference[:, 0], point.to(batch.reference).expand(len(batch))], 1)
            made.append(dataclasses.replace(batch, against=None, reference=values))
        return made

    @torch.no_grad()
    def _mismatched(self, model: Model, batch: Batch) -> Float[Tensor, "rows"]:
        assert batch.against is not None, "each row has a mismatched one"
        # What is drawn for a sample is drawn for both of its rows.
        return gained(row_log_probs(model, dataclasses.replace(batch.against, samples=batch.samples))[0], batch, 1)

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Sets the reference of every row: what `model` says, or said when the stage of `folder` began."""
        assert isinstance(corpus, UnpairedCorpus)
        set_reference(model, corpus, folder, corpus.rows(), asked_for)

    def scorer(self) -> KTOScorer:
        return KTOScorer(self)


class KTOScorer(Scorer):
    """Over held-out answers: auc, the chance that a good answer has gained more than a bad one over the model before
    training (left out where there is one kind alone), and loss, accuracy, margin and point with z of all of them.
    """

    def __init__(self, objective: KTO) -> None:
        super().__init__(objective)
        self.collected = Collected()

    def add(self, model: Model, batch: Batch) -> Loss:
        ratios, loss = self.objective.judged(model, batch)
        assert batch.labels is not None
        self.collected.add(batch.samples, ratios=ratios, good=batch.labels > 0.5)
        return loss

    def compute(self) -> dict[str, float]:
        whole = self.collected.whole()
        (ratio, other), good = whole["ratios"].double().T, whole["good"]
        point = other.mean().clamp(min=0)
        losses, margin = self.objective.worth(ratio, point.expand(len(ratio)), good)
        found = {"loss": losses.mean(), "accuracy": won(margin).mean(), "margin": margin.mean(), "point": point}
        if good.any() and not good.all():
            found["auc"] = auc(ratio[good], ratio[~good])
        return {name: value.item() for name, value in found.items()}


def gained(sums: Float[Tensor, "rows"], batch: Batch, column: int) -> Float[Tensor, "rows"]:
    """Log-ratios to the reference's values in a column. Where no stage has begun, a model that is scored is its own
    reference, and a step has none: its loss is NaN, so that it cannot be taken."""
    if batch.reference is not None:
        return sums - batch.reference[:, column].to(sums)
    return sums - (torch.full_like(sums, torch.nan) if torch.is_grad_enabled() else sums.detach())


def auc(high: Float[Tensor, "high"], low: Float[Tensor, "low"]) -> Float[Tensor, ""]:
    """The share of pairs of one of each where that of `high` is the greater one; ties count 1/2."""
    low = low.sort().values
    below, upto = torch.searchsorted(low, high), torch.searchsorted(low, high, right=True)
    return ((below + upto).double() / 2).mean() / len(low)
