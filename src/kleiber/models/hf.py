"""Hugging Face models as transformers builds them: causal and masked language models, and encoders without a head.

Weights come from a folder (safetensors only) or are random, in any configuration. Code in a folder is never run. Packed
segments are not supported, and mixtures of experts train without a balance loss, as they do in transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kleiber.models.hf_config import PretrainedConfig, PreTrainedModel, configuration, setting
from kleiber.models.hf_pretrained import (
    HFCache,
    HFHead,
    NoHead,
    check_finite,
    find_head,
    first_position,
    quiet_transformers,
    reads_ahead,
)
from kleiber.nn.heads import TaskHead
from kleiber.nn.mup import StandardParametrization
from kleiber.records.progress import activity
from kleiber.types import Context, Depth, Json, VocabSize
from kleiber.types.batch import Batch, Output, Role
from kleiber.types.model import Model

SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id")


class HFModel(Model):
    """The model `inner`, as transformers builds it, in standard parametrization.

    vocab_size  number of token ids of the corpus, which must be that of a pretrained model
    path        a folder, a name on the hub, or with random weights also a model type (bert, gpt2, llama, ...)
    weights     pretrained, or random, drawn as transformers does for a model from scratch
    config      settings that replace those of the model's config, such as {hidden_size: 128}
    depth       number of layers: the first ones of a pretrained model; null: all
    context     longest row, in tokens
    allow_nonfinite  whether pretrained weights may be NaN or infinite
    """

    is_wrapped = True

    def __init__(
        self,
        vocab_size: VocabSize,
        path: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        config: Json | None = None,
        depth: Depth | None = None,
        context: Context = 256,
        allow_nonfinite: bool = False,
    ) -> None:
        super().__init__()
        self.inner: PreTrainedModel
        changes = dict(config or {}) | ({} if depth is None else {"num_hidden_layers": depth})
        settings, folder = configuration(path, weights, changes)
        if weights == "random":
            settings.vocab_size = vocab_size
            _remove_special_ids(settings)
        if setting(settings, "is_encoder_decoder") or not setting(settings, "num_attention_heads"):
            raise ValueError(
                f"model.path={path} is a {settings.model_type}, which must be a decoder or an encoder with attention"
            )
        auto = _auto(settings)
        with quiet_transformers():
            self.inner, missing = _build(auto, settings, folder, path)
        if folder is not None and not allow_nonfinite:
            check_finite(self.inner, folder)
        # The longest row that the model can read, in tokens; 0 where it has no limit.
        self.num_positions = max(0, int(setting(settings, "max_position_embeddings")) - first_position(self.inner))
        if 0 < self.num_positions < context:
            raise ValueError(
                f"model.context={context} must be <= {self.num_positions}, the positions of model.path={path}"
            )
        rows = self.embedding.weight.shape[0]
        if vocab_size != rows:
            raise ValueError(
                f"model.path={path} has {rows} token ids and the corpus {vocab_size}: leave out data.tokenizer, or "
                f"set data.tokenizer={path}"
            )
        self.config, self.context = settings, context
        self.vocab_size, self.width = rows, int(settings.hidden_size)
        self.parametrization = StandardParametrization()
        self.heads = nn.ModuleDict()
        whole = auto != "" and self._only_tied(missing)
        if not whole:  # an output layer without weights is left out
            self.inner = self.inner.base_model
        self.tied = any(matrix is self.embedding.weight for matrix in self.vocabulary()[1:])
        takes = inspect.signature(self.backbone.forward).parameters
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"  # renamed within version 5
        # Some models that transformers counts as causal read both directions: XLNet, XLM, BERT not saved as a decoder.
        self.causal = auto == "CausalLM" and not reads_ahead(self.inner, path)
        self._head = find_head(self.inner, whole, path)

    def _only_tied(self, missing: list[str]) -> bool:
        """Whether all missing weights are tied to the embedding."""
        table = self.embedding.weight
        return all(p is table for n, p in self.inner.named_parameters(remove_duplicate=False) if n in missing)

    @property
    def backbone(self) -> PreTrainedModel:
        """The model without its output layer."""
        return self.inner.base_model

    @property
    def embedding(self) -> nn.Embedding:
        return self.inner.get_input_embeddings()

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers: the list of modules whose length is the depth. Raises ValueError where there is none."""
        depth = self.config.num_hidden_layers
        lists = [m for m in self.backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if not lists:
            raise ValueError(
                f"a {self.config.model_type} has no list of its {depth} layers, which adapters need: set adapter=null"
            )
        return lists[0]

    @property
    def head(self) -> HFHead | NoHead:
        return self._head

    def forward(self, batch: Batch, caches: HFCache | None = None) -> Output:
        """The hidden states. Raises ValueError for packed segments, and for rows longer than the context."""
        if batch.segments is not None:
            raise ValueError(
                "model=hf attends to whole rows, across the documents that this data packs into a row: use model=gpt"
            )
        past = 0 if caches is None else len(caches)
        if past + batch.tokens.shape[1] > self.context:
            raise ValueError(f"{past + batch.tokens.shape[1]} tokens in a row exceed model.context={self.context}")
        options: dict[str, object] = {}
        real = batch.real if caches is None else caches.remember(batch.real, batch.tokens)
        if real is not None:
            options["attention_mask"] = real.long()
            if self.causal:  # the first real token is at position 0, also in a row padded on the left
                options["position_ids"] = (real.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        if self.causal:
            options["use_cache"] = caches is not None
        if caches is not None:
            options[self._cache_argument] = caches.inner
        return Output(self.backbone(input_ids=batch.tokens, **options).last_hidden_state)

    def add_head(self, name: str, outputs: int) -> None:
        if name not in self.heads:
            self.heads[name] = TaskHead(self.width, outputs)

    def freeze_head(self) -> None:
        inside = {id(parameter) for parameter in self.backbone.parameters()}
        for parameter in self.inner.parameters():
            if id(parameter) not in inside:
                parameter.requires_grad_(False)

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, which sets its weight decay; all learning rates are the same."""
        lookups = {id(m.weight) for m in self.inner.modules() if isinstance(m, nn.Embedding)}
        outputs = {id(matrix) for matrix in self.vocabulary()[1:]}
        taps = {id(m.weight) for m in self.inner.modules() if isinstance(m, nn.Conv1d)}  # vectors, one for each channel
        return {
            n: Role("vector", 1) if id(p) in taps else _role(n, p, id(p) in lookups, id(p) in outputs)
            for n, p in self.named_parameters()
        }

    def vocabulary(self) -> list[Tensor]:
        """The embedding and the matrix of the output layer, if there is one; the same matrix twice if they are tied."""
        output = self.inner.get_output_embeddings()
        return [self.embedding.weight] + ([output.weight] if output is not None else [])

    def idle(self) -> int:
        """Number of parameters of the experts that a token does not visit."""
        return round(sum(p.numel() * (1 - self._share(n, p)) for n, p in self.inner.named_parameters()))

    def forward_flops(self, time: int, read: Collection[str] = ()) -> float:
        """Approximate forward FLOPs per token: 2 per weight that a token visits, 4 per channel and pair in each layer.

        Windows of attention and operations other than matrix products are not taken into account.

        read  names of the task heads that are read in place of the layers outside of the backbone
        """
        heads = sum(head.flops(time) for head in self.read_heads(read))
        visited = sum(self.visited_weights(read).values())
        if self.tied and not read:
            visited += self.embedding.weight.numel()
        return 2.0 * visited + heads + self.attention_flops(time)

    def counted_flops(self, time: int, read: Collection[str] = ()) -> tuple[float, float]:
        """Approximate FLOPs of both passes, since modules of transformers do not report their own."""
        return self.forward_flops(time, read), self._backward_flops(time, read)

    def _backward_flops(self, time: int, read: Collection[str]) -> float:
        """Approximate backward FLOPs per token; twice the forward pass where everything is trained.

        Layers are assumed to begin with their norms (except those of outputs, as in BERT) and otherwise to run in the
        order of registration, and the matrices of a module to have the same input, except that the last one reads the
        results of the others.
        """
        visited = self.visited_weights(read)
        try:
            blocks = list(self.blocks)
        except ValueError:  # no list of layers
            blocks = [self.backbone]
        layer_of = {id(p): number for number, block in enumerate(blocks) for p in block.parameters()}
        parameters = [(name, p) for name, p in self.named_parameters() if not name.startswith("heads.")]
        total, entered = 0.0, False
        for number, layer in groupby(parameters, lambda item: layer_of.get(id(item[1]))):
            ordered = sorted(layer, key=lambda item: "norm" not in item[0].lower() or "output" in item[0])
            mixed = number is None
            for _, group in groupby(ordered, lambda item: _projection(item[0]).rpartition(".")[0]):
                modules = [list(items) for _, items in groupby(group, lambda item: _projection(item[0]))]
                *earlier, last = modules
                if _projection(last[0][0]).rpartition(".")[2].startswith("v"):  # values, beside queries and keys
                    earlier = modules
                reached = entered or any(p.requires_grad for items in earlier for _, p in items)
                for items in modules:
                    total += _matrix_flops(
                        items, visited, reached if items is last and earlier is not modules else entered
                    )
                if not mixed and any(name in visited for items in modules for name, _ in items):
                    total, mixed = total + 2 * self.attention_flops(time) / len(blocks) * reached, True
                entered = entered or any(p.requires_grad for items in modules for _, p in items)
        if self.tied and not read:
            total += 2.0 * self.embedding.weight.numel() * (self.embedding.weight.requires_grad + entered)
        return total + sum(head.flops(time) * (head.weight.requires_grad + entered) for head in self.read_heads(read))

    def visited_weights(self, read: Collection[str] = ()) -> dict[str, float]:
        """Weights that a token visits in each matrix, by name; without task heads and the embedding, tied or not.

        A low-rank update of experts is added to their matrices once a step, and costs a token nothing.

        read  names of the task heads that are read in place of the layers outside of the backbone
        """
        roles, inside = self.roles(), {id(parameter) for parameter in self.backbone.parameters()}
        return {
            n: p.numel() * self._share(n, p)
            for n, p in self.named_parameters()
            if p.ndim > 1 and roles[n].kind != "embedding" and not n.endswith("bias")
            if (id(p) in inside if read else not n.startswith("heads."))
            if not (".experts." in n and ".lora_" in n)
        }

    def read_heads(self, read: Collection[str]) -> list[TaskHead]:
        """The task heads of these names."""
        return [head for name, head in self.heads.items() if name in read and isinstance(head, TaskHead)]

    def attention_flops(self, time: int) -> float:
        """Forward FLOPs per token of queries with keys and of weights with values, in all layers."""
        size = setting(self.config, "head_dim") or self.width // self.config.num_attention_heads
        pairs = (time + 1) / 2 if self.causal else time
        return 4.0 * self.config.num_attention_heads * size * pairs * self.config.num_hidden_layers

    def _share(self, name: str, parameter: Tensor) -> float:
        """The share of a parameter that a token visits: k of the experts, and all of any other parameter."""
        total = setting(self.config, "num_local_experts") or setting(self.config, "num_experts", 1)
        stacked = parameter.ndim > 2 and len(parameter) == total
        segments = name.split(".")
        if "router" in segments or (not stacked and "experts" not in segments):
            return 1.0
        return setting(self.config, "num_experts_per_tok", total) / total

    def new_caches(self, length: int) -> HFCache:
        return HFCache(self.config)


def _projection(name: str) -> str:
    """The name of the module of a parameter, also where peft has added an update to it."""
    kept = [part for part in name.split(".")[:-1] if part not in ("base_layer", "lora_A", "lora_B", "default")]
    return ".".join(kept)


def _matrix_flops(items: Sequence[tuple[str, nn.Parameter]], visited: Mapping[str, float], entered: bool) -> float:
    """Backward FLOPs per token of the matrices of a module, with the updates of peft.

    An update of stacked experts is added to the matrices themselves, and needs the gradient of each whole matrix.
    """
    updated = any(p.requires_grad for name, p in items if ".lora_" in name)
    total = 0.0
    for name, p in items:
        stacked = p.ndim > 2
        trained = p.requires_grad or (stacked and updated)
        total += 2.0 * visited.get(name, 0.0) * (trained + (entered or ".lora_B." in name))
        entered = entered or (stacked and trained)
    return total


def _remove_special_ids(settings: PretrainedConfig) -> None:
    """Removes the ids of another vocabulary, or sets them to 0 where a type requires one; masks mark the padding."""
    for name in SPECIALS:
        if hasattr(settings, name):
            try:
                setattr(settings, name, None)
            except Exception:  # of several types, by validators of transformers
                setattr(settings, name, 0)


def _role(name: str, parameter: Tensor, lookup: bool, output: bool) -> Role:
    if parameter.ndim < 2 or name.endswith("bias"):  # a stack of experts has a matrix of biases
        return Role("vector", 1)
    if lookup:
        return Role("embedding", 1)
    fan_in = parameter.shape[-1]
    router = bool({"gate", "router"} & set(name.split("."))) and parameter.ndim == 2
    return Role("output" if output or router or name.startswith("heads.") else "hidden", fan_in)


def _auto(settings: PretrainedConfig) -> Literal["CausalLM", "MaskedLM", ""]:
    """Returns the suffix of the auto class of transformers that loads the model; "" for the class AutoModel.

    MaskedLM where the model type has it, unless the model was saved as a causal one.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind, saved = settings.model_type, (settings.architectures or [""])[0]
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not setting(settings, "is_decoder")
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked and not saved.endswith(("ForCausalLM", "LMHeadModel")):
        return "MaskedLM"
    return "CausalLM" if causal else ""


def _build(auto: str, settings: PretrainedConfig, folder: Path | None, path: str) -> tuple[PreTrainedModel, list[str]]:
    """The model in fp32, and the names of parameters without weights in the folder."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    kind = {"CausalLM": AutoModelForCausalLM, "MaskedLM": AutoModelForMaskedLM}.get(auto, AutoModel)
    if folder is None:
        try:
            model = kind.from_config(settings, trust_remote_code=False, dtype=torch.float32)
        except Exception as error:  # of several types, by validators of transformers
            raise ValueError(f"model.path={path} cannot be built with this model.config: {error}") from None
        model.get_input_embeddings().padding_idx = None  # with one, that row would get no gradient
        for module in model.modules():  # RoBERTa numbers positions from the id of padding, which is None here
            if not isinstance(module, nn.Embedding) and vars(module).get("padding_idx", 0) is None:
                module.padding_idx = -1
        return model, []
    options: Json = {"trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}
    try:
        with activity(f"loading the weights of {path}"):
            model, info = kind.from_pretrained(folder, config=settings, output_loading_info=True, **options)
    except Exception as error:  # of several types, by transformers and safetensors
        raise ValueError(f"model.path={path} cannot be loaded: {str(error).partition(chr(10))[0] or error!r}") from None
    backbone = id(model.base_model)
    prefixes = tuple(f"{n}." for n, _ in model.named_modules() if n and id(model.get_submodule(n)) == backbone)
    lacking = [name for name in info["missing_keys"] if auto and name.startswith(prefixes)]
    if lacking:
        raise ValueError(
            f"model.path={path} has no weights for {', '.join(lacking[:3])}: download the model again, "
            "or set model.weights=random"
        )
    return model.train(), list(info["missing_keys"])
