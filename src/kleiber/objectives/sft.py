"""Supervised fine-tuning: causal language modelling of answers alone, given all that stands before them.

The step divides by the number of answer tokens in its whole batch, so every answer token weighs the same, in whatever
row, micro-batch or rank; a long answer weighs more than a short one, as in the likelihood of the data. It refuses data
that does not say which tokens are answers.
"""

from __future__ import annotations

from typing import Any

from kleiber.objectives.clm import CLM
from kleiber.types import Batch, Loss, Model


class SFT(CLM):
    """Next-token cross-entropy, summed over answer tokens, in nats.

    z_loss  as in clm
    """

    likelihood = False

    def __init__(self, corpus: Any, z_loss: float = 0.0) -> None:
        if not hasattr(corpus, "num_answers"):
            raise ValueError(f"objective=sft learns answers, and data={corpus.name} marks none: take data=instruct")
        super().__init__(z_loss)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        if batch.weights is None:
            raise ValueError("objective=sft was given rows without marked answers: take data=instruct")
        if not getattr(model, "causal", True):
            raise ValueError("objective=sft with a bidirectional model, which would read the answer: set model=gpt")
        return super().__call__(model, batch)
