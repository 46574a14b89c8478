"""The layers of a Transformer: blocks of attention and an MLP, parts that predict later tokens, and token positions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.nn.mlp import LayerNorm, RMSNorm
from kleiber.nn.mup import Site
from kleiber.types.batch import Batch
from kleiber.types.model import MLP, Attention, LayerCache

Placement = Literal["pre", "post", "sandwich"]
NormType = Literal["rmsnorm", "layernorm"]


def new_norm(norm_type: NormType, width: int, eps: float) -> RMSNorm | LayerNorm:
    """Returns a norm of the stream."""
    return (LayerNorm if norm_type == "layernorm" else RMSNorm)(width, eps)


class Block(nn.Module):
    """One layer: attention and an MLP, each added to the stream with the parametrization's residual weight."""

    def __init__(
        self, site: Site, attention: Attention, mlp: MLP, dropout: float = 0.0, norm: Placement = "pre",
        norm_type: NormType = "rmsnorm",
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual, self.dropout, self.norm = site.parametrization.residual(site.depth), dropout, norm
        self.attention_norm, self.attention = new_norm(norm_type, site.width, site.norm_eps), attention
        self.mlp_norm, self.mlp = new_norm(norm_type, site.width, site.norm_eps), mlp
        if norm == "sandwich":
            self.attention_output_norm = new_norm(norm_type, site.width, site.norm_eps)
            self.mlp_output_norm = new_norm(norm_type, site.width, site.norm_eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        batch: Batch,
        cache: LayerCache | None,
        first_values: list[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The stream after the layer, and the auxiliary sums of its MLP."""
        inputs = (mask, cache, first_values) if self.attention.shares_values else (mask, cache)
        if self.norm == "post":
            x = self.attention_norm(self.add(x, self.attention(x, *inputs)))
            y, aux = self.mlp(x, batch)
            return self.mlp_norm(self.add(x, y)), aux
        y = self.attention(self.attention_norm(x), *inputs)
        x = self.add(x, self.attention_output_norm(y) if self.norm == "sandwich" else y)
        y, aux = self.mlp(self.mlp_norm(x), batch)
        return self.add(x, self.mlp_output_norm(y) if self.norm == "sandwich" else y), aux

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x plus the output y of attention or MLP, with dropout of y while training."""
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return torch.add(x, y, alpha=self.residual)


class FutureHead(nn.Module):
    """Hidden states from which the output layer predicts a later token: a block on the stream, and a norm."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        self.norm = type(block.mlp_norm)(block.mlp_norm.weight.shape[0], block.mlp_norm.eps)

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch, first_values: list[Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], dict[str, Tensor]]:
        """The hidden states, and the auxiliary sums of the block."""
        mask = self.block.attention.mask(x.shape[1], 0, x.device, batch.real, batch.segments, batch.prefix)
        y, sums = self.block(x, mask, batch, None, first_values)
        return self.norm(y), sums


def add_sums(aux: dict[str, Tensor], sums: dict[str, Tensor], layer: int) -> None:
    """Adds the auxiliary sums of a layer to those of the model, under the names of `Output.aux`."""
    if "loss" in sums:
        loss = sums.pop("loss")
        aux["loss"] = aux["loss"] + loss if "loss" in aux else loss
    aux |= {f"{name}/{layer}": value for name, value in sums.items()}


def token_positions(
    tokens: Int[Tensor, "batch time"],
    past: int,
    real: Bool[Tensor, "batch keys"] | None = None,
    segments: Int[Tensor, "batch time"] | None = None,
) -> Int[Tensor, "#batch time"]:
    """The position of each token in its document, from 0.

    past      number of cached positions before these
    real      False on padding, of the cached positions and of these; padding before a row does not count
    segments  numbers of the documents of packed rows
    """
    row = torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
    if segments is not None:
        starts = torch.ones_like(segments, dtype=torch.bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        return row - (row * starts).cummax(1).values
    return row if real is None else (real.cumsum(1)[:, past:] - 1).clamp(min=0)
