"""The output layer of a Hugging Face model as a single matrix, the form in which a loss reads it.

`features` are what an encoder computes between its hidden states and the matrix. A bias becomes a column of the matrix,
multiplied by a constant 1. When the head is built, its logits are compared with the model's on a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kleiber.models.hf_config import PreTrainedModel, setting
from kleiber.types.model import Head

Transform = Callable[[Tensor], Tensor]
ModelOutput = Any  # an output of transformers, whose fields depend on the type of the model


@dataclass(frozen=True)
class Steps:
    """Applies modules and functions in sequence. It holds them as data, so that a copy of a model refers to its own."""

    steps: Sequence[Transform]

    def __call__(self, hidden: Tensor) -> Tensor:
        for step in self.steps:
            hidden = step(hidden)
        return hidden


class HFHead(Head):
    """logits = cap(features(hidden) @ weight.T), with the parameters of the model."""

    def __init__(self, linear: nn.Linear, transform: Transform | None, soft_cap: float | None) -> None:
        self.linear, self.transform, self.soft_cap = linear, transform, soft_cap

    @property
    def weight(self) -> Float[Tensor, "vocab dim"]:
        weight = self.linear.weight
        return weight if self.linear.bias is None else torch.cat([weight, self.linear.bias[:, None]], 1)

    def features(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes features"]:
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.linear.bias is None else torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)

    def __call__(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        logits = self.linear(hidden if self.transform is None else self.transform(hidden))
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


class NoHead(Head):
    """Replaces the output layer of a model that has none; reading it raises ValueError with the reason."""

    def __init__(self, why: str) -> None:
        self.why = why

    @property
    def weight(self) -> Tensor:
        raise ValueError(self.why)

    def features(self, hidden: Tensor) -> Tensor:
        raise ValueError(self.why)

    def __call__(self, hidden: Tensor) -> Tensor:
        raise ValueError(self.why)


def find_head(inner: PreTrainedModel, whole: bool, path: str) -> HFHead | NoHead:
    """The output layer of a language model, or a `NoHead` with the reason why there is none.

    whole  whether the model has weights of the output layer
    """
    if not whole:
        return NoHead(
            f"model.path={path} has no weights of an output layer over tokens, so no loss over tokens can be computed: "
            "use objective=classify, which trains its own heads, or model.weights=random"
        )
    linear = inner.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return NoHead(f"model.path={path} is a {inner.config.model_type}, whose output layer is not a single matrix")
    head = HFHead(linear, _transform(inner), setting(inner.config, "final_logit_softcapping") or None)
    hidden = _output(inner.base_model, inner, path).last_hidden_state
    logits = _output(inner, inner, path).logits
    if not _agrees(head, hidden, logits):
        return NoHead(f"model.path={path} is a {inner.config.model_type}, whose output layer has an unsupported form")
    return head


def _transform(inner: PreTrainedModel) -> Transform | None:
    """What an encoder applies before the matrix; None where the matrix is applied to the hidden states themselves.

    The names differ between BERT, ELECTRA, ModernBERT, RoBERTa, DistilBERT and ALBERT.
    """
    modules = dict(inner.named_modules(remove_duplicate=False))
    if "cls.predictions" in modules:
        return modules["cls.predictions"].transform
    if "generator_predictions" in modules:
        return modules["generator_predictions"]
    if "head" in modules and "decoder" in modules:
        return modules["head"]
    if "lm_head.layer_norm" in modules:
        return Steps([modules["lm_head.dense"], nn.functional.gelu, modules["lm_head.layer_norm"]])
    if "vocab_transform" in modules:
        return Steps([modules["vocab_transform"], inner.activation, modules["vocab_layer_norm"]])
    if "predictions.activation" in modules:
        return Steps([modules[f"predictions.{name}"] for name in ("dense", "activation", "LayerNorm")])
    return None


def reads_ahead(inner: PreTrainedModel, path: str) -> bool:
    """Returns whether hidden states depend on later tokens, measured on two rows that differ only in the last token.

    inner  the wrapped Hugging Face model
    path   its `model.path`, for the error of a model that does not run
    """
    hidden = _output(inner.base_model, inner, path).last_hidden_state
    earlier, last = ((hidden[0, place] - hidden[1, place]).abs().max() for place in (0, 1))
    return bool(earlier > 1e-5 * last)


@torch.no_grad()
def _output(module: PreTrainedModel, inner: PreTrainedModel, path: str) -> ModelOutput:
    """The output of the model, or of a part of it, for two rows of two tokens that differ only in the second token.

    Raises ValueError where the model does not run. Id 0 and the id of padding are not used: their embeddings may be 0.
    """
    table, training = inner.get_input_embeddings().weight, inner.training
    padding = setting(inner.config, "pad_token_id")
    first, second, other = [i for i in range(1, len(table)) if i != padding][:3]
    inner.eval()
    try:
        return module(input_ids=torch.tensor([[first, second], [first, other]], device=table.device))
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(f"model.path={path} does not run with this model.config: {error}") from None
    finally:
        inner.train(training)


@torch.no_grad()
def _agrees(head: HFHead, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the head gives the logits of the model; False where all logits are 0, which proves nothing."""
    size = float(logits.abs().max())
    try:
        return size > 0 and torch.allclose(head(hidden), logits, atol=1e-4 * size, rtol=1e-4)
    except RuntimeError:  # shapes that do not fit
        return False
