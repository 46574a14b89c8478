"""A model of transformers as it is read: its weights, its output layer as a single matrix, and its cache.

Weights are read without code and pickles, and what cannot be trained from is refused. `features` are what an encoder
computes between its hidden states and the matrix. A bias becomes a column of the matrix, multiplied by a constant 1.
When the head is built, its logits are compared with the model's on a few tokens.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kleiber.config.errors import ConfigError
from kleiber.models.hf_config import PretrainedConfig, PreTrainedModel, read_config, setting
from kleiber.records.model_files import check_model_folder
from kleiber.records.progress import activity
from kleiber.types import Json
from kleiber.types.model import DecodingCache, Head, evaluation_mode

ALLOW = "--allow-nonfinite of `kleiber import`, init.allow_nonfinite=true, or model.allow_nonfinite=true"
Transform = Callable[[Tensor], Tensor]
TransformersCache = Any  # a cache of transformers, imported late; its layers hold keys and values
ModelOutput = Any  # an output of transformers, whose fields depend on the type of the model


def read_folder(folder: Path, dtype: torch.dtype = torch.float32, allow_nonfinite: bool = False) -> PreTrainedModel:
    """The causal model of a folder with safetensors; code and pickles in the folder are never opened.

    allow_nonfinite  whether weights may be NaN or infinite

    Raises ValueError, which names the folder, for damaged, missing or surplus weights; transformers would replace
    missing ones by random numbers and ignore surplus ones.
    """
    from transformers import AutoModelForCausalLM

    read_config(folder)
    check_model_folder(folder)
    kind: PreTrainedModel = AutoModelForCausalLM
    options: Json = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with activity(f"loading the weights in {folder}"), quiet_transformers():
            twin, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # of several types, by validators of transformers
        raise ValueError(f"the weights in {folder} cannot be read: {error}; download the model again") from None
    tied = {"lm_head.weight"} if twin.config.tie_word_embeddings else set()
    missing, surplus = sorted(set(info["missing_keys"]) - tied), sorted(info["unexpected_keys"])
    if missing:
        raise ValueError(f"{folder} has no weights for {', '.join(missing[:3])}: download the model again")
    if surplus:
        raise ValueError(
            f"{folder} has weights for {', '.join(surplus[:3])}, which the {twin.config.model_type} of its config.json "
            "does not have: config.json and the weights are of different models"
        )
    if not allow_nonfinite:
        check_finite(twin, folder)
    return twin


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars, and its reports on loaded and missing weights, which are checked here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def check_finite(model: nn.Module, folder: Path) -> None:
    """Raises ConfigError, which names file and key, where a weight that was read from `folder` is NaN or infinite."""
    bad = next((name for name, weight in model.state_dict().items() if not _is_finite(weight)), None)
    if bad is None:
        return
    places = ((file, key) for file, key, weight in _saved_weights(folder) if not _is_finite(weight))
    file, key = next(places, (folder, bad))  # a weight may also overflow in the precision of the model
    raise ConfigError(
        f"{file}: the weight {key} has values that are NaN or infinite, and so would be every loss: download the model "
        f"again, or allow such weights ({ALLOW})"
    )


def _is_finite(weight: Tensor) -> bool:
    """Whether no value is NaN or infinite: a finite sum shows it fast, and one that is not may be an overflow."""
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())


def _saved_weights(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118, because it is no dictionary
                    yield file, key, weights.get_tensor(key)
        except (OSError, SafetensorError):  # not of this model, which has been read
            continue


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


def first_position(inner: PreTrainedModel) -> int:
    """The position of a row's first token: 0, or one above the id of padding in models such as RoBERTa."""
    tables = [vars(m) for m in inner.modules() if "position_embeddings" in m._modules]
    return max((1 + table["padding_idx"] for table in tables if isinstance(table.get("padding_idx"), int)), default=0)


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
    hidden = getattr(_output(inner.base_model, inner, path), "last_hidden_state", None)
    if hidden is None:
        raise ValueError(
            f"model.path={path} is a {inner.config.model_type}, whose hidden states transformers does not return: use "
            "another type"
        )
    earlier, last = ((hidden[0, place] - hidden[1, place]).abs().max() for place in (0, 1))
    return bool(earlier > 1e-5 * last)


@torch.no_grad()
def _output(module: PreTrainedModel, inner: PreTrainedModel, path: str) -> ModelOutput:
    """The output of the model, or of a part of it, for two rows of two tokens that differ only in the second token.

    Raises ValueError where the model does not run. Id 0 and the id of padding are not used: their embeddings may be 0.
    """
    table = inner.get_input_embeddings().weight
    padding = setting(inner.config, "pad_token_id")
    first, second, other = [i for i in range(1, len(table)) if i != padding][:3]
    try:
        with evaluation_mode(inner):
            return module(input_ids=torch.tensor([[first, second], [first, other]], device=table.device))
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(f"model.path={path} does not run with this model.config: {error}") from None


@torch.no_grad()
def _agrees(head: HFHead, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the head gives the logits of the model; False where all logits are 0, which proves nothing."""
    size = float(logits.abs().max())
    try:
        return size > 0 and torch.allclose(head(hidden), logits, atol=1e-4 * size, rtol=1e-4)
    except RuntimeError:  # shapes that do not fit
        return False


STATES = ("conv_states", "recurrent_states")  # of layers that keep no keys, by number


class HFCache(DecodingCache):
    """A cache of transformers, with the mask of its real positions."""

    def __init__(self, config: PretrainedConfig) -> None:
        from transformers import DynamicCache

        super().__init__()
        self.inner: TransformersCache = DynamicCache(config=config)

    def __len__(self) -> int:
        return int(self.inner.get_seq_length())  # a tensor where the first layer keeps no keys

    def tensors(self) -> list[Tensor]:
        """Keys, values and states of all layers."""
        kept: list[Tensor | None] = []
        for layer in map(vars, self.inner.layers):
            kept += [layer[name] for name in ("keys", "values") if name in layer]
            kept += [state for name in STATES if name in layer for state in layer[name].values()]
        return [tensor for tensor in kept if tensor is not None]

    def select(self, rows: Int[Tensor, "_"], length: int) -> HFCache:
        """Keeps the rows of these numbers, in that order."""
        selected = copy.copy(self)
        selected.inner = copy.copy(self.inner)
        selected.inner.layers = [copy.copy(layer) for layer in self.inner.layers]
        for layer in selected.inner.layers:
            for name, value in vars(layer).items():
                if isinstance(value, dict):  # states of linear attention and of convolutions, and flags of each
                    vars(layer)[name] = {
                        i: state[rows] if name in STATES and state is not None else state for i, state in value.items()
                    }
                elif isinstance(value, Tensor) and value.ndim == 0:  # a count that the layer changes in place
                    vars(layer)[name] = value.clone()
            if "keys" in vars(layer):
                layer.batch_select_indices(rows)
        selected.real = None if self.real is None else self.real[rows]
        return selected
