"""Predictions of small models, as methods of attribution explain them."""

import numpy as np
import torch
from evals.small_models import TIME, VOCAB, Sums

from kleiber.data.tokenizers import Bytes
from kleiber.types.batch import Batch
from kleiber.types.model import Model
from kleiber_topics.interpretability.attribution.predictions import ExplainedPredictions, token_predictions


def predictions(model: Model, rows: int = 4, causal: bool = True) -> ExplainedPredictions:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (rows, TIME + 1)))
    targets = torch.full((rows,), TIME if causal else TIME - 3)
    if isinstance(model, Sums):
        tokens[:, -1] = 0
    return token_predictions(model, Bytes(), Batch(tokens), targets)
