"""Next-token objectives: causal language modelling, supervised fine-tuning of answers, and distillation.

All refuse models that read both ways. Supervised fine-tuning divides by the number of answer tokens in the whole batch,
so every answer token weighs the same, in whatever row, micro-batch or rank. The teacher of a distillation
is the model of a finished run or of a Hugging Face folder. It is outside the trained parameters and outside
checkpoints, so the run needs the teacher's folder as long as it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kleiber.data.instruct import InstructCorpus
from kleiber.nn.loss import cross_entropy, kl_divergence, target_weights
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


class Distill(Objective):
    """(1 - mix) cross-entropy + mix T^2 KL(teacher_T || student_T), summed over targets, in nats.

    Hinton et al. 2015, arXiv:1503.02531, section 2. "ce" is the student's cross-entropy alone, "kd" the second term
    without its weight.

    teacher      RUN, RUN/STAGE or a Hugging Face folder
    temperature  T, by which both sets of logits are divided
    mix          weight of the teacher; 1 leaves the text's own tokens out
    """

    likelihood = True

    def __init__(
        self, corpus: Corpus, open_model: Callable[[str], Any], teacher: str, temperature: float = 2.0, mix: float = 0.5
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"objective.temperature={temperature} must be positive; 1 to 4 is usual")
        if not 0 < mix <= 1:
            raise ValueError(f"objective.mix={mix} must lie in (0, 1]: without the teacher it is objective=clm")
        try:
            found = open_model(teacher)
        except ValueError as error:
            raise ValueError(f"objective.teacher: {error}") from None
        if not found.model.causal:
            raise ValueError(
                f"objective.teacher={teacher} reads both ways and knows no next token: take a causal model"
            )
        read, written = (one.hash.rpartition("/")[2] for one in (found.tokenizer, corpus.tokenizer))
        if read != written:  # of what they hold, not of what their folders are called
            raise ValueError(
                f"objective.teacher={teacher} reads ids of {found.tokenizer.hash}, the data is in those of "
                f"{corpus.tokenizer.hash}: set data.tokenizer to the teacher's"
            )
        self.teacher, self.temperature, self.mix = found.model.requires_grad_(False), temperature, mix

    def __call__(self, model: Model, batch: Batch) -> Loss:
        causal(model, "distill")
        rows, targets, weights = inputs(batch), batch.tokens[:, 1:], target_weights(batch)
        if weights is None:
            weights = torch.ones(targets.shape, device=targets.device)
        if rows.tokens.shape[1] > self.teacher.context:
            raise ValueError(f"the teacher reads {self.teacher.context} tokens at most: set model.context to that")
        self.teacher.to(rows.tokens.device)
        with torch.no_grad():
            taught = self.teacher(rows).hidden
        output = model(rows)
        total, cross = cross_entropy(output.hidden, model.head, targets, weights)
        learnt = kl_divergence(taught, self.teacher.head, output.hidden, model.head, weights, self.temperature)
        total = (1 - self.mix) * total + self.mix * learnt
        metrics = {"ce": cross.detach(), "kd": learnt.detach()}
        metrics |= {name: value.detach() for name, value in output.aux.items()}
        return Loss(total + output.aux["loss"] if "loss" in output.aux else total, weights.sum(), metrics)
