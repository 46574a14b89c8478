"""Multinomial logistic regression on standardized vectors, by L-BFGS."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ITERATIONS = 100


def fit_probe(
    vectors: Float[Tensor, "rows dim"], labels: Int[Tensor, "rows"], classes: int, penalty: float
) -> Float[Tensor, "weights classes"]:
    """Weights and, in the last row, the biases of the classes.

    They minimize the mean cross-entropy plus penalty / 2 times the sum of the squared weights, without the biases.
    """
    weights = torch.zeros(vectors.shape[1] + 1, classes, dtype=vectors.dtype, device=vectors.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        """The loss, with its gradient."""
        optimizer.zero_grad()
        loss = F.cross_entropy(vectors @ weights[:-1] + weights[-1], labels)
        loss = loss + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportUnknownMemberType]
    return weights.detach()


def correct_on_held_out(
    vectors: Float[Tensor, "rows dim"],
    labels: Int[Tensor, "rows"],
    training: Bool[Tensor, "rows"],
    penalty: float,
) -> Bool[Tensor, "_"]:
    """Whether a probe that is fit to the training items predicts the class of each of the others."""
    fitted = vectors[training]
    mean, std = fitted.mean(0), fitted.std(0)
    scaled = (vectors - mean) / torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
    weights = fit_probe(scaled[training], labels[training], int(labels.max()) + 1, penalty)
    return (scaled[~training] @ weights[:-1] + weights[-1]).argmax(1) == labels[~training]
