"""A Transformer as its Hugging Face twin, and back: same logits, every multiplier folded into weights.

    dense, no QK-norm  LlamaForCausalLM        dense, QK-norm  Qwen3ForCausalLM
    experts, no QK-norm  MixtralForCausalLM    experts, QK-norm  Qwen3MoeForCausalLM

Folding is exact because every multiplier stands beside a linear map or a gain: attention scale into the queries (or
their gain), residual weight into the projections, embedding multiplier into the table, output multiplier into the
final gain. It refuses what the twin cannot say (windows, soft-caps, shared experts, GELU), and names it.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kleiber.models.hf.config import KINDS, read_folder
from kleiber.models.transformer import Block, Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.mlp import SwiGLU
from kleiber.nn.moe import MoE, interleaved_moe
from kleiber.nn.mup import StandardParametrization
from kleiber.nn.routers.topk import Switch, TopK

State = dict[str, Tensor]


def to_hf(model: Transformer, bos: int | None = None, eos: int | None = None, pad: int | None = None) -> Any:
    """The Hugging Face twin of `model`, on the CPU, in its precision; bos, eos, pad are token ids for its config.

    Raises ValueError for what no twin can say.
    """
    import transformers

    _refuse(model)
    qk_norm, experts = _attention(model).q_norm is not None, _mixtures(model)
    name = {(False, False): "Llama", (True, False): "Qwen3", (False, True): "Mixtral", (True, True): "Qwen3Moe"}
    kind = name[qk_norm, bool(experts)]
    options = (
        _config(model)
        | _expert_config(model, qk_norm)
        | {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    )
    with torch.random.fork_rng(devices=[]):
        twin = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**options))
    twin.to(model.embedding.weight.dtype).load_state_dict(_export(model), strict=True)
    return twin.eval()


def from_hf(twin: Any, context: int | None = None) -> Transformer:
    """The Transformer with the weights of a Llama, Qwen3, Mixtral or Qwen3-MoE model, in standard parametrisation.

    context  longest row; null: the twin's `max_position_embeddings`. Raises ValueError for another architecture.
    """
    config = twin.config
    _refuse_config(config)
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


def load_hf(model: Transformer, folder: Path) -> None:
    """Puts the safetensors weights of a Hugging Face folder into `model`, which `hf_config.hf_model_node` describes.

    Raises ValueError where names or shapes differ, or where the model has multipliers that the weights do not know of.
    """
    if not isinstance(model.parametrization, StandardParametrization):
        raise ValueError("weights of Hugging Face fit model/parametrization=standard alone: its multipliers are all 1")
    state = read_folder(folder, model.embedding.weight.dtype).state_dict()
    try:
        model.load_state_dict(_import(state, model), strict=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} are not those of this model: {error}") from None


def _attention(model: Transformer) -> FullAttention:
    return model.blocks[0].attention  # type: ignore[return-value]


def _mixtures(model: Transformer) -> list[MoE]:
    return [block.mlp for block in model.blocks if isinstance(block.mlp, MoE)]


def _refuse(model: Transformer) -> None:
    for block in model.blocks:
        if type(block.attention) is not FullAttention:
            raise ValueError(
                f"{type(block.attention).__name__} attention has no Hugging Face twin here: use model/attention=full"
            )
        if not isinstance(block.mlp, SwiGLU | MoE):
            raise ValueError(
                f"a {type(block.mlp).__name__} MLP has no Hugging Face twin here: use model/mlp=swiglu or moe"
            )
    if not model.causal:
        raise ValueError("a bidirectional model has no Hugging Face twin here: the twins are causal")
    if model.head.soft_cap is not None:
        raise ValueError(f"soft_cap={model.head.soft_cap} has no Hugging Face twin here: train without it")
    for moe in _mixtures(model):
        if moe.shared is not None:
            raise ValueError("shared experts have no Hugging Face twin here: use model.mlp.num_shared=0")
        if not isinstance(moe.router, TopK | Switch):
            raise ValueError(f"router {type(moe.router).__name__} has no Hugging Face twin here: use topk or switch")


def _config(model: Transformer) -> dict[str, Any]:
    attention, mlp = _attention(model), next((b.mlp for b in model.blocks if isinstance(b.mlp, SwiGLU)), None)
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


def _expert_config(model: Transformer, qk_norm: bool) -> dict[str, Any]:
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
            "Mixtral has experts in every layer and weights that sum to 1: use router=topk, every=1, or qk_norm=true"
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
        assert isinstance(block, Block)
        parts = _export_attention(block.attention, block.residual) | _export_mlp(block.mlp, block.residual)
        parts |= {
            "input_layernorm.weight": block.attention_norm.weight,
            "post_attention_layernorm.weight": block.mlp_norm.weight,
        }
        state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _export_attention(attention: Any, residual: float) -> State:
    scale, size = attention.scale * math.sqrt(attention.head_dim), attention.head_dim
    q, k, v = attention.qkv.weight.split([size * n for n in (attention.num_heads, *[attention.num_kv_heads] * 2)])
    state = {"k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": attention.out.weight * residual}
    if attention.q_norm is None:
        state["q_proj.weight"] = q * scale
    else:
        state |= {
            "q_proj.weight": q,
            "q_norm.weight": attention.q_norm.weight * scale,
            "k_norm.weight": attention.k_norm.weight,
        }
    return {f"self_attn.{name}": value for name, value in state.items()}


def _export_mlp(mlp: Any, residual: float) -> State:
    if isinstance(mlp, MoE):
        router = mlp.router.linear
        return {
            "mlp.gate.weight": router.weight * router.multiplier,
            "mlp.experts.gate_up_proj": mlp.experts.gate_up.transpose(1, 2),
            "mlp.experts.down_proj": mlp.experts.down.transpose(1, 2) * residual,
        }
    gate, up = mlp.gate_up.weight.chunk(2)
    return {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up, "mlp.down_proj.weight": mlp.down.weight * residual}


def _refuse_config(config: Any) -> None:
    if config.model_type not in KINDS:
        raise ValueError(f"model_type={config.model_type!r} cannot be read: give one of {', '.join(KINDS)}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bad = {
        "hidden_act": config.hidden_act != "silu",
        "attention_bias": getattr(config, "attention_bias", False),
        "mlp_bias": getattr(config, "mlp_bias", False),
        "head_dim": head_dim * config.num_attention_heads != config.hidden_size,
        "rope_parameters": config.rope_parameters.get("rope_type", "default") != "default",
        "sliding_window": _windowed(config),
    }
    for name, wrong in bad.items():
        if wrong:
            raise ValueError(f"{config.model_type} with {name}={getattr(config, name, None)!r} cannot be read exactly")


def _windowed(config: Any) -> bool:
    return getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None) is not None


def _expert_factory(config: Any) -> Any:
    """A factory of the layers of a Mixtral or Qwen3-MoE model, dense ones included."""
    if config.model_type == "mixtral":
        return partial(
            interleaved_moe,
            num_experts=config.num_local_experts,
            k=config.num_experts_per_tok,
            hidden=config.intermediate_size,
        )

    def layer(site: Any) -> nn.Module:
        dense = site.layer in config.mlp_only_layers or (site.layer + 1) % config.decoder_sparse_step
        if dense:
            return SwiGLU(site, config.intermediate_size)
        router = TopK if config.norm_topk_prob else Switch
        return MoE(site, config.num_experts, config.num_experts_per_tok, 0, config.moe_intermediate_size, router)

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
        found = _import_attention(part) | _import_mlp(part)
        found |= {
            "attention_norm.weight": part["input_layernorm.weight"],
            "mlp_norm.weight": part["post_attention_layernorm.weight"],
        }
        # Standard's attention scale is 1/sqrt(head_dim) and its multipliers are 1, as the twin's.
        assert isinstance(block, Block) and block.residual == 1
        ours |= {f"blocks.{layer}.{name}": value for name, value in found.items()}
    return ours


def _import_attention(part: State) -> State:
    found = {
        "attention.qkv.weight": torch.cat([part[f"self_attn.{name}_proj.weight"] for name in "qkv"]),
        "attention.out.weight": part["self_attn.o_proj.weight"],
    }
    norms = ("q_norm.weight", "k_norm.weight")
    return found | {f"attention.{name}": part[f"self_attn.{name}"] for name in norms if f"self_attn.{name}" in part}


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
