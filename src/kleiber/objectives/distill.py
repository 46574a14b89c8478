"""Distillation: a model learns the next-token distributions of a teacher.

The teacher is the model of a finished run or of a Hugging Face folder. It is neither among the trained parameters nor
in checkpoints, so a run needs the teacher's folder as long as it trains, and not to be evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Protocol, runtime_checkable

import torch
from annotated_types import Gt, Le

from kleiber.models.counting import forward_flops
from kleiber.nn.loss import cross_entropy, kl_divergence, target_weights
from kleiber.objectives.auxiliary import loss_with_auxiliary
from kleiber.objectives.clm import CLM, next_token_inputs
from kleiber.types import Positive
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer


@runtime_checkable
class OpenedModel(Protocol):
    """A model that was read from a folder, with its tokenizer."""

    @property
    def model(self) -> Model: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


class Distill(CLM):
    """(1 - mix) cross-entropy + mix T^2 KL(teacher_T || student_T), summed over targets, in nats.

    Hinton et al. 2015, arXiv:1503.02531, section 2. The metric "ce" is the student's cross-entropy alone, "kd" the
    second term without its weight. Held-out loss is the cross-entropy, without the teacher.

    open_model   reads a model from its folder; the run supplies it
    teacher      RUN, RUN/STAGE or a Hugging Face folder
    temperature  T, by which the logits of both models are divided
    mix          weight of the teacher; 1 leaves out the cross-entropy
    """

    trains_future = False

    def __init__(
        self,
        corpus: Corpus,
        open_model: Callable[[str], OpenedModel],
        teacher: str,
        temperature: Positive = 2.0,
        mix: Annotated[float, Gt(0), Le(1)] = 0.5,
    ) -> None:
        super().__init__()
        self.open_model, self.tokenizer_hash = open_model, corpus.tokenizer.hash
        self.temperature, self.mix = temperature, mix
        self.models = {"teacher": teacher}

    def check(self, model: Model) -> None:
        """Raises ValueError for a bidirectional model, and for a teacher that cannot be opened or does not fit."""
        super().check(model)
        _ = self.teacher

    @cached_property
    def teacher(self) -> Model:
        """The frozen teacher, opened on first use: only training reads it.

        Raises ValueError where it cannot be opened, is bidirectional, or has another tokenizer than the data.
        """
        path = self.models["teacher"]
        try:
            opened = self.open_model(path)
        except ValueError as error:
            raise ValueError(f"objective.teacher: {error}") from None
        if not opened.model.causal:
            raise ValueError(f"objective.teacher={path} must be a causal model; this one is bidirectional")
        # Hashes are compared without the names of the tokenizers' folders.
        if opened.tokenizer.hash.rpartition("/")[2] != self.tokenizer_hash.rpartition("/")[2]:
            raise ValueError(
                f"objective.teacher={path} has the tokenizer {opened.tokenizer.hash}, and the data has "
                f"{self.tokenizer_hash}: set data.tokenizer to the teacher's tokenizer"
            )
        return opened.model.requires_grad_(False)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if not torch.is_grad_enabled():
            return super().__call__(model, batch)
        rows, targets, weights = next_token_inputs(batch, model.prefix), batch.tokens[:, 1:], target_weights(batch)
        if weights is None:
            weights = torch.ones(targets.shape, device=targets.device)
        if rows.tokens.shape[1] > self.teacher.context:
            raise ValueError(
                f"the rows have {rows.tokens.shape[1]} tokens, more than the teacher's context of "
                f"{self.teacher.context}: set model.context={self.teacher.context}"
            )
        self.teacher.to(rows.tokens.device)
        with torch.no_grad():
            teacher_hidden = self.teacher(next_token_inputs(batch, self.teacher.prefix)).hidden
        output = model(rows)
        total, cross = cross_entropy(output.hidden, model.head, targets, weights)
        divergence = kl_divergence(
            teacher_hidden, self.teacher.head, output.hidden, model.head, weights, self.temperature
        )
        total = (1 - self.mix) * total + self.mix * divergence
        metrics = {"ce": cross.detach(), "kd": divergence.detach()}
        tokens = weights.sum()
        marked = batch.weights is not None
        return loss_with_auxiliary(total, tokens, metrics, output, rows, batch.auxiliary_ratio, marked)

    def forward_only_flops(self, model: Model, time: int) -> float:
        """Those of the teacher."""
        return forward_flops(self.teacher, time)
