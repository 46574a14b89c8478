"""Parameters, FLOPs and memory of a model, computed from its config without torch.

The formulas equal those of `models.counting`, and a test compares the two; a layer without a formula raises ValueError.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kleiber.config.attention_size import attention_cache, attention_size, rotation_table
from kleiber.config.errors import ConfigError
from kleiber.config.stages import quantity, stage_configs
from kleiber.config.targets import argument, class_attribute
from kleiber.types import Config

MOE = "kleiber.nn.interleaved_moe"
MLP = ("kleiber.nn.SwiGLU", "kleiber.nn.GELU", "kleiber.nn.ReLU2", MOE)
NATIVE = "kleiber.models.Transformer"
RECURRENT = "kleiber.models.LSTM"
WRAPPED = "kleiber.models.HFModel"
SCHEDULERS = ("kleiber.launch.Submitit", "kleiber.launch.Ray")
ROW_VALUES = 16  # values that a step keeps for each token, channel and layer; 16 to 28 were measured
BYTES_VOCABULARY = 272  # 256 bytes, end of text and mask, padded to a multiple of 16


@dataclass(frozen=True)
class Size:
    """The size of a model: parameters in total, active for a token, outside embeddings; training FLOPs per token."""

    width: int
    total: int
    active: int
    non_embedding: int
    flops_per_token: float


def size(model: Config, vocab_size: int, width: int | None = None) -> Size:
    """Returns the `Size` of a resolved `model` node; `width` overrides its width.

    A matrix costs 2 FLOPs per weight and token; attention costs 4 FLOPs per channel and per (query, key) pair that the
    mask allows; training costs three times the forward pass. Raises ValueError for a model, an attention or an MLP
    without a formula here.
    """
    target = str(model.get("_target_", NATIVE))
    if target not in (NATIVE, RECURRENT):
        raise ValueError(
            f"model={target} has no FLOPs formula, which a design that chooses sizes needs; use design=grid"
        )
    depth = int(model.get("depth") or 2)
    width = int(width or model.get("width") or int(model.get("aspect") or 64) * depth)
    if target == RECURRENT:
        return _recurrent(model, vocab_size, depth, width)
    total = active = 0
    forward = 0.0
    future = int(model.get("future") or 0)
    norm = (2 if model.get("norm_type") == "layernorm" else 1) * width  # gains and biases
    for layer in range(depth + future):
        matrices, vectors, mixing_flops = attention_size(model, width, layer)
        every, visited, pairs = _mlp(model, width, layer)
        block_norms = (4 if model.get("norm") == "sandwich" else 2) * norm
        total += matrices + vectors + every + block_norms
        active += matrices + vectors + visited + block_norms
        forward += 2.0 * (matrices + pairs) + mixing_flops
    vocabulary = vocab_size * width * (1 if model.get("tied", True) else 2)
    vocabulary += width * int(model.get("context") or 256) if model.get("positions") == "learned" else 0
    forward += 2.0 * vocab_size * width * (1 + future)
    norms = norm * (1 + future)
    non_embedding = total + norms
    return Size(width, non_embedding + vocabulary, active + norms + vocabulary, non_embedding, 3 * forward)


def _recurrent(model: Config, vocab_size: int, depth: int, width: int) -> Size:
    """Returns the `Size` of a model=lstm."""
    hidden = int(model.get("hidden") or lstm_hidden(width))
    matrices = 4 * hidden * (width + hidden) + hidden * width
    non_embedding = depth * (matrices + 8 * hidden + width) + width
    total = non_embedding + vocab_size * width * (1 if model.get("tied", True) else 2)
    return Size(width, total, total, non_embedding, 6.0 * (depth * matrices + vocab_size * width))


def lstm_hidden(width: int) -> int:
    """Returns the channels of the state at which an LSTM block has the parameters of a Transformer block.

    The even number nearest to the solution h of 4 h (width + h) + h width + 8 h = 4 width^2 + 3 width m, for the
    matrices and biases of an LSTM with a projection, and those of attention and a SwiGLU of m hidden channels.
    """
    linear, target = 5 * width + 8, 4 * width * width + 3 * width * gated_hidden(width)
    return max(2, 2 * round((math.sqrt(linear * linear + 16 * target) - linear) / 16))


def gated_hidden(width: int) -> int:
    """Returns the hidden units of a SwiGLU that costs what an MLP of 4 width does: 8/3 width, rounded up to 16s."""
    return -(-8 * width // 48) * 16


def width_of(model: Config) -> int:
    """Returns the width of a `model` node: `width`, or else aspect x depth."""
    return model.get("width") or model["aspect"] * model["depth"]


def cached_values(model: Config) -> float | None:
    """Returns the numbers that decoding keeps of one full context: keys and values, or the states of a model=lstm.

    None for a class of another package, and for a model=hf whose `config` names no width.
    """
    if model.get("_target_") == WRAPPED:
        sizes = model.get("config") or {}
        width, heads = sizes.get("hidden_size") or sizes.get("n_embd"), sizes.get("num_attention_heads")
        share = (sizes.get("num_key_value_heads") or heads) / heads if heads else 1.0
        if not (width and model.get("depth") and model.get("context")):
            return None
        return 2.0 * model["depth"] * model["context"] * width * share
    if model.get("_target_", NATIVE) not in (NATIVE, RECURRENT):
        return None
    width = width_of(model)
    if model.get("_target_") == RECURRENT:
        return 2.0 * model["depth"] * (model.get("hidden") or lstm_hidden(width))
    return float(sum(attention_cache(model, width, layer) for layer in range(model["depth"])))


def vocabulary_of(data: Config) -> int:
    """Returns the vocabulary size of a `data` node.

    Raises ValueError for a tokenizer other than bytes and bpe, whose size is only known from its files.
    """
    if isinstance(data.get("data"), Mapping):  # a data set around another one
        return vocabulary_of(data["data"])
    tokenizer = data.get("tokenizer", "bytes")
    if tokenizer == "bytes":
        return BYTES_VOCABULARY
    if tokenizer == "bpe":
        return -(-int(data.get("vocab_size") or 4096) // 16) * 16
    raise ValueError(
        f"data.tokenizer={tokenizer} must be bytes or bpe for a design that chooses sizes; use design=grid"
    )


def _mlp(model: Config, width: int, layer: int) -> tuple[int, int, int]:
    """Returns three weight counts of one MLP: all, active for a token, and multiplied with it (router included)."""
    node = model.get("mlp") or {"_target_": MLP[0]}
    kind = str(node["_target_"])
    if kind not in MLP:
        raise ValueError(
            f"model.mlp={kind} has no FLOPs formula, which a design that chooses sizes needs; use design=grid"
        )
    gated = gated_hidden(width)
    if kind.endswith(("GELU", "ReLU2")):
        count = 2 * width * int(node.get("hidden") or 4 * width)
        return count, count, count
    is_dense = layer < int(node.get("dense_first") or 0) or (layer + 1) % int(node.get("every") or 1)
    if kind != MOE or is_dense:
        hidden = int(node.get("hidden") or gated) if kind != MOE else gated
        return 3 * width * hidden, 3 * width * hidden, 3 * width * hidden
    parts = int(node.get("granularity") or 1)
    defaults = (("num_experts", 8), ("k", 2), ("num_shared", 0))
    experts, k, shared = (parts * int(node.get(key, usual)) for key, usual in defaults)
    hidden = int(node["hidden"]) // parts if node.get("hidden") else -(-gated // (8 * (k + shared))) * 8
    expert = 3 * width * hidden
    choice = node.get("router")
    matrices = class_attribute(choice["_target_"], "matrices") if isinstance(choice, Mapping) else 1
    router, common = matrices * experts * width, shared * expert
    return router + common + experts * expert, router + common + k * expert, router + common + k * expert


def check_memory(config: Config) -> None:
    """Raises ConfigError for a run that needs more memory than this machine has, before anything is allocated.

    The memory is underestimated rather than overestimated. Not checked: a model without a formula, and a run that a
    scheduler may start on another machine.
    """
    if config["launcher"]["_target_"] in SCHEDULERS:
        return
    for stage in stage_configs(config).values():
        if stage["model"]["_target_"] in (NATIVE, RECURRENT):
            check_fits(size_keys(stage), training_memory(stage))


def check_model_memory(model: Config, vocab_size: int, source: str = "") -> None:
    """Raises ConfigError for a `model` node whose weights, or tables of rotations, this machine cannot hold in fp32.

    source  what the error begins with, such as the folder of the model. A model without a formula is not checked
    """
    try:
        shape = size(model, vocab_size)
        layers = range(argument(model, "depth")) if model["_target_"] == NATIVE else ()
        tables = sum(rotation_table(model, shape.width, layer) for layer in layers)
    except ValueError:
        return
    sizes = {"depth": argument(model, "depth"), "width": shape.width, "context": argument(model, "context")}
    check_fits(source + ", ".join(f"model.{key}={value}" for key, value in sizes.items()), 4.0 * (shape.total + tables))


def check_fits(settings: str, needed: float) -> None:
    """Raises ConfigError, which names the `settings`, where `needed` bytes are more than this machine has."""
    available = machine_memory()
    if needed > available:
        raise ConfigError(
            f"{settings} needs at least {needed / 2**30:,.0f} GiB of memory, and this machine has "
            f"{available / 2**30:,.0f} GiB: choose smaller sizes"
        )


def training_memory(config: Config) -> float:
    """Returns a lower bound of the bytes of a run without a chain: weights, optimizer state, activations of a row."""
    model, trainer, micro = config["model"], config["trainer"], config["batch"]["micro"]
    try:
        vocabulary = vocabulary_of(config["data"])
    except ValueError:  # only the files of the tokenizer tell
        vocabulary = BYTES_VOCABULARY
    try:
        shape = size(model, vocabulary)
    except ValueError:
        return 0.0
    token_ids = 8.0 * quantity(config["batch"]["tokens"])
    if argument(trainer, "accelerator") == "gpu":  # where only the weights pass through the memory of the machine
        return 4.0 * shape.total + token_ids
    copies = 1 if config.get("adapter") else 4 if config["optimizer"]["_target_"].endswith(".AdamW") else 3
    layers = 1 if argument(trainer, "checkpoint_activations") else argument(model, "depth")
    row = 4.0 * ROW_VALUES * argument(model, "context") * shape.width * layers
    each = 4.0 * copies * shape.total + row * (1 if micro == "auto" else micro)
    ranks_here = min(argument(trainer, "devices"), int(os.environ.get("LOCAL_WORLD_SIZE", 10**6)))  # of several nodes
    return each * ranks_here + token_ids


def size_keys(config: Config) -> str:
    """Returns the keys that determine the memory of a run, with their values."""
    nodes = {"model": config["model"], "model.mlp": config["model"].get("mlp") or {}, "data": config["data"]}
    width = "aspect" if argument(config["model"], "width") is None else "width"
    names = {"model": ("depth", width, "context"), "model.mlp": ("num_experts", "hidden"), "data": ("vocab_size",)}
    values = {f"{key}.{name}": argument(node, name) for key, node in nodes.items() if node for name in names[key]}
    values |= {f"batch.{name}": value for name, value in config["batch"].items() if value != "auto"}
    return ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)


def machine_memory() -> float:
    """Returns the memory of this machine, or of the container it is, in bytes; infinity where nothing reports it."""
    try:
        memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a Unix
        return math.inf
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return min(memory, float(limit)) if limit.isdigit() else memory


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use; outside Linux, that of all cores."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpu_ids() -> list[str]:
    """Returns the ids of the GPUs that a sweep may use: those of CUDA_VISIBLE_DEVICES, or all of this machine.

    CUDA ignores the ids from the first negative one on, and numbers GPUs from 0, whatever the names of their files.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in itertools.takewhile(lambda name: not name.startswith("-"), visible.split(",")) if name]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
