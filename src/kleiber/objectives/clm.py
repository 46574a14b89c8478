"""Causal language modeling: each token is predicted from those before it."""

from __future__ import annotations

import torch
from torch import Tensor

from kleiber.nn.loss import cross_entropy, target_weights
from kleiber.objectives.auxiliary import loss_with_auxiliary, real_tokens
from kleiber.types import NonNegative
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Objective, Predictions
from kleiber.types.model import Model


class CLM(Objective):
    """Next-token cross-entropy, sum_t w_t (-log p(x_t | x_<t)), in nats; Radford et al. 2019.

    z_loss  coefficient of w_t log(Z_t)^2, which keeps the log-normalizer near 0 (Chowdhery et al. 2022,
            arXiv:2204.02311, section 5); it is part of the trained loss but not of the metric "ce"

    A model with model.future > 0 is trained on later tokens too; their mean loss is the metric "future_ce".
    """

    likelihood = True
    has_predictions = True
    needs_causal = True
    trains_future = True
    reads_prefix = True

    def __init__(self, z_loss: NonNegative = 0.0) -> None:
        self.z_loss = z_loss

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if batch.tokens.shape[1] < 2:
            raise ValueError("objective=clm needs rows of at least 2 tokens, and these have 1: use longer rows")
        rows = next_token_inputs(batch, model.prefix)
        output = model(rows)
        targets = batch.tokens[:, 1:]
        weights = target_weights(batch)
        total, cross = cross_entropy(output.hidden, model.head, targets, weights, z_loss=self.z_loss)
        tokens = targets.numel() if weights is None else weights.sum()
        metrics = {"ce": cross.detach()}
        if output.future:
            later = future_loss(output.future, model, batch, weights)
            total, metrics["future_ce"] = total + model.future_weight * later, later.detach()
        marked = batch.weights is not None
        return loss_with_auxiliary(total, tokens, metrics, output, rows, batch.auxiliary_ratio, marked)

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[Tensor, int | Tensor] | None:
        """Numbers of targets and tokens, where targets are marked."""
        return marked_counts(batch)

    def targets(self, model: Model, batch: Batch) -> float | Tensor:
        """Weighted number of targets."""
        weights = target_weights(batch)
        return batch.tokens[:, 1:].numel() if weights is None else weights.sum()

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The distribution of the next token at every target."""
        weights = target_weights(batch)
        hidden = model(next_token_inputs(batch, model.prefix)).hidden
        return Predictions(hidden, model.head, hidden.new_ones(hidden.shape[:2]) if weights is None else weights)


def marked_counts(batch: Batch) -> tuple[Tensor, int | Tensor] | None:
    """Weighted number of targets, and number of real tokens that are read; None where no targets are marked."""
    weights = target_weights(batch)
    if batch.weights is None or weights is None:
        return None
    return weights.sum(), read_tokens(batch)


def read_tokens(batch: Batch) -> int | Tensor:
    """Number of real tokens that a model reads to predict the next ones."""
    return real_tokens(next_token_inputs(batch))


def future_loss(hidden: list[Tensor], model: Model, batch: Batch, weights: Tensor | None) -> Tensor:
    """sum_t w_{t+k} (-log p_k(x_{t+k} | x_<t)), a mean over k = 1, 2, ... of `Output.future`; in nats.

    Gloeckle et al. 2024, arXiv:2404.19737, eq. 2. A target in another document than the tokens that predict it is left
    out, and so are those beyond the end of the row.

    weights  of the next tokens; None if every weight is 1
    """
    total = hidden[0].new_zeros((), dtype=torch.float32)
    for k, states in enumerate(hidden, start=1):
        targets = batch.tokens[:, 1 + k :]
        part = None if weights is None else weights[:, k:]
        if batch.segments is not None:
            same = (batch.segments[:, 1 + k :] == batch.segments[:, : -1 - k]).to(torch.float32)
            part = same if part is None else part * same
        if targets.shape[1]:
            total = total + cross_entropy(states[:, : targets.shape[1]], model.head, targets, part).total
    return total / len(hidden)


def next_token_inputs(batch: Batch, prefix: bool = False) -> Batch:
    """All tokens but the last: the model's input when the targets are all tokens but the first.

    prefix  whether to mark the tokens of prompts (see `prompt_tokens`), for a model with `prefix`
    """
    return Batch(
        tokens=batch.tokens[:, :-1],
        real=None if batch.real is None else batch.real[:, :-1],
        segments=None if batch.segments is None else batch.segments[:, :-1],
        samples=batch.samples,
        prefix=prompt_tokens(batch)[:, :-1] if prefix and batch.weights is not None else None,
    )


def prompt_tokens(batch: Batch) -> Tensor:
    """True on the tokens (batch, time) in front of the first target of their row, or of their packed segment."""
    assert batch.weights is not None, "prompts are what is in front of marked targets"
    targets = (batch.weights > 0).long()
    count = targets.cumsum(1)
    if batch.segments is not None:
        starts = torch.ones_like(targets)
        starts[:, 1:] = batch.segments[:, 1:] != batch.segments[:, :-1]
        count = count - ((count - targets) * starts).cummax(1).values
    return (count == 0) & batch.is_real
