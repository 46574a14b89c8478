"""Runs of a model on corrupted texts with some activations of the clean ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from kleiber.evals import Change, changed_input, changed_output, changed_stream, hooked, num_layers
from kleiber.models import Block
from kleiber.types import Model
from kleiber_topics.interpretability.attention.heads import attention_layers
from kleiber_topics.interpretability.patching.pairs import PairBatch

Site = Callable[[Change], RemovableHandle]  # changes an activation (rows, time, channels) while active


def sites(model: Model, heads: bool) -> dict[str, Site]:
    """The activations of a model that can be patched, by name.

    stream/layer<L>     the residual stream: 0 before the first block, L after block L
    attention/layer<L>  what attention adds to it, and mlp/layer<L>; of kleiber's Transformer, its layers count from 0
    head/layer<L>       what its heads give to the output matrix of attention, one after another
    """
    named: dict[str, Site] = {
        f"stream/layer{layer}": partial(changed_stream, model, layer) for layer in range(num_layers(model))
    }
    for layer, block in enumerate(model.blocks):
        if isinstance(block, Block):
            named[f"attention/layer{layer}"] = partial(changed_output, block.attention)
            named[f"mlp/layer{layer}"] = partial(changed_output, block.mlp)
    if heads:
        for layer, attention in attention_layers(model).items():
            named[f"head/layer{layer}"] = partial(changed_input, attention.out)
    return named


def num_heads(model: Model) -> dict[int, int]:
    """Number of heads of each layer with attention."""
    return {layer: attention.num_heads for layer, attention in attention_layers(model).items()}


class Patcher:
    """The clean activations of some pairs, which are put into runs on their corrupted texts.

    clean, corrupted  values of the pairs without a patch
    """

    def __init__(self, model: Model, pairs: PairBatch, named: dict[str, Site]) -> None:
        self.model, self.pairs, self.sites = model, pairs, named
        self.activations: dict[str, Tensor] = {}
        with hooked([site(partial(self._keep, name)) for name, site in named.items()]):
            self.clean = pairs.values(model, pairs.clean)
        self.corrupted = pairs.values(model, pairs.corrupted)

    def _keep(self, name: str, activation: Tensor) -> Tensor:
        self.activations[name] = activation
        return activation

    def patched(
        self, name: str, places: Bool[Tensor, "rows time"], channels: slice = slice(None)
    ) -> Float[Tensor, "rows"]:
        """The values with the clean activation of a site at some places, in some channels."""
        clean = self.activations[name]

        def change(activation: Tensor) -> Tensor:
            mixed = activation.clone()
            mixed[..., channels] = torch.where(places[:, :, None], clean[..., channels], activation[..., channels])
            return mixed

        with self.sites[name](change):
            return self.pairs.values(self.model, self.pairs.corrupted)
