"""A model that gives each byte a probability of its own, whatever comes before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM


def planted(causal: bool = True, **probabilities: float) -> Transformer:
    """A model of bytes with these probabilities of letters; the space has what is left of 1, other bytes nothing."""
    torch.manual_seed(0)
    model = Transformer(Bytes.vocab_size, depth=1, width=32, context=24, tied=False, causal=causal, num_heads=2)
    weights = torch.full((Bytes.vocab_size, 32), 0.0)
    weights[:, 0] = -1e4
    for letter, p in {**probabilities, " ": 1 - sum(probabilities.values())}.items():
        weights[ord(letter), 0] = math.log(p)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[:, 0] = 1.0  # the final norm makes this sqrt(32), at every position
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.zero_()
        model.head.weight.copy_(weights / math.sqrt(32) / model.head.multiplier)
    return model


def subject(model: Transformer, data: Sequence[DataSet], **options) -> Subject:
    """The model with these data sets, and no training text."""
    return Subject(model, Bytes(), CLM(), CLM(), data, **options)
