"""Distillation: a model learns another's distribution over the next token beside the token itself.

The teacher is the model of a finished run, or a Hugging Face folder. It stands outside the trained parameters and
outside checkpoints, so a student's run needs the teacher's folder as long as it trains. It refuses a teacher of another
vocabulary, and models that read both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kleiber.nn.loss import cross_entropy, kl_divergence, target_weights
from kleiber.objectives.clm import causal, inputs
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus, Objective
from kleiber.types.model import Model


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
