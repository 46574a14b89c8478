"""Configs of Hugging Face models: the folder of a model, and the `model` node of kleiber for its config.json.

Nothing here imports torch, so that a run's config can be composed without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kleiber.config import hub
from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.model_size import check_fits, gated_hidden
from kleiber.records.files import read_json
from kleiber.records.model_files import check_model_folder
from kleiber.types import Config, Json

# Classes of transformers, which is imported late. Their attributes depend on the type of the model.
PretrainedConfig = Any
PreTrainedModel = Any

KINDS = {"llama": (False, False), "qwen3": (True, False), "mixtral": (False, True), "qwen3_moe": (True, True)}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
DEFAULTS: dict[str, Json] = {  # defaults of transformers for keys that are not in config.json; a test compares them
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
DEFAULT_CONTEXT = 256  # longest row of a wrapped model
MOST_LAYERS, MOST_CHANNELS, MOST_IDS, MOST_POSITIONS = 10_000, 1 << 20, 1 << 24, 1 << 24
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
LIMITS = {  # largest values of sizes in config.json, by each name that an architecture may give them
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), MOST_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "head_dim"), MOST_CHANNELS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"), MOST_CHANNELS),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), MOST_CHANNELS),
    **dict.fromkeys(POSITIONS, MOST_POSITIONS),
    **dict.fromkeys(("intermediate_size", "n_inner", "moe_intermediate_size", "vocab_size"), MOST_IDS),
}
FRACTIONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta")
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers", "layers_block_type")
FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # that are downloaded from the hub


def model_folder(name: str, key: str = "model.path") -> Path:
    """The folder of a model: `name` itself, its copy below $KLEIBER_DATA, or a download of the hub without pickles.

    Raises ConfigError, which names the config key, where there is no such model; it takes at most ten seconds.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = (hub.local_copy(name) if hub.is_name(name) else None) or _downloaded(name, key)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{key}={name} must be the folder of a Hugging Face model: {folder} has no config.json")
    check_model_folder(folder)
    return folder


def _downloaded(name: str, key: str) -> Path:
    if not hub.is_name(name):
        raise ConfigError(f"{key}={name} must be a folder, or the name of a model on the hub (owner/name)")
    from huggingface_hub import snapshot_download

    online = hub.reachable()
    try:
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=not online))
    except Exception as error:  # many kinds, of several libraries
        from kleiber.config.hub_failures import failure

        refused = failure(error, name, "model") or str(error).splitlines()[0]
        why = refused if online else "the hub cannot be reached, and there is no local copy"
        raise ConfigError(f"{key}={name}: {why}; you can also pass a local folder, {key}=FOLDER") from error


def read_config(folder: Path) -> Json:
    """The content of config.json.

    Raises ConfigError where it is no JSON object, a number in it is impossible, or it names code on the hub.
    """
    file = folder / "config.json"
    config = read_json(file)
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{file}: model_type={config.get('model_type')!r} must be the name of an architecture")
    check_numbers(str(file), config)
    _refuse_kernels(file, config)
    return config


def _refuse_kernels(file: Path, node: object, key: str = "") -> None:
    """Raises ConfigError for a setting that names a repository of kernels, whose code transformers would run."""
    if isinstance(node, dict):
        for name, value in node.items():
            _refuse_kernels(file, value, name if name.endswith("_implementation") else key)
    elif key and isinstance(node, str) and "/" in node:
        raise ConfigError(f"{file}: {key}={node} names code on the hub, which is never run: remove it from the file")


def check_numbers(where: str, config: Config) -> None:
    """Raises ConfigError, which names `where` and the key, for a number that no architecture can have."""
    for key, limit in LIMITS.items():
        value = config.get(key)
        if value is None or isinstance(value, list | dict):  # some architectures have a value per layer
            continue
        if type(value) is not int or not 0 <= value <= limit:
            raise ConfigError(f"{where}: {key}={value!r} must be an integer from 0 to {limit:,}")
    for key in FRACTIONS:
        value = config.get(key)
        if value is not None and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise ConfigError(f"{where}: {key}={value!r} must be a finite number >= 0")


def hf_vocab_size(folder: Path) -> int:
    """Number of token ids of the folder's model. Raises ConfigError where config.json has none."""
    config = read_config(folder)
    _require(folder, config, ("vocab_size",))
    return config["vocab_size"]


def _require(folder: Path, config: Config, keys: Sequence[str]) -> None:
    for key in keys:
        value = config.get(key)
        if not isinstance(value, int) or value < 1:
            text = f"{key}={value!r}" if key in config else f"a missing {key}"
            raise ConfigError(f"{folder / 'config.json'}: {text} must be an integer >= 1, that of the weights")


def hf_tokenizer(folder: Path) -> str:
    """The value of `data.tokenizer` for the model in the folder. Raises ConfigError where it has no tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no tokenizer.json: set data.tokenizer to the tokenizer of this model")
    return str(folder)


def is_native(folder: Path) -> bool:
    """Whether the folder holds a model of an architecture that kleiber's Transformer has."""
    return read_config(folder)["model_type"] in KINDS


def wrapped_model_node(folder: Path) -> Json:
    """The `model` node of kleiber for a model of any other architecture, as `model=hf model.path=FOLDER`."""
    config = read_config(folder)
    context = min([DEFAULT_CONTEXT, *(config[name] for name in POSITIONS if config.get(name))])
    return {"_target_": "kleiber.models.HFModel", "path": str(folder), "weights": "pretrained", "context": context}


def hf_model_node(folder: Path, context: int | None = None) -> Json:
    """The `model` node of kleiber for a Llama, Qwen3, Mixtral or Qwen3-MoE folder, in standard parametrization.

    It has no vocab_size, which is that of the run's tokenizer. Raises ConfigError for settings that kleiber's
    Transformer cannot represent.

    context  longest row, in tokens; None: the longest of the folder's model
    """
    folder = folder.expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} must be the folder of a Hugging Face model, and has no config.json")
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ConfigError(
            f"{folder} has model_type={kind}, which must be one of {', '.join(KINDS)}; model=hf wraps any other model"
        )
    qk_norm, experts = KINDS[kind]
    _require(folder, config, SIZES)
    config = DEFAULTS[kind] | config
    check_convertible(config)
    if experts:
        config = _with_experts(folder, config)
    dense = {"_target_": "kleiber.nn.SwiGLU", "_partial_": True, "hidden": config["intermediate_size"]}
    longest = config["max_position_embeddings"]
    if context is not None and context > longest:
        raise ConfigError(f"model.context={context} must be <= {longest}, the positions of {folder}")
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


def _with_experts(folder: Path, config: Json) -> Json:
    """The config with `num_local_experts`, which some versions of transformers call `num_experts`."""
    number = config.get("num_experts", config.get("num_local_experts"))
    config = config if number is None else config | {"num_local_experts": number}
    size = () if config["model_type"] == "mixtral" else ("moe_intermediate_size",)
    _require(folder, config, ("num_local_experts", "num_experts_per_tok", *size))
    return config


def _rope(config: Config) -> Json:
    """The rotary settings, from the keys of transformers 5 or of earlier versions."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = settings.get("rope_theta", 1.0) if isinstance(settings, dict) else None
    if not (isinstance(theta, int | float) and 0 < theta < math.inf):
        raise ConfigError(f"rope_parameters={settings!r} in config.json must have a finite rope_theta > 0")
    kind = settings.get("rope_type", settings.get("type", "default"))
    return {"rope_theta": config["rope_theta"]} | settings | {"rope_type": kind}


def check_convertible(config: Config) -> None:
    """Raises ConfigError, which names the key, for settings that kleiber's Transformer cannot represent exactly."""
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
    for name, unsupported in wrong.items():
        if unsupported:
            value = _rope(config) if name == "rope_parameters" else config.get(name)
            raise ConfigError(f"{config['model_type']} with {name}={value!r} cannot be converted exactly: use model=hf")


def _experts(config: Config) -> Json:
    """The node of the MLPs: experts on every n-th layer, and dense MLPs of the default size on the others."""
    node = {"_target_": "kleiber.nn.interleaved_moe", "_partial_": True, "num_shared": 0}
    router, every = "TopK", 1
    if config["model_type"] == "mixtral":
        node |= {"num_experts": config["num_local_experts"], "hidden": config["intermediate_size"]}
    else:
        node |= {"num_experts": config["num_local_experts"], "hidden": config["moe_intermediate_size"]}
        router, every = "TopK" if config["norm_topk_prob"] else "Switch", _every(config)
    node |= {"k": config["num_experts_per_tok"], "every": every}
    return node | {"router": {"_target_": f"kleiber.nn.routers.{router}", "_partial_": True}}


def _every(config: Config) -> int:
    """The n for which exactly every n-th layer has experts. Raises ConfigError where there is no such n."""
    depth, step = config["num_hidden_layers"], config["decoder_sparse_step"]
    dense = set(config.get("mlp_only_layers") or ())
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(depth)]
    every = next((n for n in range(1, depth + 1) if sparse == [(i + 1) % n == 0 for i in range(depth)]), None)
    default = gated_hidden(config["hidden_size"])
    if every is None or (every > 1 and config["intermediate_size"] != default):
        raise ConfigError(
            f"mlp_only_layers={sorted(dense)} and decoder_sparse_step={step} with intermediate_size="
            f"{config['intermediate_size']} cannot be converted to experts on every n-th layer: use model=hf"
        )
    return every


def configuration(path: str, weights: str, changes: Config) -> tuple[PretrainedConfig, Path | None]:
    """The config of a model with `changes`, and the folder of its weights (None for random weights).

    Raises ConfigError for unknown settings and for models whose code is not part of transformers.
    """
    from transformers import CONFIG_MAPPING

    if weights not in ("pretrained", "random"):
        raise ConfigError(f"model.weights={weights} must be pretrained or random")
    folder = None if weights == "random" and path in CONFIG_MAPPING else model_folder(path)
    content = {"model_type": path} if folder is None else read_config(folder)
    kind = str(content.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.path={path} has model_type={kind}, which must be a type of the installed transformers: code in a "
            "folder is never run"
        )
    plain = CONFIG_MAPPING[kind]()
    names = plain.to_dict().keys() | plain.attribute_map.keys()
    for name in changes:
        if name not in names:
            raise ConfigError(f"model.config.{name} is not a setting of {kind}.{did_you_mean(name, names)}")
    check_numbers("model.config", changes)
    try:
        settings = CONFIG_MAPPING[kind].from_dict(_cut({**content, **changes}))
    except Exception as error:  # of several types, by validators of transformers
        raise ConfigError(f"model.config={dict(changes)} of model.path={path}: {error}") from None
    depth, width = setting(settings, "num_hidden_layers"), setting(settings, "hidden_size")
    kept = 2.0 * depth * width**2 + setting(settings, "vocab_size") * setting(settings, "embedding_size", width)
    check_fits(f"model.path={path} with {depth} layers of width {width}", 4.0 * kept)
    return settings, folder if weights == "pretrained" else None


def _cut(settings: Json) -> Json:
    """The settings, with lists that have one entry per layer cut to the number of layers."""
    depth = settings.get("num_hidden_layers")
    lists = {name: settings[name] for name in PER_LAYER if isinstance(settings.get(name), list)}
    return settings | {name: entries[:depth] for name, entries in lists.items()}


def setting(config: PretrainedConfig, name: str, default: int | float = 0) -> int | float:
    """A number of the config by its common name, which the type of the model may spell differently.

    default  the value where the config has no such setting, or has it as null
    """
    value = getattr(config, name, None)
    return default if value is None else value
