"""The logit lens: what the model would predict after each of its layers.

The final norm and the output layer are applied to the residual stream before the first block and after each block
(nostalgebraist 2020, "interpreting GPT: the logit lens").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.evals import Stream, read_streams
from kleiber.models import Transformer
from kleiber.nn import log_probs, target_weights
from kleiber.types import Batch


class LensText(NamedTuple):
    """Predictions of the tokens of one row after each layer; layer 0 is the embedding.

    tokens       the predicted tokens: the row without its first token
    probability  of each token given those before it
    best         the most probable token
    """

    tokens: Int[Tensor, "time"]
    probability: Float[Tensor, "layers time"]
    best: Int[Tensor, "layers time"]


@torch.compiler.set_stance("force_eager")
@torch.no_grad()
def residual_streams(model: Transformer, batch: Batch) -> list[Stream]:
    """The residual stream before the first block and after each block, with the final norm applied.

    The last one is the hidden state that the model returns.
    """
    return [model.norm(stream) for stream in read_streams(model, batch)]


@torch.no_grad()
def lens_losses(model: Transformer, batches: Iterable[Batch]) -> Float[Tensor, "rows layers"]:
    """Next-token loss of each row after each layer, in nats per target token; without the rows that have no target."""
    rows: list[Tensor] = []
    for batch in batches:
        streams = residual_streams(model, batch.columns(-1))
        losses = torch.stack([-log_probs(stream, model.head, batch.tokens[:, 1:]) for stream in streams], 1)
        weights = target_weights(batch)
        weights = torch.ones_like(losses[:, 0]) if weights is None else weights.to(losses.dtype)
        counts = weights.sum(1)
        rows.append(((losses * weights[:, None]).sum(2) / counts[:, None])[counts > 0].double().cpu())
    return torch.cat(rows)


@torch.no_grad()
def lens_text(model: Transformer, tokens: Int[Tensor, "1 time"]) -> LensText:
    """Predictions of the tokens of one row after each layer."""
    streams = residual_streams(model, Batch(tokens[:, :-1]))
    logits = torch.stack([model.head(stream)[0].float() for stream in streams])
    following = tokens[0, 1:]
    probability = logits.softmax(-1).gather(2, following.expand(len(logits), -1)[:, :, None])[..., 0]
    return LensText(following.cpu(), probability.cpu(), logits.argmax(-1).cpu())
