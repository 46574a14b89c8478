"""Preference optimization without a reward model: DPO, conservative DPO and IPO.

The frozen reference is the model as it was when the stage began. It is asked once for every pair, and its answers are
kept (see `set_reference`). Beside a LoRA adapter the model without its updates is the same reference, and can be asked
at each step instead.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kleiber.data.preference import PreferenceCorpus
from kleiber.nn.lora import without_updates
from kleiber.nn.loss import log_probs
from kleiber.objectives.clm import inputs
from kleiber.objectives.objective import Collected, rescaled, set_reference
from kleiber.types.batch import Batch, Loss, Output
from kleiber.types.contracts import Corpus, Objective, Samples, Scorer
from kleiber.types.model import Model

log = logging.getLogger(__name__)

PATIENCE = 50  # optimizer steps after which a loss that is still ln 2 is told of
ROWS = 16  # pairs that the reference is asked for at once


class DPO(Objective):
    """-log sigmoid(beta d), d = log pi(c)/ref(c) - log pi(r)/ref(r) for answers c preferred to r, summed over pairs.

    A pair counts one; log-probabilities are sums over the answer's tokens, its end of text included. Rafailov et al.
    2023, arXiv:2305.18290, eq. 7. It begins at ln 2.

    beta       how dear it is to leave the reference
    reference  start: asked before training, of every pair. adapter_off: training pairs are asked at each step, of the
               model without its low-rank updates, at the price of a forward pass; only held-out pairs are asked before
    """

    metric = "accuracy"
    higher_is_better = True
    unit = "loss/sample"
    learning_rate_factor = 0.1
    compares_answers = True

    def __init__(self, corpus: Corpus, beta: float = 0.1, reference: Literal["start", "adapter_off"] = "start") -> None:
        if not isinstance(corpus, PreferenceCorpus):
            raise ValueError(
                f"objective=dpo compares answers, and data={corpus.name} has no pairs: take data=preference"
            )
        if beta <= 0:
            raise ValueError(f"objective.beta={beta} must be positive; 0.1 is usual")
        if reference not in ("start", "adapter_off"):
            raise ValueError(f"objective.reference={reference}: write start or adapter_off")
        self.beta, self.adapter_off = beta, reference == "adapter_off"
        self._steps, self._watched = 0, False

    def preference(self, ratios: Float[Tensor, "pairs 2"], lengths: Float[Tensor, "pairs 2"]) -> Float[Tensor, "pairs"]:
        """The loss of each pair from the log-ratios of both answers to the reference, and their lengths in tokens."""
        return -F.logsigmoid(self.beta * (ratios[:, 0] - ratios[:, 1]))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.compared(model, batch)[1]

    def compared(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "pairs 2"], Loss]:
        """Log-probabilities of both answers under the model, and the loss against the reference's.

        "ce" is the loss itself, "accuracy" the share of pairs with d > 0 (1/2 for ties), "margin" beta d.
        """
        answers, lengths, output, rows = answer_log_probs(model, batch)
        ratio = answers - self._reference(model, batch, answers)
        difference = ratio[:, 0] - ratio[:, 1]
        aux = rescaled(output, rows, len(batch))
        total = self.preference(ratio, lengths).sum()
        with torch.no_grad():
            metrics = {
                "ce": total.detach(),
                "accuracy": won(difference).sum(),
                "margin": self.beta * difference.sum(),
                "reward_chosen": self.beta * ratio[:, 0].sum(),
                "reward_rejected": self.beta * ratio[:, 1].sum(),
                **{name: value.detach() for name, value in aux.items()},
            }
        self._watch(difference)
        count = torch.tensor(float(len(batch)), device=total.device)
        return answers, Loss(total + aux["loss"] if "loss" in aux else total, count, metrics)

    def _reference(self, model: Model, batch: Batch, answers: Tensor) -> Tensor:
        """Where no stage has begun, a model that is scored is its own reference, and a step has none: its loss is NaN,
        so that its time can be measured and it cannot be taken."""
        if batch.reference is not None:
            return batch.reference.to(answers)
        if self.adapter_off:
            with torch.no_grad(), without_updates(model):
                return answer_log_probs(model, batch)[0]
        return torch.full_like(answers, torch.nan) if torch.is_grad_enabled() else answers.detach()

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Sets the reference of every pair that is not asked at each step: what `model` says, or said when the stage of
        `folder` began."""
        assert isinstance(corpus, PreferenceCorpus)
        pairs = {name: rows for name, rows in corpus.rows().items() if not (self.adapter_off and name == "train")}
        set_reference(model, corpus, folder, pairs, asked_for, "held out" if self.adapter_off else "")

    def prepared(self, model: Model, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The micro-batches of a step as they are: it is counted, since none of them alone moves the model."""
        self._steps += 1
        return batches

    def scorer(self) -> PreferenceScorer:
        return PreferenceScorer(self)

    def _watch(self, difference: Tensor) -> None:
        if not torch.is_grad_enabled() or self._watched or self._steps <= PATIENCE:
            return
        self._watched = True
        if not bool((difference.abs() * self.beta > 1e-4).any()):
            log.warning(
                "after %d steps every pair's loss is still %.4f, its value at the start: the model has not moved "
                "from its reference; look at optimizer.lr, the warm-up, and what adapter=freeze leaves to train",
                PATIENCE,
                float(self.preference(torch.zeros(1, 2), torch.ones(1, 2))),
            )


class CDPO(DPO):
    """DPO where a preference is wrong with probability `noise`: (1 - noise) loss(d) + noise loss(-d).

    Mitchell 2023, "A note on DPO with noisy preferences"; its least value is at a finite margin.
    """

    def __init__(
        self,
        corpus: Corpus,
        beta: float = 0.1,
        noise: float = 0.1,
        reference: Literal["start", "adapter_off"] = "start",
    ) -> None:
        super().__init__(corpus, beta, reference)
        if not 0 <= noise < 0.5:
            raise ValueError(f"objective.noise={noise}: a share of wrong preferences lies in [0, 0.5)")
        self.noise = noise

    def preference(self, ratios: Float[Tensor, "pairs 2"], lengths: Float[Tensor, "pairs 2"]) -> Float[Tensor, "pairs"]:
        right, wrong = super().preference(ratios, lengths), super().preference(-ratios, lengths)
        return (1 - self.noise) * right + self.noise * wrong


class IPO(DPO):
    """(d - 1 / (2 beta))^2: the margin is to be 1 / (2 beta) and no more. Azar et al. 2023, arXiv:2310.12036, eq. 17.

    Here log-ratios are means over an answer's tokens, not sums as the equation reads: so the loss does not grow with
    length. Other libraries do the same.
    """

    def preference(self, ratios: Float[Tensor, "pairs 2"], lengths: Float[Tensor, "pairs 2"]) -> Float[Tensor, "pairs"]:
        means = ratios / lengths
        return (means[:, 0] - means[:, 1] - 1 / (2 * self.beta)).square()


class PreferenceScorer(Scorer):
    """Over held-out pairs: reward_accuracy (d > 0), accuracy (the model alone finds the chosen answer likelier),
    longer_accuracy (the longer answer was chosen: what knows nothing scores), margin (mean beta d); ties count 1/2.
    """

    def __init__(self, objective: DPO) -> None:
        super().__init__(objective)
        self.collected = Collected()

    def add(self, model: Model, batch: Batch) -> Loss:
        answers, loss = self.objective.compared(model, batch)
        assert batch.labels is not None
        asked = answers if batch.reference is None else batch.reference
        self.collected.add(batch.samples, answers=answers, reference=asked, longer=batch.labels)
        return loss

    def compute(self) -> dict[str, float]:
        found = self.pairs()
        return {
            name: found[name].mean().item() for name in ("reward_accuracy", "accuracy", "longer_accuracy", "margin")
        }

    def pairs(self) -> dict[str, Float[Tensor, "pairs"]]:
        """What `compute` averages, pair by pair, and start_accuracy, the accuracy of the reference."""
        whole = {name: value.double() for name, value in self.collected.whole().items()}
        ratio = whole["answers"] - whole["reference"]
        difference = ratio[:, 0] - ratio[:, 1]
        return {
            "reward_accuracy": won(difference),
            "accuracy": won(whole["answers"][:, 0] - whole["answers"][:, 1]),
            "start_accuracy": won(whole["reference"][:, 0] - whole["reference"][:, 1]),
            "longer_accuracy": whole["longer"],
            "margin": self.objective.beta * difference,
        }


def won(difference: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """1 where positive, 1/2 where 0."""
    return (difference.sign() + 1) / 2


def answer_log_probs(
    model: Model, batch: Batch
) -> tuple[Float[Tensor, "pairs 2"], Float[Tensor, "pairs 2"], Output, Batch]:
    """log pi of both answers of each pair and their lengths in tokens, from one forward pass; its output and the rows
    that it read come with them.
    """
    if batch.against is None:
        raise ValueError("objective=dpo was given rows without rejected answers: take data=preference")
    sums, lengths, output, rows = row_log_probs(model, stacked(batch, batch.against))
    return sums.view(2, -1).T, lengths.view(2, -1).T, output, rows


def row_log_probs(model: Model, batch: Batch) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"], Output, Batch]:
    """log pi of the marked tokens of each row, and the number of them; the output, and the rows as they were read."""
    if not model.causal:
        raise ValueError("log pi(answer) of a bidirectional model, which would read the answer: set model=gpt")
    assert batch.weights is not None
    rows = inputs(batch)
    output = model(rows)
    marked = batch.weights[:, 1:] > 0
    found = log_probs(output.hidden[marked], model.head, batch.tokens[:, 1:][marked])
    sums = found.new_zeros(len(batch)).index_add(0, marked.nonzero()[:, 0], found)
    return sums, marked.sum(1).to(sums.dtype), output, rows


def stacked(chosen: Batch, rejected: Batch) -> Batch:
    """The rows of both, those of `chosen` first, in one width."""
    width = max(chosen.tokens.shape[1], rejected.tokens.shape[1])

    def both(name: str) -> Tensor:
        sides = [getattr(side, name) for side in (chosen, rejected)]
        return torch.cat([F.pad(side, (0, width - side.shape[1])) for side in sides])

    samples = None if chosen.samples is None else chosen.samples.repeat(2)  # what is drawn for a sample is for both
    return Batch(tokens=both("tokens"), real=both("real"), weights=both("weights"), samples=samples)


@torch.no_grad()
def asked_for(model: Model, samples: Samples) -> Float[np.ndarray, "pairs 2"]:
    """log pi of both answers of every pair, in fp32, as the model is now."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        index = np.arange(len(samples))
        batches = (samples.gather(index[at : at + ROWS]) for at in range(0, len(index), ROWS))
        found = [answer_log_probs(model, batch.to(device))[0].float().cpu() for batch in batches]
    finally:
        model.train(training)
    return torch.cat(found).numpy() if found else np.empty((0, 2), np.float32)
