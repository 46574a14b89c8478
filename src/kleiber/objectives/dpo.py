"""Preference optimization without a reward model: DPO, conservative DPO and IPO.

The frozen reference is the model as it was when the stage began. It scores every pair once, and its log-probabilities
are stored (see `set_reference`). With a LoRA adapter, the model without its updates is the same reference, and it can
score the pairs of each step instead.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor

from kleiber.data.preference import PreferenceCorpus
from kleiber.models.counting import forward_flops
from kleiber.nn.lora import without_updates
from kleiber.nn.loss import log_probs
from kleiber.objectives.auxiliary import loss_with_auxiliary
from kleiber.objectives.clm import next_token_inputs, read_tokens
from kleiber.objectives.reference import set_reference
from kleiber.objectives.sample_table import SampleTable
from kleiber.types import Positive
from kleiber.types.batch import Batch, Loss, Output
from kleiber.types.contracts import Corpus, Objective, Samples, Scorer
from kleiber.types.model import Model, device_of, evaluation_mode
from kleiber.types.score import Metric, Metrics

log = logging.getLogger(__name__)

PATIENCE = 50  # optimizer steps after which a warning says that the loss is still at its start
ROWS = 16  # pairs that the reference scores at once


class DPO(Objective):
    """A loss of d = log pi(c)/ref(c) - log pi(r)/ref(r) for answers c preferred to r, summed over pairs.

    Every pair has weight 1. Log-probabilities are sums over the answer's tokens, the end of text included.

    beta       strength of the pull towards the reference
    reference  "start": every pair is scored before training. "adapter_off": the model without its low-rank updates
               scores the training pairs at each step, which costs a forward pass; held-out pairs are scored before
               training
    loss       "sigmoid": -log sigmoid(beta d), which begins at ln 2 (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).
               "ipo": (d - 1 / (2 beta))^2, which pulls d to a finite margin (Azar et al. 2023, arXiv:2310.12036,
               eq. 17). There log-ratios are sums over an answer's tokens, and here their means, as in other libraries,
               so that the loss does not grow with the length of answers
    noise      probability that a preference is wrong: (1 - noise) loss(d) + noise loss(-d), whose minimum is at a
               finite margin (conservative DPO: Mitchell 2023, "A note on DPO with noisy preferences")
    """

    trains_answers = True
    metric = "accuracy"
    metrics: Metrics = MappingProxyType(
        {
            "loss": Metric("loss", "lower", "nats per pair"),
            "accuracy": Metric("accuracy of preferences", "higher"),
            "reward_accuracy": Metric("reward accuracy", "higher"),
            "longer_accuracy": Metric("accuracy of choosing the longer answer", "none"),
            "margin": Metric("reward margin", "higher"),
        }
    )
    learning_rate_factor = 0.1
    default_epochs = 3.0
    compares_answers = True
    needs_causal = True

    def __init__(
        self,
        corpus: Corpus,
        beta: Positive = 0.1,
        reference: Literal["start", "adapter_off"] = "start",
        loss: Literal["sigmoid", "ipo"] = "sigmoid",
        noise: Annotated[float, Ge(0), Lt(0.5)] = 0.0,
    ) -> None:
        if not isinstance(corpus, PreferenceCorpus):
            raise ValueError(
                f"objective=dpo needs pairs of answers, and data={corpus.name} has none: set data=preference"
            )
        self.beta, self.adapter_off, self.loss, self.noise = beta, reference == "adapter_off", loss, noise
        if loss == "ipo":
            self.metrics = {**self.metrics, "loss": Metric("loss", "lower", "per pair")}
        self._steps, self._checked = 0, False

    def preference(self, ratios: Float[Tensor, "pairs 2"], lengths: Float[Tensor, "pairs 2"]) -> Float[Tensor, "pairs"]:
        """The loss of each pair.

        ratios   log pi/ref of the chosen and of the rejected answer, in nats
        lengths  of both answers, in tokens
        """
        loss = self._loss(ratios, lengths)
        return (1 - self.noise) * loss + self.noise * self._loss(-ratios, lengths) if self.noise else loss

    def _loss(self, ratios: Float[Tensor, "pairs 2"], lengths: Float[Tensor, "pairs 2"]) -> Float[Tensor, "pairs"]:
        """`preference` without noise."""
        if self.loss == "ipo":
            means = ratios / lengths
            return (means[:, 0] - means[:, 1] - 1 / (2 * self.beta)).square()
        return -F.logsigmoid(self.beta * (ratios[:, 0] - ratios[:, 1]))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        return self.score_pairs(model, batch)[1]

    def score_pairs(self, model: Model, batch: Batch) -> tuple[Float[Tensor, "pairs 2"], Loss]:
        """Log-probabilities of the chosen and the rejected answer of each pair in nats, and the loss.

        Metrics: "ce" is the loss itself, "accuracy" the share of pairs with d > 0 (1/2 for ties), "margin" beta d.
        """
        answers, lengths, output, rows = answer_log_probs(model, batch)
        ratios = answers - self._reference(model, batch, answers)
        difference = ratios[:, 0] - ratios[:, 1]
        total = self.preference(ratios, lengths).sum()
        with torch.no_grad():
            metrics = {
                "ce": total.detach(),
                "accuracy": wins(difference).sum(),
                "margin": self.beta * difference.sum(),
                "reward_chosen": self.beta * ratios[:, 0].sum(),
                "reward_rejected": self.beta * ratios[:, 1].sum(),
            }
        self._warn_if_stuck(difference)
        return answers, loss_with_auxiliary(total, len(batch), metrics, output, rows, batch.auxiliary_ratio)

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[int, int | Tensor]:
        """Numbers of pairs, and of tokens in their rows."""
        assert batch.counterpart is not None, "pairs of answers"
        return len(batch), read_tokens(stack_pairs(batch, batch.counterpart))

    def forward_only_flops(self, model: Model, time: int) -> float:
        """Those of the reference, where it is scored at each step."""
        return forward_flops(model, time) if self.adapter_off else 0.0

    def _reference(self, model: Model, batch: Batch, answers: Tensor) -> Tensor:
        """Log-probabilities of both answers of each pair under the reference, in nats.

        Before a stage begins there is no reference. Then a model that is scored is compared with itself. The loss of a
        training step is NaN: its time can be measured, but it cannot train a model.
        """
        if batch.reference is not None:
            return batch.reference.to(answers)
        if self.adapter_off:
            with torch.no_grad(), without_updates(model):
                return answer_log_probs(model, batch)[0]
        return torch.full_like(answers, torch.nan) if torch.is_grad_enabled() else answers.detach()

    def begin(self, model: Model | None, corpus: Corpus, folder: Path) -> None:
        """Sets the reference of every pair that is not scored at each step.

        The reference is `model`, or the model that the stage of `folder` began with.
        """
        assert isinstance(corpus, PreferenceCorpus)
        pairs = {name: rows for name, rows in corpus.rows().items() if not (self.adapter_off and name == "train")}
        set_reference(model, corpus, folder, pairs, pair_log_probs, "held out" if self.adapter_off else "")

    def prepare_step(self, model: Model, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Counts the optimizer step, and returns its micro-batches as they are."""
        self._steps += 1
        return batches

    def scorer(self) -> PreferenceScorer:
        return PreferenceScorer(self)

    def _warn_if_stuck(self, difference: Tensor) -> None:
        """Warns once, after PATIENCE steps, where every pair still has the loss of the start."""
        if not torch.is_grad_enabled() or self._checked or self._steps <= PATIENCE:
            return
        self._checked = True
        if not bool((difference.abs() * self.beta > 1e-4).any()):
            log.warning(
                "after %d steps the loss of every pair is still %.4f, its value at the start, so the model equals its "
                "reference: check optimizer.lr, the warm-up, and which parameters adapter=freeze trains",
                PATIENCE,
                float(self.preference(torch.zeros(1, 2), torch.ones(1, 2))),
            )


class PreferenceScorer(Scorer):
    """Metrics of held-out pairs, with beta and the difference d of log-ratios from the loss of `DPO`.

    reward_accuracy  share of pairs with d > 0
    accuracy         share in which the model finds the chosen answer more likely than the rejected one
    longer_accuracy  share in which the chosen answer is the longer one: what a baseline by length scores
    margin           mean of beta d, in nats

    A tie counts as 1/2 in the shares.
    """

    def __init__(self, objective: DPO) -> None:
        super().__init__(objective)
        self.dpo, self.table = objective, SampleTable()

    def add(self, model: Model, batch: Batch) -> Loss:
        """The loss of the pairs; stores their log-probabilities under the model and the reference."""
        answers, loss = self.dpo.score_pairs(model, batch)
        assert batch.labels is not None
        reference = answers if batch.reference is None else batch.reference
        self.table.add(batch.samples, answers=answers, reference=reference, longer=batch.labels)
        return loss

    def compute(self) -> dict[str, float]:
        names = ("reward_accuracy", "accuracy", "longer_accuracy", "margin")
        pairs = self.pairs()
        return {name: pairs[name].mean().item() for name in names}

    def pairs(self) -> dict[str, Float[Tensor, "pairs"]]:
        """Metrics of each pair by name (pairs,): those whose means `compute` returns, and `start_accuracy`.

        `start_accuracy` is the accuracy of the reference.
        """
        table = {name: value.double() for name, value in self.table.gather().items()}
        answers, reference = table["answers"], table["reference"]
        ratios = answers - reference
        difference = ratios[:, 0] - ratios[:, 1]
        return {
            "reward_accuracy": wins(difference),
            "accuracy": wins(answers[:, 0] - answers[:, 1]),
            "start_accuracy": wins(reference[:, 0] - reference[:, 1]),
            "longer_accuracy": table["longer"],
            "margin": self.dpo.beta * difference,
        }


def wins(difference: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """1 where the difference is positive, 1/2 where it is 0, and 0 elsewhere."""
    return (difference.sign() + 1) / 2


def answer_log_probs(
    model: Model, batch: Batch
) -> tuple[Float[Tensor, "pairs 2"], Float[Tensor, "pairs 2"], Output, Batch]:
    """Log-probabilities in nats and lengths in tokens of both answers of each pair, from one forward pass.

    Also returns the model's output and the rows that it read.
    """
    if batch.counterpart is None:
        raise ValueError("objective=dpo needs pairs of answers, and this batch has none: set data=preference")
    sums, lengths, output, rows = row_log_probs(model, stack_pairs(batch, batch.counterpart))
    return sums.view(2, -1).T, lengths.view(2, -1).T, output, rows


def row_log_probs(model: Model, batch: Batch) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"], Output, Batch]:
    """Log-probability in nats of the answer in each row, and its length in tokens.

    Also returns the model's output and the rows that it read. The answer is the tokens with a weight above 0.
    """
    if not model.causal:
        raise ValueError(
            "the log-probability of an answer needs a causal model, because a bidirectional one reads the answer: set "
            "model=gpt"
        )
    assert batch.weights is not None
    rows = next_token_inputs(batch)
    output = model(rows)
    in_answer = batch.weights[:, 1:] > 0
    row, column = in_answer.nonzero().unbind(1)
    scores = log_probs(output.hidden[row, column], model.head, batch.tokens[:, 1:][row, column])
    sums = scores.new_zeros(len(batch)).index_add(0, row, scores)
    return sums, in_answer.sum(1).to(sums.dtype), output, rows


def stack_pairs(chosen: Batch, rejected: Batch) -> Batch:
    """One batch with the rows of `chosen`, then those of `rejected`, padded to the same width."""
    assert chosen.real is not None and rejected.real is not None
    assert chosen.weights is not None and rejected.weights is not None
    width = max(chosen.tokens.shape[1], rejected.tokens.shape[1])

    def stack(*rows: Tensor) -> Tensor:
        return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in rows])

    return Batch(
        tokens=stack(chosen.tokens, rejected.tokens),
        real=stack(chosen.real, rejected.real),
        weights=stack(chosen.weights, rejected.weights),
        samples=None if chosen.samples is None else chosen.samples.repeat(2),  # random draws are the same for a pair
    )


@torch.no_grad()
def pair_log_probs(model: Model, samples: Samples) -> Float[np.ndarray, "pairs 2"]:
    """Log-probabilities of both answers of every pair under the model as it is now, in nats and fp32."""
    device, index = device_of(model), np.arange(len(samples))
    batches = (samples.gather(index[start : start + ROWS]) for start in range(0, len(index), ROWS))
    with evaluation_mode(model):
        scores = [answer_log_probs(model, batch.to(device))[0].float().cpu() for batch in batches]
    return torch.cat(scores).numpy() if scores else np.empty((0, 2), np.float32)
