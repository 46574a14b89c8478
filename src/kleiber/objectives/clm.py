"""Causal language modelling: the next token from all before it. It refuses rows that leave nothing to predict, and
models that read what they are to predict.

Supervised fine-tuning: causal language modelling of answers alone, given all that stands before them.

The step divides by the number of answer tokens in its whole batch, so every answer token weighs the same, in whatever
row, micro-batch or rank; a long answer weighs more than a short one, as in the likelihood of the data. It refuses data
that does not say which tokens are answers.
"""

from __future__ import annotations

import torch

from kleiber.data.instruct import InstructCorpus
from kleiber.nn.loss import cross_entropy, target_weights
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus, Objective, Predictions
from kleiber.types.model import Model


class CLM(Objective):
    """Next-token cross-entropy, sum_t w_t (-log p(x_t | x_<t)), in nats; Radford et al. 2019.

    z_loss  coefficient of w_t log(Z_t)^2, which keeps the log-normaliser near 0 (Chowdhery et al. 2022,
            arXiv:2204.02311, section 5); it enters `total` but not the metric "ce"
    """

    likelihood = True
    has_predictions = True

    def __init__(self, z_loss: float = 0.0) -> None:
        if z_loss < 0:
            raise ValueError(
                f"objective.z_loss={z_loss} is negative: give 0 or a small positive coefficient such as 1e-4"
            )
        self.z_loss = z_loss

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if batch.tokens.shape[1] < 2:
            raise ValueError("a row of one token has no next token: give rows of at least two")
        causal(model, "clm")
        output = model(inputs(batch))
        targets = batch.tokens[:, 1:]
        weights = target_weights(batch)
        total, cross = cross_entropy(output.hidden, model.head, targets, weights, z_loss=self.z_loss)
        tokens = weights.sum() if weights is not None else torch.tensor(float(targets.numel()), device=targets.device)
        metrics = {"ce": cross.detach(), **{name: value.detach() for name, value in output.aux.items()}}
        return Loss(total + output.aux["loss"] if "loss" in output.aux else total, tokens, metrics)

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The next token's distribution at every target."""
        weights = target_weights(batch)
        hidden = model(inputs(batch)).hidden
        return Predictions(hidden, model.head, hidden.new_ones(hidden.shape[:2]) if weights is None else weights)


def causal(model: Model, name: str) -> None:
    """Raises ValueError for a model that reads the tokens it is to predict."""
    if not model.causal:
        raise ValueError(f"objective={name} with a bidirectional model, which would read the next token: objective=mlm")


def inputs(batch: Batch) -> Batch:
    """All tokens but the last: what the model reads when the targets are all tokens but the first."""
    return Batch(
        tokens=batch.tokens[:, :-1],
        real=None if batch.real is None else batch.real[:, :-1],
        segments=None if batch.segments is None else batch.segments[:, :-1],
        samples=batch.samples,
    )


class SFT(CLM):
    """Next-token cross-entropy, summed over answer tokens, in nats.

    z_loss  as in clm
    """

    likelihood = False

    def __init__(self, corpus: Corpus, z_loss: float = 0.0) -> None:
        if not isinstance(corpus, InstructCorpus):
            raise ValueError(f"objective=sft learns answers, and data={corpus.name} marks none: take data=instruct")
        super().__init__(z_loss)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if batch.weights is None:
            raise ValueError("objective=sft was given rows without marked answers: take data=instruct")
        if not model.causal:
            raise ValueError("objective=sft with a bidirectional model, which would read the answer: set model=gpt")
        return super().__call__(model, batch)
