"""What a Hugging Face folder holds, told from its config.json alone: our `model` node for it, its vocabulary.

It imports no torch, so that a config is made before torch is there. It refuses what our model cannot say exactly.

The causal model in a Hugging Face folder as transformers builds it, with every weight that it has from the folder.

transformers fills what is missing with random numbers and drops what it has no place for: here both are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kleiber.config import hub
from kleiber.config.errors import did_you_mean

KINDS = {"llama": (False, False), "qwen3": (True, False), "mixtral": (False, True), "qwen3_moe": (True, True)}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
DEFAULTS: dict[str, dict[str, Any]] = {  # what transformers takes where a file does not say; tests compare
    "llama": {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "num_key_value_heads": None},
    "qwen3": {
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "num_key_value_heads": 32, "head_dim": 128,
        "use_sliding_window": False,
    },
    "mixtral": {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    "qwen3_moe": {
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "norm_topk_prob": False,
        "use_sliding_window": False, "decoder_sparse_step": 1,
    },
}  # fmt: skip
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers", "layers_block_type")
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def model_folder(name: str, key: str = "model.path") -> Path:
    """The folder of a model: `name` itself, its copy below $KLEIBER_DATA, or the hub's, without pickles.

    Raises ValueError where there is none, within ten seconds.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = (hub.local_copy(name) if hub.is_name(name) else None) or _downloaded(name, key)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{key}={name}: there is no config.json in {folder}")
    return folder


def _downloaded(name: str, key: str) -> Path:
    if not hub.is_name(name):
        raise ValueError(f"{key}={name}: there is no such folder, and it is no name on the hub")
    from huggingface_hub import snapshot_download

    online = hub.reachable()
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=not online))
    except Exception as error:  # many kinds, of several libraries
        why = str(error).splitlines()[0] if online else "the hub cannot be reached, and there is no copy here"
        raise ValueError(f"{key}={name}: {why}; a local folder serves as well: {key}=FOLDER") from error


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises ValueError where it is no JSON object."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}; fetch the model anew") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__} and no JSON object: fetch the model anew")
    return config


def hf_vocab_size(folder: Path) -> int:
    """Rows of the folder's embedding: the vocabulary's size of a model that its weights fit."""
    config = read_config(folder)
    _require(folder, config, ("vocab_size",))
    return config["vocab_size"]


def _require(folder: Path, config: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if not isinstance(config.get(key), int):
            told = f"{key}={config[key]!r} is no whole number" if key in config else f"there is no {key}"
            raise ValueError(f"{folder / 'config.json'}: {told}: write the one that the weights have")


def hf_tokenizer(folder: Path) -> str:
    """What `data.tokenizer` has to be for the ids to be the model's. Raises ValueError where it came without one."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json: name the model's tokenizer with data.tokenizer=")
    return str(folder)


def hf_model_node(folder: Path, context: int | None = None) -> dict[str, Any]:
    """Our `model` node for a Llama, Qwen3, Mixtral or Qwen3-MoE folder, in standard parametrisation.

    context  longest row; null: the model's own. The vocabulary is the run's to supply: see `hf_vocab_size`.
    """
    folder = folder.expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: there is no config.json of a Hugging Face model")
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(
            f"{folder} is of model_type={kind}, which our model cannot be: it can be {', '.join(KINDS)}; "
            "any other is wrapped as it is by model=hf"
        )
    qk_norm, experts = KINDS[kind]
    _require(folder, config, SIZES)
    config = DEFAULTS[kind] | config
    _refuse(config)
    if experts:
        config = _with_experts(folder, config)
    dense = {"_target_": "kleiber.nn.SwiGLU", "_partial_": True, "hidden": config["intermediate_size"]}
    longest = config["max_position_embeddings"]
    if context is not None and context > longest:
        raise ValueError(f"model.context={context} exceeds the {longest} positions of {folder}: take at most that")
    return {
        "_target_": "kleiber.models.Transformer",
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "context": context or longest,
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"] or config["num_attention_heads"],
        "mlp": _experts(config) if experts else dense,
        "attention": {"_target_": "kleiber.nn.FullAttention", "_partial_": True},
        "parametrization": {"_target_": "kleiber.nn.StandardParametrization"},
        "tied": bool(config.get("tie_word_embeddings", False)),
        "qk_norm": qk_norm,
        "rope_theta": float(_rope(config)["rope_theta"]),
        "norm_eps": config["rms_norm_eps"],
    }


def _with_experts(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with the number of experts under one name, which versions of transformers have changed."""
    number = config.get("num_experts", config.get("num_local_experts"))
    config = config if number is None else config | {"num_local_experts": number}
    own = () if config["model_type"] == "mixtral" else ("moe_intermediate_size",)
    _require(folder, config, ("num_local_experts", "num_experts_per_tok", *own))
    return config


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings, as version 5 of transformers writes them or as earlier ones did, or half and half."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.get("rope_type", given.get("type", "default"))
    return {"rope_theta": config["rope_theta"]} | given | {"rope_type": kind}


def _refuse(config: Mapping[str, Any]) -> None:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    windowed = config.get("use_sliding_window", True) and config.get("sliding_window") is not None
    wrong = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "head_dim": (config.get("head_dim") or width // heads) * heads != width,
        "rope_parameters": _rope(config).get("rope_type", "default") != "default",
        "sliding_window": windowed,
    }
    for name, bad in wrong.items():
        if bad:
            told = _rope(config) if name == "rope_parameters" else config.get(name)
            raise ValueError(f"{config['model_type']} with {name}={told!r} cannot be read exactly: take model=hf")


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The factory's node: experts on every layer, or on every n-th between dense ones of our own usual size."""
    node = {"_target_": "kleiber.nn.interleaved_moe", "_partial_": True, "num_shared": 0}
    router, every = "TopK", 1
    if config["model_type"] == "mixtral":
        node |= {"num_experts": config["num_local_experts"], "hidden": config["intermediate_size"]}
    else:
        node |= {"num_experts": config["num_local_experts"], "hidden": config["moe_intermediate_size"]}
        router, every = "TopK" if config["norm_topk_prob"] else "Switch", _every(config)
    node |= {"k": config["num_experts_per_tok"], "every": every}
    return node | {"router": {"_target_": f"kleiber.nn.routers.{router}", "_partial_": True}}


def _every(config: Mapping[str, Any]) -> int:
    depth, step = config["num_hidden_layers"], config["decoder_sparse_step"]
    dense = set(config.get("mlp_only_layers") or ())
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(depth)]
    every = next((n for n in range(1, depth + 1) if sparse == [(i + 1) % n == 0 for i in range(depth)]), None)
    usual = -(-8 * config["hidden_size"] // 48) * 16  # nn.mlp.gated_hidden, without torch
    if every is None or (every > 1 and config["intermediate_size"] != usual):
        raise ValueError(
            f"mlp_only_layers={sorted(dense)} and decoder_sparse_step={step} with intermediate_size="
            f"{config['intermediate_size']} cannot be read as experts on every n-th layer: take model=hf"
        )
    return every


def configuration(path: str, weights: str, changes: Mapping[str, Any]) -> tuple[Any, Path | None]:
    """The model's config with the changes in it, and the folder of its weights (None for random ones)."""
    from transformers import CONFIG_MAPPING

    if weights not in ("pretrained", "random"):
        raise ValueError(f"model.weights={weights}: write pretrained or random")
    folder = None if weights == "random" and path in CONFIG_MAPPING else model_folder(path)
    told = {"model_type": path} if folder is None else read_config(folder)
    kind = str(told.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"model.path={path} is of model_type={kind}, which transformers does not know itself: no code is run"
        )
    plain = CONFIG_MAPPING[kind]()
    known = plain.to_dict().keys() | plain.attribute_map.keys()
    for name in changes:
        if name not in known:
            raise ValueError(f"model.config.{name}: {kind} has no such setting.{did_you_mean(name, known)}")
    try:
        settings = CONFIG_MAPPING[kind].from_dict(_cut({**told, **changes}))
    except Exception as error:  # of a validator of transformers' own
        raise ValueError(f"model.config={dict(changes)} of model.path={path}: {error}") from None
    return settings, folder if weights == "pretrained" else None


def _cut(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with lists that have an entry a layer cut to the layers that there are."""
    depth = settings.get("num_hidden_layers")
    lists = {name: settings[name] for name in PER_LAYER if isinstance(settings.get(name), list)}
    return settings | {name: entries[:depth] for name, entries in lists.items()}


def read_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder with safetensors; no code or pickle that came with it is opened.

    Raises ValueError, naming the folder, for damaged weights, and for ones that are missing or have no place.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    kind: Any = AutoModelForCausalLM
    try:
        twin, told = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    except (KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}; fetch the model anew") from None
    tied = {"lm_head.weight"} if twin.config.tie_word_embeddings else set()
    missing, more = sorted(set(told["missing_keys"]) - tied), sorted(told["unexpected_keys"])
    if missing:
        raise ValueError(f"{folder} holds no weights for {', '.join(missing[:3])}: it is damaged, so fetch it anew")
    if more:
        raise ValueError(
            f"{folder} holds {', '.join(more[:3])}, which a {twin.config.model_type} with its config.json has no place "
            "for: config.json is of another model"
        )
    return twin
