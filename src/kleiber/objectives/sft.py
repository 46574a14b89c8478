"""Supervised fine-tuning: next tokens are learned in answers only.

The loss is divided by the number of answer tokens in the whole batch, so every answer token has the same weight in
whatever row, micro-batch or rank it is.
"""

from __future__ import annotations

from kleiber.data.instruct import InstructCorpus
from kleiber.objectives.clm import CLM
from kleiber.types import NonNegative
from kleiber.types.batch import Batch, Loss
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model


class SFT(CLM):
    """Next-token cross-entropy, summed over answer tokens, in nats.

    z_loss  coefficient of the squared log-normalizer, as in CLM
    """

    likelihood = False
    default_epochs = 3.0
    trains_answers = True

    def __init__(self, corpus: Corpus, z_loss: NonNegative = 0.0) -> None:
        if not isinstance(corpus, InstructCorpus):
            raise ValueError(f"objective=sft needs marked answers, and data={corpus.name} has none: set data=instruct")
        super().__init__(z_loss)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if batch.weights is None:
            raise ValueError("objective=sft needs marked answers, and this batch has none: set data=instruct")
        return super().__call__(model, batch)
