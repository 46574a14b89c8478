"""Masked language modeling: predicts hidden tokens from the tokens on both sides of them."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.nn.loss import cross_entropy
from kleiber.objectives.auxiliary import loss_with_auxiliary, real_tokens
from kleiber.types import Seed
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Objective, Predictions
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer


class MLM(Objective):
    """Cross-entropy of a random share of the tokens: 80 % become the mask, 10 % a random token, 10 % stay as they are.

    Which tokens are hidden is a pure function of (seed, sample, position): the same on every rank, in every micro-batch
    and at every evaluation of a validation sample. Devlin et al. 2018, arXiv:1810.04805, section 3.1. Differs in that
    each token is drawn by itself; the paper draws a fixed share of each sequence.

    mask_share  probability that a token is a target
    """

    reads_weights = False
    has_predictions = True
    hides_tokens = True

    def __init__(
        self, vocabulary: Tokenizer, mask_share: Annotated[float, Gt(0), Lt(1)] = 0.15, seed: Seed = 0
    ) -> None:
        if vocabulary.mask < 0:
            raise ValueError(
                f"objective=mlm needs a mask token, and data.tokenizer={vocabulary.name} has none: set objective=clm, "
                "or another tokenizer"
            )
        self.mask_share, self.seed = mask_share, seed
        self.mask, self.vocab_size = vocabulary.mask, vocabulary.vocab_size

    def __call__(self, model: Model, batch: Batch) -> Loss:
        batch = within_context(batch, model.context)
        hidden, targets = self.corrupt(batch)
        output = model(Batch(tokens=hidden, real=batch.real, segments=batch.segments, samples=batch.samples))
        chosen = targets.flatten().nonzero().squeeze(1)
        total, _ = cross_entropy(output.hidden.flatten(0, 1)[chosen], model.head, batch.tokens.flatten()[chosen])
        count, metrics = targets.sum().float(), {"ce": total.detach()}
        return loss_with_auxiliary(total, count, metrics, output, batch, batch.auxiliary_ratio)

    def auxiliary_counts(self, model: Model, batch: Batch) -> tuple[Tensor, int | Tensor]:
        """Numbers of hidden tokens, and of tokens that are read."""
        batch = within_context(batch, model.context)
        return self.corrupt(batch)[1].sum(), real_tokens(batch)

    def targets(self, model: Model, batch: Batch) -> Tensor:
        """Number of hidden tokens."""
        return self.corrupt(within_context(batch, model.context))[1].sum()

    def predictions(self, model: Model, batch: Batch) -> Predictions:
        """The distribution of the token at every position; positions that are not hidden have weight 0."""
        batch = within_context(batch, model.context)
        hidden, targets = self.corrupt(batch)
        output = model(Batch(tokens=hidden, real=batch.real, segments=batch.segments, samples=batch.samples))
        return Predictions(output.hidden, model.head, targets.float())

    def corrupt(self, batch: Batch) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """Returns the tokens that the model reads, and a mask with True at the positions that it predicts."""
        assert batch.samples is not None, "masks are drawn from the numbers of the samples"
        draw, kind, other = (uniform(batch.samples, batch.tokens.shape[1], self.seed, stream) for stream in range(3))
        targets = draw < self.mask_share
        if batch.real is not None:
            targets = targets & batch.real
        if batch.weights is not None:
            targets = targets & (batch.weights > 0)
        random = (other * self.vocab_size).long().clamp_(max=self.vocab_size - 1)
        replaced = torch.where(kind < 0.8, self.mask, torch.where(kind < 0.9, random, batch.tokens))
        return torch.where(targets, replaced, batch.tokens), targets


def within_context(batch: Batch, context: int) -> Batch:
    """The batch with rows of at most `context` tokens.

    A row of packed text has context + 1 tokens, for next-token targets; its last token begins the next row. A padded
    row may be shorter, and keeps the tokens that fit.
    """
    last = -1 if batch.real is None else context
    return batch.columns(last)


def uniform(samples: Int[Tensor, "batch"], time: int, seed: int, stream: int) -> Float[Tensor, "batch time"]:
    """Random numbers in [0, 1) from (seed, stream, sample, position) alone, by SplitMix64 (Steele et al. 2014)."""
    position = torch.arange(time, device=samples.device)
    x = (samples[:, None] * 0x9E3779B1 + position) * 4 + stream + seed * 0x632BE59BD9B4E019 % 2**62
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        # int64 shifts copy the sign bit; the mask makes them the unsigned shifts of the definition.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((x >> 11) & ((1 << 53) - 1)).double().div(2**53).float().clamp_(max=math.nextafter(1.0, 0.0))
