"""How large a model of a config will be and what a token of it costs, by arithmetic on the config, without torch.

A design must price hundreds of sizes before any model is built. The formulas are those of `models.counting`, term by
term, and a test holds the two together. It refuses a layer that it has no formula for, instead of guessing one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ATTENTION = (
    "kleiber.nn.FullAttention",
    "kleiber.nn.WindowAttention",
    "kleiber.nn.NoMixing",
)
MLP = ("kleiber.nn.SwiGLU", "kleiber.nn.GELU", "kleiber.nn.interleaved_moe")
BYTES_VOCABULARY = 272  # 256 bytes, end of text and mask, padded to a multiple of 16


@dataclass(frozen=True)
class Size:
    """One model: parameters (all, those a token visits, those outside the vocabulary) and training FLOPs per token."""

    width: int
    total: int
    active: int
    non_embedding: int
    flops_per_token: float


def size(model: Mapping[str, Any], vocab_size: int, width: int | None = None) -> Size:
    """The Size of a resolved `model` node, at another `width` where given.

    Matrices cost 2 FLOPs a weight, attention 4 channels per (query, key) pair that the mask allows; training is three
    times the forward pass. Errors: ValueError for an attention or MLP without a formula here.
    """
    depth = int(model.get("depth") or 2)
    width = int(width or model.get("width") or int(model.get("aspect") or 64) * depth)
    mixing, mixing_flops = _attention(model, width)
    total = active = 0
    forward = float(depth * mixing_flops)
    for layer in range(depth):
        every, visited, pairs = _mlp(model, width, layer)
        norms = 2 * width
        total += mixing + every + norms
        active += mixing + visited + norms
        forward += 2.0 * (_matrices(model, width) + pairs)
    vocabulary = vocab_size * width * (1 if model.get("tied", True) else 2)
    forward += 2.0 * vocab_size * width
    non_embedding = total + width
    return Size(width, non_embedding + vocabulary, active + width + vocabulary, non_embedding, 3 * forward)


def vocabulary_of(data: Mapping[str, Any]) -> int:
    """Entries of the tokenizer that a `data` node names; ValueError for one that only its files know."""
    if isinstance(data.get("data"), Mapping):  # a data set around another one
        return vocabulary_of(data["data"])
    tokenizer = data.get("tokenizer", "bytes")
    if tokenizer == "bytes":
        return BYTES_VOCABULARY
    if tokenizer == "bpe":
        return -(-int(data.get("vocab_size") or 4096) // 16) * 16
    raise ValueError(f"data.tokenizer={tokenizer}: a design knows the vocabulary of bytes and bpe; use design=grid")


def _heads(model: Mapping[str, Any], width: int) -> tuple[int, int, int]:
    """Query channels, key channels, channels of one head."""
    asked = model.get("num_heads")
    heads = int(asked) if asked else 2 if width < 128 else width // 64
    shared = int(model.get("num_kv_heads") or heads)
    return width, shared * (width // heads), width // heads


def _attention(model: Mapping[str, Any], width: int) -> tuple[int, float]:
    """Parameters of one attention layer, and forward FLOPs per token of its scores and mixing."""
    node = model.get("attention") or {"_target_": ATTENTION[0]}
    kind, time, causal = str(node["_target_"]), int(model.get("context") or 256), bool(model.get("causal", True))
    if kind not in ATTENTION:
        raise ValueError(f"model.attention={kind}: a design has no formula for its cost; use design=grid")
    if kind.endswith("NoMixing"):
        return 2 * width * width, 0.0
    queries, _, head_dim = _heads(model, width)
    flags = [value for value in (model.get("qk_norm"), node.get("qk_norm")) if value is not None]
    norms = 2 * head_dim if all(flags) else 0
    pairs = (time + 1) / 2 if causal else float(time)
    if kind.endswith("WindowAttention"):
        window = int(node.get("window") or 64)
        seen = sum(min(i + 1, window) for i in range(time))
        pairs = (seen if causal else 2 * seen - time) / time
    return _matrices(model, width) + norms, 4.0 * queries * pairs


def _matrices(model: Mapping[str, Any], width: int) -> int:
    """Weights of the matrices of one attention layer."""
    node = model.get("attention") or {"_target_": ATTENTION[0]}
    if str(node["_target_"]).endswith("NoMixing"):
        return 2 * width * width
    queries, keys, _ = _heads(model, width)
    return width * (queries + 2 * keys) + queries * width


def _mlp(model: Mapping[str, Any], width: int, layer: int) -> tuple[int, int, int]:
    """Weights of one MLP, those that a token visits, and those it multiplies with (a router included)."""
    node = model.get("mlp") or {"_target_": MLP[0]}
    kind = str(node["_target_"])
    if kind not in MLP:
        raise ValueError(f"model.mlp={kind}: a design has no formula for its cost; use design=grid")
    gated = -(-8 * width // 48) * 16
    if kind.endswith("GELU"):
        count = 2 * width * int(node.get("hidden") or 4 * width)
        return count, count, count
    if kind.endswith("SwiGLU") or (layer + 1) % int(node.get("every") or 1):
        hidden = int(node.get("hidden") or gated) if kind.endswith("SwiGLU") else gated
        return 3 * width * hidden, 3 * width * hidden, 3 * width * hidden
    experts, k, shared = (int(node.get(key, usual)) for key, usual in (("num_experts", 8), ("k", 2), ("num_shared", 0)))
    hidden = int(node.get("hidden") or -(-gated // (8 * (k + shared))) * 8)
    one = 3 * width * hidden
    router, common = experts * width, 3 * width * shared * hidden
    return router + common + experts * one, router + common + k * one, router + common + k * one
