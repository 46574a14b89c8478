"""Reward modelling: scores whole answers, and learns from which of two answers was preferred.

One forward pass reads both answers of a pair; an output layer of the task's own scores the hidden state of the last
token. There is no reference model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kleiber.data.preference import PreferenceCorpus
from kleiber.objectives.classify import pooled
from kleiber.objectives.dpo import stacked, won
from kleiber.objectives.objective import Collected, head_name, rescaled
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus, Objective, Scorer
from kleiber.types.model import Model


class Reward(Objective):
    """-log sigmoid(r(c) - r(r)) for answers c preferred to r, summed over pairs, r(x) = head(hidden of the last token).

    A pair counts one; it begins at ln 2, since the head does at 0. Ouyang et al. 2022, arXiv:2203.02155, eq. 1, with
    two answers to a prompt. A row longer than model.context, by its one token, is read without its last one.

    center  weight of (r(c) + r(r))^2, which keeps rewards around 0 (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2;
            0.01 is usual); without it nothing says what level they have. It enters `total` but not the metric "ce"
    """

    metric = "accuracy"
    higher_is_better = True
    unit = "loss/sample"
    compares_answers = True

    def __init__(self, corpus: Corpus, center: float = 0.0) -> None:
        if not isinstance(corpus, PreferenceCorpus):
            raise ValueError(
                f"objective=reward compares answers, and data={corpus.name} has no pairs: take data=preference"
            )
        if center < 0:
            raise ValueError(f"objective.center={center} is negative: give 0 or a small positive weight such as 0.01")
        self.center = center
        self.head = head_name(corpus.name, "reward")
        self.outputs = {self.head: 1}

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.compared(model, batch)[1]

    def compared(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "pairs 2"], Loss]:
        """The rewards of both answers, in fp32 at least, and their loss.

        "ce" is the loss without centring, "accuracy" the share of pairs with r(c) > r(r) (1/2 for ties), "margin" their
        difference.
        """
        if batch.against is None:
            raise ValueError("objective=reward was given rows without rejected answers: take data=preference")
        both = stacked(batch, batch.against).map(lambda t: t[:, : model.context] if t.dim() == 2 else t)
        rows = Batch(tokens=both.tokens, real=both.real, samples=both.samples)
        output = model(rows)
        scores = model.heads[self.head](pooled(output.hidden, rows.real, "last"))
        rewards = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(2, -1).T
        margin = rewards[:, 0] - rewards[:, 1]
        ranking = -F.logsigmoid(margin).sum()
        total = ranking + self.center * rewards.sum(1).square().sum() if self.center else ranking
        aux = rescaled(output, rows, len(batch))
        with torch.no_grad():
            metrics = {
                "ce": ranking.detach(),
                "accuracy": won(margin).sum(),
                "margin": margin.sum(),
                "reward_chosen": rewards[:, 0].sum(),
                "reward_rejected": rewards[:, 1].sum(),
                **{name: value.detach() for name, value in aux.items()},
            }
        count = torch.tensor(float(len(batch)), device=total.device)
        return rewards, Loss(total + aux["loss"] if "loss" in aux else total, count, metrics)

    def scorer(self) -> RewardScorer:
        return RewardScorer(self)


class RewardScorer(Scorer):
    """Over held-out pairs: accuracy (r(c) > r(r)), longer_accuracy (the longer answer was chosen: what knows nothing
    scores), margin (mean r(c) - r(r)); ties count 1/2.
    """

    def __init__(self, objective: Reward) -> None:
        super().__init__(objective)
        self.collected = Collected()

    def add(self, model: Model, batch: Batch) -> Loss:
        rewards, loss = self.objective.compared(model, batch)
        assert batch.labels is not None
        self.collected.add(batch.samples, rewards=rewards, longer=batch.labels)
        return loss

    def compute(self) -> dict[str, float]:
        return {name: values.mean().item() for name, values in self.pairs().items()}

    def pairs(self) -> dict[str, Float[Tensor, "pairs"]]:
        """What `compute` averages, pair by pair."""
        whole = {name: value.double() for name, value in self.collected.whole().items()}
        margin = whole["rewards"][:, 0] - whole["rewards"][:, 1]
        return {"accuracy": won(margin), "longer_accuracy": whole["longer"], "margin": margin}
