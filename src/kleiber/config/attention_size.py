"""Parameters, FLOPs and cached values of the attention of a layer, computed from its config without torch."""

from __future__ import annotations

from kleiber.types import Config, Json

ATTENTION = (
    "kleiber.nn.FullAttention",
    "kleiber.nn.WindowAttention",
    "kleiber.nn.NoMixing",
    "kleiber.nn.LatentAttention",
    "kleiber.nn.GatedDeltaNet",
    "kleiber.nn.layer_pattern",
)
PATTERN = {  # kinds of layers of a `layer_pattern`
    "window": "kleiber.nn.WindowAttention",
    "full": "kleiber.nn.FullAttention",
    "latent": "kleiber.nn.LatentAttention",
    "delta": "kleiber.nn.GatedDeltaNet",
    "none": "kleiber.nn.NoMixing",
}
_SOFTMAX = ("num_heads", "num_kv_heads", "qk_norm", "rope_theta", "positions", "soft_cap")
RECEIVED = {  # options that a `layer_pattern` passes to its layers of each kind
    "window": (*_SOFTMAX, "value_residual"),
    "full": (*_SOFTMAX, "value_residual"),
    "latent": _SOFTMAX,
    "delta": ("num_heads",),
    "none": (),
}


def _heads(model: Config, node: Config, width: int) -> tuple[int, int, int]:
    """Returns the number of channels of all queries, of all keys, and of one head.

    node  the settings of the layer, in which numbers of heads may be set instead of in `model`
    """
    asked, shared = (model.get(name) or node.get(name) for name in ("num_heads", "num_kv_heads"))
    heads = int(asked or (2 if width < 128 else width // 64))
    shared = int(shared or heads)
    return width, shared * (width // heads), width // heads


def attention_size(model: Config, width: int, layer: int) -> tuple[int, int, float]:
    """Returns the size of the attention of one layer: weights of its matrices, other parameters, and other FLOPs.

    The FLOPs are those of a token's forward pass besides the matrices: scores and weighted sums.
    """
    kind, node = _mixer(model, layer)
    time, causal = int(model.get("context") or 256), bool(model.get("causal", True))
    if kind == "NoMixing":
        return 2 * width * width, 0, 0.0
    queries, keys, head_dim = _heads(model, node, width)
    if kind == "GatedDeltaNet":
        heads, taps = width // head_dim, 3 * width * int(node.get("taps") or 4)
        matrices = 5 * width * width + 2 * width * heads
        return matrices, taps + 2 * heads + head_dim, 2.0 * taps + 6.0 * width * head_dim
    flags = [value for value in (model.get("qk_norm"), node.get("qk_norm")) if value is not None]
    vectors = (2 * head_dim if all(flags) else 0) + (2 if node.get("value_residual") and layer else 0)
    pairs = (time + 1) / 2 if causal else float(time)
    if kind == "WindowAttention":
        window = int(node.get("window") or 64)
        visible = sum(min(i + 1, window) for i in range(time))
        pairs = (visible if causal else 2 * visible - time) / time
    if kind == "LatentAttention":
        rank, query_rank, turned = int(node.get("rank") or width // 4), node.get("query_rank"), width // 2
        matrices = (query_rank or width) * (width + turned) + width * (query_rank or 0) + width * (rank + head_dim // 2)
        vectors = rank + (query_rank or 0)
        return matrices + 2 * rank * width + width * width, vectors, 2.0 * (2 * width + turned) * pairs
    return width * (queries + 2 * keys) + queries * width, vectors, 4.0 * queries * pairs


def _mixer(model: Config, layer: int) -> tuple[str, Json]:
    """Returns the name of the class that mixes positions in a layer, and its settings.

    Raises ValueError for a class without a formula.
    """
    node: Json = {**(model.get("attention") or {"_target_": ATTENTION[0]})}
    if node["_target_"] not in ATTENTION:
        raise ValueError(
            f"model.attention={node['_target_']} has no FLOPs formula, which a design that chooses sizes needs; use "
            "design=grid"
        )
    name = str(node["_target_"]).rpartition(".")[2]
    if name != "layer_pattern":
        return name, node
    pattern = node.get("pattern") or ["window", "full"]
    kind = pattern[layer % len(pattern)]
    shared = {key: value for key, value in node.items() if key not in PATTERN}
    options: Json = node.get(kind) or {}
    return _mixer({"attention": shared | {"_target_": PATTERN[kind]} | options}, layer)


def rotation_table(model: Config, width: int, layer: int) -> int:
    """Returns the numbers in the tables of rotations that a layer of full or windowed attention keeps; else 0."""
    kind, node = _mixer(model, layer)
    positions = model.get("positions") or node.get("positions") or "rotary"
    if kind not in ("FullAttention", "WindowAttention") or positions != "rotary":
        return 0
    return 2 * int(model.get("context") or 256) * _heads(model, node, width)[2]


def attention_cache(model: Config, width: int, layer: int) -> int:
    """Returns the numbers that one layer keeps of one full context."""
    kind, node = _mixer(model, layer)
    _, keys, head_dim = _heads(model, node, width)
    if kind == "NoMixing":
        return 0
    if kind == "GatedDeltaNet":
        return width * head_dim + 3 * width * (int(node.get("taps") or 4) - 1)
    if kind == "LatentAttention":
        return model["context"] * (int(node.get("rank") or width // 4) + head_dim // 2)
    return 2 * model["context"] * keys
