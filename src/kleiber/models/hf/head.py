"""The output layer of a Hugging Face model as a loss sees it: one matrix, whatever stands before it and beside it.

What an encoder does between its hidden states and the matrix is `features`; a bias becomes one more column of the
matrix, read by a constant 1. Both are exact, and that they are all there is, is tried on a few tokens when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Steps:
    """Modules and functions one after another; as data, so that a copy of a model has those of the copy."""

    steps: Sequence[Transform]

    def __call__(self, hidden: Tensor) -> Tensor:
        for step in self.steps:
            hidden = step(hidden)
        return hidden


class HFHead:
    """logits = cap(features(hidden) @ weight.T). It holds no parameters: they are the model's own."""

    multiplier = 1.0

    def __init__(self, linear: nn.Linear, transform: Transform | None, soft_cap: float | None) -> None:
        self.linear, self.transform, self.soft_cap = linear, transform, soft_cap

    @property
    def weight(self) -> Float[Tensor, "vocab dim"]:
        weight = self.linear.weight
        return weight if self.linear.bias is None else torch.cat([weight, self.linear.bias[:, None]], 1)

    def features(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes features"]:
        """What the matrix is applied to, from the model's hidden states."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.linear.bias is None else torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)

    def __call__(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        logits = self.linear(hidden if self.transform is None else self.transform(hidden))
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


class NoHead:
    """In place of the output layer of a model that has none: a loss that asks for one is told so."""

    multiplier, soft_cap = 1.0, None

    def __init__(self, why: str) -> None:
        self.why = why

    @property
    def weight(self) -> Tensor:
        raise ValueError(self.why)

    def features(self, hidden: Tensor) -> Tensor:
        raise ValueError(self.why)

    def __call__(self, hidden: Tensor) -> Tensor:
        raise ValueError(self.why)


def find_head(inner: Any, whole: bool, path: str) -> Any:
    """The output layer of a language model, or a `NoHead` that says why there is none."""
    if not whole:
        return NoHead(
            f"model.path={path} holds no output layer for tokens, so it has no language-model loss: "
            "objective=classify trains heads of its own, weights=random starts from nothing"
        )
    linear = inner.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return NoHead(f"model.path={path} is a {inner.config.model_type}, whose output layer is no single matrix")
    head = HFHead(linear, _transform(inner), getattr(inner.config, "final_logit_softcapping", None))
    hidden = _tried(inner.base_model, inner, path).last_hidden_state
    logits = _tried(inner, inner, path).logits
    if not _is_right(head, hidden, logits):
        return NoHead(
            f"model.path={path} is a {inner.config.model_type}, whose output layer is of a form not known here"
        )
    return head


def _transform(inner: Any) -> Transform | None:
    """What an encoder applies before the matrix; None where the hidden states are read as they are.

    BERT and its kin; ELECTRA; ModernBERT; RoBERTa's kind; DistilBERT; ALBERT: each has its own names for the same.
    """
    predictions = getattr(getattr(inner, "cls", None), "predictions", None)
    if predictions is not None:
        return predictions.transform
    if hasattr(inner, "generator_predictions"):
        return inner.generator_predictions
    if isinstance(modern := getattr(inner, "head", None), nn.Module) and hasattr(inner, "decoder"):
        return modern
    roberta: Any = getattr(inner, "lm_head", None)
    if hasattr(roberta, "layer_norm"):
        return Steps([roberta.dense, nn.functional.gelu, roberta.layer_norm])
    if hasattr(inner, "vocab_transform"):
        return Steps([inner.vocab_transform, inner.activation, inner.vocab_layer_norm])
    albert: Any = getattr(inner, "predictions", None)
    if hasattr(albert, "activation"):
        return Steps([albert.dense, albert.activation, albert.LayerNorm])
    return None


def reads_ahead(inner: Any, path: str) -> bool:
    """Whether a hidden state depends on a later token: it moves where two rows differ in the last one alone."""
    hidden = _tried(inner.base_model, inner, path).last_hidden_state
    earlier, last = ((hidden[0, place] - hidden[1, place]).abs().max() for place in (0, 1))
    return bool(earlier > 1e-5 * last)


@torch.no_grad()
def _tried(module: Any, inner: Any, path: str) -> Any:
    """What the model, or a part of it, says to two rows of two tokens, of which the first is the same.

    Raises ValueError where it does not run. Id 0 and that of padding are left out: their rows may be all zeros.
    """
    table, training = inner.get_input_embeddings().weight, inner.training
    padding = getattr(inner.config, "pad_token_id", None)
    one, two, three = [i for i in range(1, len(table)) if i != padding][:3]
    inner.eval()
    try:
        return module(input_ids=torch.tensor([[one, two], [one, three]], device=table.device))
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(f"model.path={path} with this model.config does not run: {error}") from None
    finally:
        inner.train(training)


@torch.no_grad()
def _is_right(head: HFHead, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the view gives the model's own logits; of logits that are all 0 nobody can tell."""
    size = float(logits.abs().max())
    try:
        return size > 0 and torch.allclose(head(hidden), logits, atol=1e-4 * size, rtol=1e-4)
    except RuntimeError:  # shapes that do not fit
        return False
