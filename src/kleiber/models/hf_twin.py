"""Conversion of a Transformer to a Hugging Face model with equal logits, its twin, and back.

    dense, no QK-norm  LlamaForCausalLM        dense, QK-norm  Qwen3ForCausalLM
    experts, no QK-norm  MixtralForCausalLM    experts, QK-norm  Qwen3MoeForCausalLM

Multipliers are folded into weights, which is exact because each one is next to a linear map or a gain: the attention
scale goes into the queries (or their gain), the residual weight into the projections, the embedding multiplier into the
table, and the output multiplier into the final gain. Models with windows, soft-caps, shared experts or GELU have no
twin, and converting them raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kleiber.models.hf_config import DEFAULTS, KINDS, PretrainedConfig, PreTrainedModel, check_convertible
from kleiber.models.hf_pretrained import read_folder
from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.mlp import RMSNorm, SwiGLU
from kleiber.nn.moe import MoE
from kleiber.nn.mup import Site, StandardParametrization
from kleiber.nn.routers.topk import Switch, TokenChoice, TopK
from kleiber.types import Json
from kleiber.types.model import MLP, Attention

State = dict[str, Tensor]


def to_hf(
    model: Transformer, bos: int | None = None, eos: int | None = None, pad: int | None = None
) -> PreTrainedModel:
    """The Hugging Face twin of `model`, on the CPU, in the same precision. Raises ValueError where there is none.

    bos, eos, pad  token ids for its config
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    _check(model)
    qk_norm, experts = _attention(model).q_norm is not None, bool(_mixtures(model))
    kind = next(kind for kind, parts in KINDS.items() if parts == (qk_norm, experts))
    tokens: Json = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    with torch.random.fork_rng(devices=[]):
        config = CONFIG_MAPPING[kind](**_config(model), **_expert_config(model, qk_norm), **tokens)
        build: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        twin = build(config)
    twin.to(model.embedding.weight.dtype).load_state_dict(_export(model), strict=True)
    return twin.eval()


def from_hf(twin: PreTrainedModel, context: int | None = None) -> Transformer:
    """The Transformer with the weights of a Llama, Qwen3, Mixtral or Qwen3-MoE model, in standard parametrization.

    Raises ValueError for other architectures.

    context  longest row, in tokens; None: the twin's `max_position_embeddings`
    """
    config = twin.config
    if config.model_type not in KINDS:
        raise ValueError(f"model_type={config.model_type!r} must be one of {', '.join(KINDS)}")
    check_convertible(DEFAULTS[config.model_type] | config.to_dict())
    qk_norm, experts = KINDS[config.model_type]
    mlp = _expert_factory(config) if experts else partial(SwiGLU, hidden=config.intermediate_size)
    model = Transformer(
        config.vocab_size,
        config.num_hidden_layers,
        config.hidden_size,
        context=context or config.max_position_embeddings,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        mlp=mlp,
        parametrization=StandardParametrization(),
        tied=config.tie_word_embeddings,
        qk_norm=qk_norm,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        norm_eps=config.rms_norm_eps,
    )
    state = {name: value.detach() for name, value in twin.state_dict().items()}
    model.to(twin.dtype).load_state_dict(_import(state, model), strict=True)
    return model


def load_hf(model: Transformer, folder: Path, allow_nonfinite: bool = False) -> None:
    """Loads the safetensors weights of a Hugging Face folder into `model`, which was built by its `hf_model_node`.

    Task heads, which such a folder does not have, keep their weights.

    allow_nonfinite  whether weights may be NaN or infinite

    Raises ValueError where names or shapes differ, and for a parametrization other than the standard one.
    """
    if not isinstance(model.parametrization, StandardParametrization):
        raise ValueError("weights of Hugging Face models need model/parametrization=standard, whose multipliers are 1")
    state = read_folder(folder, model.embedding.weight.dtype, allow_nonfinite).state_dict()
    heads = {f"heads.{name}": value for name, value in model.heads.state_dict().items()}
    try:
        model.load_state_dict(_import(state, model) | heads, strict=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} do not fit this model: {error}") from None


def _attention(model: Transformer) -> FullAttention:
    attention = model.blocks[0].attention
    assert isinstance(attention, FullAttention)
    return attention


def _mixtures(model: Transformer) -> list[MoE]:
    return [block.mlp for block in model.blocks if isinstance(block.mlp, MoE)]


def _check(model: Transformer) -> None:
    """Raises ValueError for a model that no twin can represent."""
    if model.positions is not None:
        raise ValueError("model.positions=learned has no Hugging Face twin: use model.positions=rotary")
    for block in model.blocks:
        if type(block.attention) is not FullAttention:
            raise ValueError(f"{type(block.attention).__name__} has no Hugging Face twin: use model/attention=full")
        options = {
            "model.positions": "rotary",
            "model.attention.soft_cap": None,
            "model.attention.value_residual": False,
            "model.attention.prefix": False,
        }
        for key, value in block.attention.settings().items():
            if value != options.get(key, value):
                raise ValueError(f"{key}={value} has no Hugging Face twin: remove it")
        if block.norm != "pre":
            raise ValueError(f"model.norm={block.norm} has no Hugging Face twin: use model.norm=pre")
        if not isinstance(block.mlp_norm, RMSNorm):
            raise ValueError("model.norm_type=layernorm has no Hugging Face twin: use model.norm_type=rmsnorm")
        if not isinstance(block.mlp, SwiGLU | MoE):
            raise ValueError(f"{type(block.mlp).__name__} has no Hugging Face twin: use model/mlp=swiglu or moe")
    if not model.causal:
        raise ValueError("a model that is not causal has no Hugging Face twin")
    if model.head.soft_cap is not None:
        raise ValueError(f"model.soft_cap={model.head.soft_cap} has no Hugging Face twin: set model.soft_cap=null")
    for moe in _mixtures(model):
        if moe.shared is not None:
            raise ValueError("shared experts have no Hugging Face twin: use model.mlp.num_shared=0")
        if not isinstance(moe.router, TopK | Switch):
            raise ValueError(f"router {type(moe.router).__name__} has no Hugging Face twin: use topk or switch")


def _config(model: Transformer) -> Json:
    attention, mlp = _attention(model), next((b.mlp for b in model.blocks if isinstance(b.mlp, SwiGLU)), None)
    assert attention.rope is not None, "checked before"
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": mlp.hidden if mlp is not None else _mixtures(model)[0].hidden,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope.theta},
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
    }


def _expert_config(model: Transformer, qk_norm: bool) -> Json:
    mixtures = _mixtures(model)
    if not mixtures:
        return {}
    first, raw = mixtures[0], isinstance(mixtures[0].router, Switch)
    sparse = [isinstance(block.mlp, MoE) for block in model.blocks]
    if qk_norm:
        return {
            "num_experts": first.num_experts,
            "num_experts_per_tok": first.k,
            "moe_intermediate_size": first.hidden,
            "norm_topk_prob": not raw,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [layer for layer, experts in enumerate(sparse) if not experts],
            "use_sliding_window": False,
        }
    if raw or not all(sparse):
        raise ValueError(
            "the Hugging Face twin, Mixtral, has experts in every layer, with weights that sum to 1: use "
            "model/router=topk and model.mlp.every=1, or model.qk_norm=true for a Qwen3-MoE"
        )
    return {"num_local_experts": first.num_experts, "num_experts_per_tok": first.k, "sliding_window": None}


def _export(model: Transformer) -> State:
    up = model.embedding_multiplier
    state = {
        "model.embed_tokens.weight": model.embedding.weight * up,
        "lm_head.weight": model.head.weight * (up if model.tied else 1),
        "model.norm.weight": model.norm.weight * model.head.multiplier / (up if model.tied else 1),
    }
    for layer, block in enumerate(model.blocks):
        parts = _export_attention(block.attention, block.residual) | _export_mlp(block.mlp, block.residual)
        parts |= {
            "input_layernorm.weight": block.attention_norm.weight,
            "post_attention_layernorm.weight": block.mlp_norm.weight,
        }
        state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _export_attention(attention: Attention, residual: float) -> State:
    assert isinstance(attention, FullAttention)
    scale, size = attention.scale * math.sqrt(attention.head_dim), attention.head_dim
    q, k, v = attention.qkv.weight.split([size * n for n in (attention.num_heads, *[attention.num_kv_heads] * 2)])
    state = {"k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": attention.out.weight * residual}
    if attention.q_norm is None or attention.k_norm is None:
        state["q_proj.weight"] = q * scale
    else:
        state |= {
            "q_proj.weight": q,
            "q_norm.weight": attention.q_norm.weight * scale,
            "k_norm.weight": attention.k_norm.weight,
        }
    return {f"self_attn.{name}": value for name, value in state.items()}


def _export_mlp(mlp: MLP, residual: float) -> State:
    if isinstance(mlp, MoE):
        assert isinstance(mlp.router, TokenChoice)
        router = mlp.router.linear
        return {
            "mlp.gate.weight": router.weight * router.multiplier,
            "mlp.experts.gate_up_proj": mlp.experts.gate_up.transpose(1, 2),
            "mlp.experts.down_proj": mlp.experts.down.transpose(1, 2) * residual,
        }
    assert isinstance(mlp, SwiGLU)
    gate, up = mlp.gate_up.weight.chunk(2)
    return {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up, "mlp.down_proj.weight": mlp.down.weight * residual}


def _expert_factory(config: PretrainedConfig) -> Callable[[Site], MLP]:
    """A factory of the MLPs of a Mixtral or Qwen3-MoE model, dense ones included."""
    mixtral = config.model_type == "mixtral"
    hidden = config.intermediate_size if mixtral else config.moe_intermediate_size
    num_experts = config.num_local_experts if mixtral else config.num_experts
    router = TopK if mixtral or config.norm_topk_prob else Switch

    def layer(site: Site) -> MLP:
        if not mixtral and (site.layer in config.mlp_only_layers or (site.layer + 1) % config.decoder_sparse_step):
            return SwiGLU(site, config.intermediate_size)
        return MoE(site, num_experts, config.num_experts_per_tok, hidden=hidden, router=router)

    return layer


def _import(state: State, model: Transformer) -> State:
    ours = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "head.weight": state["lm_head.weight"],
        "norm.weight": state["model.norm.weight"],
    }
    for layer, block in enumerate(model.blocks):
        prefix = f"model.layers.{layer}."
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        weights = _import_attention(part) | _import_mlp(part)
        weights |= {
            "attention_norm.weight": part["input_layernorm.weight"],
            "mlp_norm.weight": part["post_attention_layernorm.weight"],
        }
        # The standard parametrization has the twin's attention scale, 1/sqrt(head_dim), and multipliers of 1.
        assert block.residual == 1
        ours |= {f"blocks.{layer}.{name}": value for name, value in weights.items()}
    return ours


def _import_attention(part: State) -> State:
    weights = {
        "attention.qkv.weight": torch.cat([part[f"self_attn.{name}_proj.weight"] for name in "qkv"]),
        "attention.out.weight": part["self_attn.o_proj.weight"],
    }
    norms = ("q_norm.weight", "k_norm.weight")
    return weights | {f"attention.{name}": part[f"self_attn.{name}"] for name in norms if f"self_attn.{name}" in part}


def _import_mlp(part: State) -> State:
    if "mlp.gate.weight" in part:
        return {
            "mlp.router.linear.weight": part["mlp.gate.weight"],
            "mlp.experts.gate_up": part["mlp.experts.gate_up_proj"].transpose(1, 2),
            "mlp.experts.down": part["mlp.experts.down_proj"].transpose(1, 2),
        }
    return {
        "mlp.gate_up.weight": torch.cat([part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"]]),
        "mlp.down.weight": part["mlp.down_proj.weight"],
    }
