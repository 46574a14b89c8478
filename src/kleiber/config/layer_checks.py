"""Checks that the layers of a Transformer can be built; each error names the keys. Imports no torch.

The rules are those of `nn`, whose layers raise the same errors when they are built without a config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from kleiber.config.attention_size import PATTERN, RECEIVED
from kleiber.config.errors import ConfigError
from kleiber.config.targets import argument, class_attribute, signature
from kleiber.types import Config, Json

SHARED = ("num_heads", "num_kv_heads", "qk_norm", "rope_theta", "positions")  # keys of model and of model.attention
NAMES = {target: kind for kind, target in PATTERN.items()}  # of kinds of attention


def check_layers(model: Config) -> None:
    """Raises ConfigError for a `model` node whose attention or MLP cannot be built."""
    width, width_text = _width(model)
    kinds = attention_kinds(model)
    for target, options in kinds.values():
        _check_agreement(options)
        refused = class_attribute(target, "refused_options") or ()
        asked = [_setting(key, value) for key, value in options.items() if key.rpartition(".")[2] in refused]
        if asked:
            reason = class_attribute(target, "refused_because")
            raise ConfigError(f"model/attention={reason}: remove {' and '.join(asked)}")
        if class_attribute(target, "is_recurrent") and argument(model, "causal") is False:
            raise ConfigError(
                f"model/attention={NAMES.get(target, target)} is causal, and model.causal=false: set another "
                "model/attention"
            )
        (theta, value), (key, kind) = _option(options, "rope_theta"), _option(options, "positions")
        if theta and kind not in (None, "rotary"):
            raise ConfigError(f"{_setting(theta, value)} needs model.positions=rotary, not {_setting(key, kind)}")
        if width and class_attribute(target, "head_multiple"):
            _check_heads(target, options, width, width_text)
    _check_pattern(model, kinds)
    _check_value_residual(model, kinds)
    _check_experts(model)


def attention_kinds(model: Config) -> dict[str, tuple[str, Json]]:
    """Returns the class of each kind of attention layer of a Transformer, and the options that are set, by their keys.

    The kinds are those of a pattern, in its order; otherwise there is one, named "". None for another model.
    """
    chosen = model.get("attention")
    if "attention" not in signature(str(model["_target_"])).parameters:
        return {}
    node: Json = {**chosen} if isinstance(chosen, Mapping) and "_target_" in chosen else {"_target_": PATTERN["full"]}
    options = _options(model, node)
    if node["_target_"] != "kleiber.nn.layer_pattern":
        return {"": (str(node["_target_"]), _set(options))}
    kinds: dict[str, tuple[str, Json]] = {}
    for kind in dict.fromkeys(argument(node, "pattern")):
        below = node.get(kind) or {"_target_": PATTERN[kind]}
        passed = {key: value for key, value in options.items() if key.rpartition(".")[2] in RECEIVED[kind]}
        passed |= {f"model.attention.{kind}.{key}": value for key, value in below.items()}
        kinds[kind] = (str(below["_target_"]), _set(passed))
    return kinds


def _options(model: Config, node: Config) -> Json:
    """Returns the options of a model and of its attention that apply to all layers, by key."""
    options = {f"model.{name}": model.get(name) for name in SHARED}
    return options | {f"model.attention.{key}": value for key, value in node.items() if not isinstance(value, Mapping)}


def _set(options: Json) -> Json:
    return {key: value for key, value in options.items() if value is not None}


def _setting(key: str, value: object) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _option(options: Json, name: str) -> tuple[str, object]:
    """Returns the key that decides an option of a layer, and its value; None where it is not set."""
    keys = [key for key in options if key.rpartition(".")[2] == name]
    return (keys[0], options[keys[0]]) if keys else ("", None)


def _check_agreement(options: Json) -> None:
    """Refuses an option that the model and its attention set to different values, of which the model's would win."""
    for name in SHARED:
        keys = [key for key in options if key.rpartition(".")[2] == name]
        if any(options[key] != options[keys[0]] for key in keys):
            settings = " and ".join(_setting(key, options[key]) for key in keys)
            raise ConfigError(f"{settings} contradict each other, as they set the same option: remove one of them")


def _width(model: Config) -> tuple[int | None, str]:
    """Returns the width of a model, and the key that sets it."""
    width, aspect, depth = (argument(model, name) for name in ("width", "aspect", "depth"))
    if width is None and aspect and depth:
        return aspect * depth, f"width {aspect * depth} (model.aspect x model.depth)"
    return width, f"model.width={width}"


def _check_heads(target: str, options: Json, width: int, width_text: str) -> None:
    key, heads = _option(options, "num_heads")
    if heads is None:
        heads = 2 if width < 128 else width // 64
        if width % heads or (width >= 128 and width % 64):
            raise ConfigError(f"{width_text} must be a multiple of 64, or set model.num_heads to a divisor of it")
    assert isinstance(heads, int)
    if width % heads:
        raise ConfigError(f"{key}={heads} must divide {width_text}")
    shared_key, shared = _option(options, "num_kv_heads")
    if isinstance(shared, int) and heads % shared:
        raise ConfigError(f"{shared_key}={shared} must divide {key or 'the number of heads'}={heads}")
    multiple = class_attribute(target, "head_multiple")
    is_rotary = class_attribute(target, "rotates_heads") and _option(options, "positions")[1] in (None, "rotary")
    parts = max(multiple, 2 if is_rotary else 1)
    if width // heads % parts:
        name = "model.positions=rotary" if multiple == 1 else f"model/attention={NAMES.get(target, target)}"
        raise ConfigError(
            f"{name} needs heads of a multiple of {parts} channels, and {width_text} has {heads} heads of "
            f"{width // heads}: change model.num_heads"
        )


def _check_pattern(model: Config, kinds: Mapping[str, tuple[str, Json]]) -> None:
    """Refuses a pattern with layers that would not exist, and options of a pattern that no layer receives."""
    if "" in kinds or not kinds:
        return
    node, depth = model["attention"], argument(model, "depth")
    pattern = argument(node, "pattern")
    text = f"model.attention.pattern=[{','.join(pattern)}]"
    if not 1 <= len(pattern) <= depth:
        raise ConfigError(f"{text} must have at most model.depth={depth} entries: set a larger model.depth")
    names = {"pattern", "_target_", "_partial_"}.union(*(RECEIVED[kind] for kind in kinds))
    options = {key: value for key, value in _set(_options(model, node)).items() if key.rpartition(".")[2] not in names}
    unused = [_setting(key, value) for key, value in options.items() if value != "learned"]
    if unused:
        settings = " and ".join(unused)
        raise ConfigError(f"{settings} would have no effect, since no layer of {text} has such an option: remove it")
    for kind in PATTERN.keys() - kinds.keys():
        below = node.get(kind) or {}
        changed = [key for key in below if not key.startswith("_") and below[key] != _default(below, key)]
        if changed:
            setting = _setting(f"model.attention.{kind}.{changed[0]}", below[changed[0]])
            raise ConfigError(
                f"{setting} would have no effect, since {text} has no layer of the kind {kind}: remove it"
            )


def _default(node: Config, name: str) -> object:
    return argument({"_target_": node["_target_"]}, name)


def _check_value_residual(model: Config, kinds: Mapping[str, tuple[str, Json]]) -> None:
    """Refuses values of a first layer that does not pass them on, or that no later layer reads."""
    mixes = {kind: _option(options, "value_residual")[1] is True for kind, (_, options) in kinds.items()}
    if not any(mixes.values()):
        return
    pattern = [""] if "" in kinds else argument(model["attention"], "pattern")
    if not mixes[pattern[0]]:
        raise ConfigError(
            "model.attention.value_residual=true needs values of the first layer, and model.attention.pattern="
            f"[{','.join(pattern)}] has none there: let it begin with full or window"
        )
    depth, later = argument(model, "depth"), argument(model, "future") or 0
    if depth and sum(mixes[pattern[layer % len(pattern)]] for layer in range(depth + later)) < 2:
        raise ConfigError(
            f"model.attention.value_residual=true would have no effect, since no later layer of model.depth={depth} "
            "reads the values of the first one: set a larger model.depth, or remove it"
        )


def _check_experts(model: Config) -> None:
    mlp = model.get("mlp")
    if not isinstance(mlp, Mapping) or "_target_" not in mlp:
        return
    k, experts = argument(mlp, "k"), argument(mlp, "num_experts")
    if k is not None and experts is not None and k > experts:
        raise ConfigError(f"model.mlp.k={k} must be <= model.mlp.num_experts={experts}")
    router = mlp.get("router")
    if isinstance(router, Mapping) and "acknowledge_leak" in signature(str(router["_target_"])).parameters:
        _check_leak(model, router)
    parameters = signature(str(mlp["_target_"])).parameters
    if "router" in parameters:
        _check_router(mlp, router if isinstance(router, Mapping) else {"_target_": "kleiber.nn.routers.TopK"})
    if "every" in parameters and "dense_first" in parameters:
        _check_sparse_layers(mlp, argument(model, "depth"))


def _check_leak(model: Config, router: Config) -> None:
    if argument(model, "causal") and not argument(router, "acknowledge_leak"):
        raise ConfigError(
            "model/router=expert_choice routes a token by later tokens, which leaks them into a causal model: use "
            "model=bert with objective=mlm, another router, or set model.mlp.router.acknowledge_leak=true"
        )


def _check_router(mlp: Config, router: Config) -> None:
    """Refuses a router that cannot learn, or that does not fit the mixture."""
    target = str(router["_target_"])
    name, by_logits = target.rpartition(".")[2], class_attribute(target, "by_logits")
    if by_logits is None:
        raise ConfigError(f"model.mlp.router._target_={target} must be a class derived from kleiber.types.model.Router")
    parts = argument(mlp, "granularity") or 1
    k, experts = argument(mlp, "k") * parts, argument(mlp, "num_experts") * parts
    if k == 1 and by_logits and class_attribute(target, "sums_to_one"):
        raise ConfigError(
            f"model.mlp.k=1 leaves the router {name} without a gradient, since its weight is always 1: set "
            "model/router=switch, or model.mlp.k=2"
        )
    capacity = argument(mlp, "capacity_factor")
    if capacity is not None and not by_logits:
        raise ConfigError(
            f"model.mlp.capacity_factor={capacity:g} needs a learned router in which tokens choose experts, and {name} "
            "is not one: remove it, or set model/router=topk"
        )
    groups, limit = argument(router, "groups"), argument(router, "limit")
    if groups is not None and limit is not None:
        check_groups(groups, limit, experts, k)


def check_groups(groups: int, limit: int, experts: int, k: int) -> None:
    """Raises ConfigError for groups of experts of which `limit` cannot hold the k experts of a token."""
    if experts % groups:
        raise ConfigError(f"model.mlp.router.groups={groups} must divide the {experts} experts of model.mlp")
    if limit > groups or limit * (experts // groups) < k:
        raise ConfigError(
            f"model.mlp.router.limit={limit} must be <= model.mlp.router.groups={groups}, and so many groups of "
            f"{experts // groups} experts must hold the {k} experts of a token"
        )


def _check_sparse_layers(mlp: Config, depth: int) -> None:
    every, dense = argument(mlp, "every"), argument(mlp, "dense_first")
    if every > depth:
        raise ConfigError(f"model.mlp.every={every} must be <= model.depth={depth}, the number of layers")
    last = depth // every * every - 1
    if dense > last:
        raise ConfigError(
            f"model.mlp.dense_first={dense} must be <= {last}, since at least one of model.depth={depth} layers must "
            "hold experts"
        )
