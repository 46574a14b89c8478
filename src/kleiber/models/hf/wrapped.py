"""A Hugging Face model as it is, behind the contract of our own: hidden states, a head, roles, counts, decoding.

Causal and masked language models and bare encoders, with the weights of a folder (safetensors alone) or random ones in
any configuration. Code that comes with a model is never run. It refuses packed segments, and a loss on an output layer
that the folder holds no weights for. Mixture models train without a balance loss, as they do in transformers.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kleiber.models.hf.config import configuration
from kleiber.models.hf.head import HFHead, NoHead, find_head, reads_ahead
from kleiber.models.transformer import TaskHead
from kleiber.nn.kv_cache import Remembered
from kleiber.nn.mup import StandardParametrization
from kleiber.types.batch import Batch, Output, Role
from kleiber.types.model import Model

SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id")


class HFModel(Model):
    """`inner` is the model as transformers builds it, `heads` holds output layers of tasks, standard parametrisation.

    vocab_size  ids of the corpus's tokenizer: rows of a random model's embedding, and what a trained one must have
    path        a folder, a name on the hub, or with random weights also a model type (bert, gpt2, llama ...)
    weights     pretrained, or random, drawn as transformers does for a model from scratch
    config      values that replace those of the model's own config, such as {hidden_size: 128}
    depth       layers; of a trained model the first ones; null: the model's own number
    context     longest row, in tokens
    """

    def __init__(
        self,
        vocab_size: int,
        path: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        config: dict[str, Any] | None = None,
        depth: int | None = None,
        context: int = 256,
    ) -> None:
        super().__init__()
        self.inner: Any
        changes = dict(config or {}) | ({} if depth is None else {"num_hidden_layers": depth})
        settings, folder = configuration(path, weights, changes)
        if weights == "random":
            settings.vocab_size = vocab_size
            for name in SPECIALS:  # ids of another vocabulary; padding is told by the mask
                if hasattr(settings, name):
                    setattr(settings, name, None)
        if getattr(settings, "is_encoder_decoder", False) or not hasattr(settings, "num_attention_heads"):
            raise ValueError(f"model.path={path}: {settings.model_type} is not one tower of attention: give another")
        auto = _auto(settings)
        with _quiet():
            self.inner, missing = _build(auto, settings, folder, path)
        longest = getattr(settings, "max_position_embeddings", None)
        if longest is not None and 0 < longest < context:
            raise ValueError(f"model.context={context} exceeds the {longest} positions of model.path={path}")
        rows = self.embedding.weight.shape[0]
        if vocab_size != rows:
            raise ValueError(
                f"model.path={path} has {rows} token ids, and the corpus {vocab_size}: leave data.tokenizer out, or "
                f"set data.tokenizer={path}"
            )
        self.config, self.context = settings, context
        self.vocab_size, self.width = rows, int(settings.hidden_size)
        self.parametrization = StandardParametrization()
        self.heads = nn.ModuleDict()
        whole = auto != "" and self._only_tied(missing)
        if not whole:  # an output layer that came without weights is none
            self.inner = self.inner.base_model
        self.tied = any(matrix is self.embedding.weight for matrix in self.vocabulary()[1:])
        takes = inspect.signature(self.backbone.forward).parameters
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"  # renamed in the course of version 5
        # Some that transformers counts among the causal ones read both ways: XLNet, XLM, BERT saved as no decoder.
        self.causal = auto == "CausalLM" and not reads_ahead(self.inner, path)
        self._head = find_head(self.inner, whole, path)

    def _only_tied(self, missing: list[str]) -> bool:
        """Whether the folder lacks nothing but names of matrices that are another one's."""
        table = self.embedding.weight
        return all(p is table for n, p in self.inner.named_parameters(remove_duplicate=False) if n in missing)

    @property
    def backbone(self) -> Any:
        """The model without its output layer."""
        return self.inner.base_model

    @property
    def embedding(self) -> nn.Embedding:
        return self.inner.get_input_embeddings()

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, wherever the architecture keeps them."""
        depth = self.config.num_hidden_layers
        lists = [m for m in self.backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if not lists:
            raise ValueError(f"a {self.config.model_type} has no list of {depth} layers of its own: leave out adapter")
        return lists[0]

    @property
    def head(self) -> HFHead | NoHead:
        return self._head

    def forward(self, batch: Batch, caches: Any = None) -> Output:
        """Hidden states as the model's own output layer reads them. `caches` is one of `new_caches`, which grows."""
        if batch.segments is not None:
            raise ValueError(
                "model=hf attends over the whole row: data that packs documents by segments needs model=gpt"
            )
        past = 0 if caches is None else len(caches)
        if past + batch.tokens.shape[1] > self.context:
            raise ValueError(f"{past + batch.tokens.shape[1]} tokens in a row exceed model.context={self.context}")
        options: dict[str, Any] = {}
        real = batch.real if caches is None else caches.remember(batch.real, batch.tokens)
        if real is not None:
            options["attention_mask"] = real.long()
            if self.causal:  # a row may be padded on its left, and its first real token is position 0 all the same
                options["position_ids"] = (real.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        if self.causal:
            options["use_cache"] = caches is not None
        if caches is not None:
            options[self._cache_argument] = caches.inner
        return Output(self.backbone(input_ids=batch.tokens, **options).last_hidden_state)

    def add_head(self, name: str, outputs: int) -> None:
        """Gives the model an output layer of its own for a task, as `heads[name]`, where it has none of that name."""
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs)

    def leave_out_head(self) -> None:
        """Stops training what lies outside of the backbone, for an objective that does not read the output layer."""
        inside = {id(parameter) for parameter in self.backbone.parameters()}
        for parameter in self.inner.parameters():
            if id(parameter) not in inside:
                parameter.requires_grad_(False)

    def roles(self) -> dict[str, Role]:
        """The role of every parameter. Standard parametrisation gives all the same rate; decay follows the kind."""
        lookups = {id(m.weight) for m in self.inner.modules() if isinstance(m, nn.Embedding)}
        outputs = {id(matrix) for matrix in self.vocabulary()[1:]}
        return {n: _role(n, p, id(p) in lookups, id(p) in outputs) for n, p in self.named_parameters()}

    def vocabulary(self) -> list[Tensor]:
        """The matrices of the vocabulary: lookup table and output layer, twice the same where they are one."""
        output = self.inner.get_output_embeddings()
        return [self.embedding.weight] + ([output.weight] if output is not None else [])

    def idle(self) -> int:
        """Parameters of the experts that a token does not visit."""
        return round(sum(p.numel() * (1 - self._share(n)) for n, p in self.inner.named_parameters()))

    def forward_flops(self, time: int, read: Collection[str] = ()) -> float:
        """Approximate forward FLOPs per token: 2 a weight that a token meets, 4 channels a pair in every layer.

        `read`: heads of tasks that are read in place of what lies outside of the backbone.

        From the config: windows of attention and what lies outside of matrices are not told apart.
        """
        roles, inside = self.roles(), {id(parameter) for parameter in self.backbone.parameters()}
        met = sum(
            p.numel() * self._share(n)
            for n, p in self.named_parameters()
            if p.ndim > 1 and roles[n].kind != "embedding" and (id(p) in inside if read else not n.startswith("heads."))
        )
        if self.tied and not read:
            met += self.embedding.weight.numel()
        size = getattr(self.config, "head_dim", None) or self.width // self.config.num_attention_heads
        pairs = (time + 1) / 2 if self.causal else time
        heads = sum(head.flops(time) for name, head in self.heads.items() if name in read)  # type: ignore[operator]
        attention = 4.0 * self.config.num_attention_heads * size * pairs * self.config.num_hidden_layers
        return 2.0 * met + heads + attention

    def _share(self, name: str) -> float:
        """The share of a parameter that one token meets: k of the experts, all of anything else."""
        if "experts" not in name.split("."):
            return 1.0
        total = getattr(self.config, "num_local_experts", None) or getattr(self.config, "num_experts", 1)
        return getattr(self.config, "num_experts_per_tok", total) / total

    def new_caches(self, length: int) -> HFCache:
        """An empty cache for decoding rows of up to `length` tokens."""
        return HFCache(self.config)


class HFCache(Remembered):
    """A cache of transformers' own, and which of its positions are real."""

    def __init__(self, config: Any) -> None:
        from transformers import DynamicCache

        super().__init__()
        self.inner = DynamicCache(config=config)

    def __len__(self) -> int:
        return self.inner.get_seq_length()


def _role(name: str, parameter: Tensor, lookup: bool, output: bool) -> Role:
    if parameter.ndim < 2:
        return Role("vector", 1)
    if lookup:
        return Role("embedding", 1)
    fan_in = parameter.shape[-1]
    router = bool({"gate", "router"} & set(name.split("."))) and parameter.ndim == 2
    return Role("output" if output or router or name.startswith("heads.") else "hidden", fan_in)


def _auto(settings: Any) -> Literal["CausalLM", "MaskedLM", ""]:
    """Which family of transformers' auto classes: by what the folder was saved as, else masked where that exists."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind, saved = settings.model_type, (settings.architectures or [""])[0]
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(settings, "is_decoder", False)
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked and not saved.endswith(("ForCausalLM", "LMHeadModel")):
        return "MaskedLM"
    return "CausalLM" if causal else ""


def _build(auto: str, settings: Any, folder: Path | None, path: str) -> tuple[Any, list[str]]:
    """The model in fp32, and the names that the folder holds no weights for."""
    import transformers

    kind: Any = getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel")
    if folder is None:
        try:
            model = kind.from_config(settings, trust_remote_code=False, dtype=torch.float32)
        except Exception as error:  # of a validator of transformers' own, which sees what we changed
            raise ValueError(f"model.path={path} with this model.config: {error}") from None
        for module in model.modules():  # RoBERTa's kind counts positions from the padding's id, and here is none
            if not isinstance(module, nn.Embedding) and getattr(module, "padding_idx", 0) is None:
                module.padding_idx = -1
        return model, []
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}
    try:
        model, told = kind.from_pretrained(folder, config=settings, output_loading_info=True, **options)
    except (KeyError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"model.path={path} cannot be loaded: {str(error).splitlines()[0]}") from None
    backbone = id(model.base_model)
    lost = [name for name in told["missing_keys"] if auto and not _outside(model, name, backbone)]
    if lost:
        raise ValueError(f"model.path={path} holds no weights for {lost[:3]}: it is damaged, or take weights=random")
    return model.train(), list(told["missing_keys"])


def _outside(model: Any, name: str, backbone: int) -> bool:
    """Whether a parameter lies outside of the backbone: in the output layer."""
    inside = {n for n, _ in model.named_modules() if id(model.get_submodule(n)) == backbone}
    return not any(name.startswith(f"{prefix}.") for prefix in inside if prefix)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of loaded and missing weights: what matters of it is refused by name."""
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
