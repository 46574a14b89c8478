"""Attributions of the log-probability of a prediction to its input tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kleiber.models import HFModel
from kleiber.records import Activity
from kleiber.types import Batch, Model
from kleiber_topics.interpretability.attention.heads import HeadWeights, attention_layers, read_attention
from kleiber_topics.interpretability.attribution.predictions import ExplainedPredictions, chunks

Attributions = Float[Tensor, "rows time"]  # 0 for tokens that are no candidates


@dataclass(frozen=True)
class Explainer:
    """What the methods need beside the predictions.

    model     in evaluation mode
    baseline  vector that stands for no information
    steps     nodes of the integral of `integrated_gradients`
    tokens    most tokens of a forward pass
    work      counts the texts that are explained
    """

    model: Model
    baseline: Float[Tensor, "_"]
    steps: int
    tokens: int
    work: Activity

    def explain(self, method: str, predictions: ExplainedPredictions) -> Attributions:
        """The attributions of a method by name, a few texts at a time."""
        parts = []
        for rows in chunks(len(predictions), self.tokens // predictions.batch.tokens.shape[1]):
            index = torch.arange(rows.start, rows.stop, device=predictions.at.device)
            parts.append(METHODS[method](self, predictions.select(index)))
            self.work.done += len(index)
        return torch.cat(parts)

    def embed(self, predictions: ExplainedPredictions) -> Float[Tensor, "rows time dim"]:
        """The vectors of the input tokens."""
        return self.model.embedding(predictions.batch.tokens).detach()

    def without_information(self, predictions: ExplainedPredictions) -> Float[Tensor, "rows time dim"]:
        """The vectors of the input tokens, with the baseline in the place of every candidate."""
        vectors = self.embed(predictions)
        return torch.where(predictions.candidates[:, :, None], self.baseline.to(vectors.dtype), vectors)

    def gradient(
        self, predictions: ExplainedPredictions, vectors: Float[Tensor, "rows time dim"]
    ) -> Float[Tensor, "rows time dim"]:
        """Gradient of the log-probability with respect to input vectors."""
        with torch.enable_grad():
            leaf = vectors.detach().requires_grad_(True)
            return torch.autograd.grad(predictions.log_probs(self.model, leaf).sum(), leaf)[0]


def gradient_x_input(explainer: Explainer, predictions: ExplainedPredictions) -> Attributions:
    """sum_c x_tc dlog p/dx_tc: what the linear model at x gives each vector x_t (Shrikumar et al. 2016,
    arXiv:1605.01713, section 3).
    """
    vectors = explainer.embed(predictions)
    return (explainer.gradient(predictions, vectors) * vectors).sum(2).float() * predictions.candidates


def integrated_gradients(explainer: Explainer, predictions: ExplainedPredictions) -> Attributions:
    """sum_c (x_tc - b_c) times the mean gradient on the line from the baseline b to x.

    Sundararajan et al. 2017, arXiv:1703.01365, eq. 1. They sum up to the log-probability at x less that at the baseline
    (completeness), but for the error of the Gauss-Legendre quadrature.
    """
    vectors, start = explainer.embed(predictions), explainer.without_information(predictions)
    nodes, weights = np.polynomial.legendre.leggauss(explainer.steps)
    total = torch.zeros_like(vectors)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += float(weight) * explainer.gradient(predictions, start + float(node) * (vectors - start))
    return (total * (vectors - start)).sum(2).float()


@torch.no_grad()
def occlusion(explainer: Explainer, predictions: ExplainedPredictions) -> Attributions:
    """The log-probability less that with the baseline in the place of one token (Li et al. 2016, arXiv:1612.08220)."""
    vectors, start = explainer.embed(predictions), explainer.without_information(predictions)
    whole = predictions.log_probs(explainer.model, vectors)
    rows, places = predictions.candidates.nonzero(as_tuple=True)
    result = torch.zeros(predictions.candidates.shape, device=whole.device)
    for part in chunks(len(rows), explainer.tokens // vectors.shape[1]):
        row, place = rows[part], places[part]
        changed, each = vectors[row], torch.arange(len(row), device=row.device)
        changed[each, place] = start[row, place]
        without = predictions.select(row).log_probs(explainer.model, changed)
        result[row, place] = whole[row] - without
    return result


@torch.no_grad()
def rollout(explainer: Explainer, predictions: ExplainedPredictions) -> Attributions:
    """What attention passes from each token to the predicting position: the product over layers of (A + I) / 2.

    A is the mean over heads of the attention weights. Abnar & Zuidema 2020, arXiv:2005.00928, section 3. It knows
    neither the values nor the target, and has no sign.
    """
    time = predictions.batch.tokens.shape[1]
    flow = torch.eye(time, device=predictions.at.device).expand(len(predictions), time, time)
    for weights in mean_weights(explainer.model, predictions.batch):
        flow = (weights @ flow + flow) / 2
    rows = torch.arange(len(flow), device=flow.device)
    return flow[rows, predictions.at] * predictions.candidates


def mean_weights(model: Model, batch: Batch) -> list[Float[Tensor, "rows time time"]]:
    """The attention weights of each layer, their mean over heads."""
    if isinstance(model, HFModel):
        return [weights.float().mean(1) for weights in attention_of_transformers(model, batch)]
    layers: dict[int, list[Tensor]] = {}

    def read(layer: int, rows: slice, heads: HeadWeights) -> None:
        layers.setdefault(layer, []).append(heads.weights.mean(1))

    read_attention(model, batch, read)
    return [torch.cat(layers[layer]) for layer in sorted(layers)]


def attention_of_transformers(model: HFModel, batch: Batch) -> Sequence[Tensor]:
    """The attention weights of each layer of a model that transformers computes, (rows, heads, time, time)."""
    backbone, before = model.backbone, model.config._attn_implementation
    backbone.set_attn_implementation("eager")  # the other kernels never have the weights
    try:
        mask = None if batch.real is None else batch.real.long()
        return backbone(input_ids=batch.tokens, attention_mask=mask, output_attentions=True).attentions
    finally:
        backbone.set_attn_implementation(before)


METHODS: dict[str, Callable[[Explainer, ExplainedPredictions], Attributions]] = {
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
    "rollout": rollout,
}


def without_attention(model: Model) -> str:
    """Why attention rollout is not defined for the model; "" where it is."""
    if isinstance(model, HFModel):
        return ""
    layers = attention_layers(model)
    if len(layers) == len(model.blocks):
        return ""
    return f"{len(layers)} of the {len(model.blocks)} layers of this model, {type(model).__name__}, have attention"
