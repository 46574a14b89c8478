"""Next-token prediction with label smoothing."""

from typing import Annotated

import torch
from annotated_types import Ge, Lt

from kleiber.nn.loss import target_weights
from kleiber.objectives.auxiliary import loss_with_auxiliary
from kleiber.objectives.clm import CLM, next_token_inputs
from kleiber.types.batch import Batch, Loss
from kleiber.types.model import Model


class Smoothed(CLM):
    """(1 - smoothing) cross-entropy + smoothing times its mean over all tokens. Szegedy et al. 2016, arXiv:1512.00567.

    The reported loss is the cross-entropy alone, so runs compare with those of objective=clm.
    """

    trains_future = False

    def __init__(self, smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing

    def __call__(self, model: Model, batch: Batch) -> Loss:
        rows, targets, weights = next_token_inputs(batch), batch.tokens[:, 1:], target_weights(batch)
        output = model(rows)
        log_p = model.head(output.hidden).log_softmax(-1)
        cross = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        if weights is None:
            weights = torch.ones_like(cross)
        smoothed = (1 - self.smoothing) * cross - self.smoothing * log_p.mean(-1)
        metrics = {"ce": (weights * cross).sum().detach()}
        total, marked = (weights * smoothed).sum(), batch.weights is not None
        return loss_with_auxiliary(total, weights.sum(), metrics, output, rows, batch.auxiliary_ratio, marked)
